"""What the training of a tokenizer does at its due moments: pictures, scores, and the export.

samples/000000032000.png    images, and below each what became of it
records/*.record.json       the scores of its reconstructions
tokenizer/                  the averaged weights as a tokenizer, at the end
tokenizer/training.json     of which run, after how many images
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nanogen import config, dist, reconstruction, registry
from nanogen.bench import record
from nanogen.errors import MetricError
from nanogen.evaluation.measure import write
from nanogen.files import whole_file, write_text
from nanogen.metrics.similarity import psnr
from nanogen.reconstruction import Options, Subject
from nanogen.sampling.grid import grid
from nanogen.stage1.autoencoder import Preview, TrainableAutoencoder
from nanogen.stage1.run import TokenizerEvaluation
from nanogen.tasks.base import Task
from nanogen.train.loop import Hooks
from nanogen.train.settings import Machine, Training
from nanogen.train.signals import Check
from nanogen.types import Tokenizer, to_float, to_uint8

SHOWN, COLUMNS = 20, 10
"""images of the picture, and how many are beside each other"""
TOKENIZER = "tokenizer"
ORIGIN = "training.json"


class WatchedRun(Protocol):
    """The fields of a run that count here."""

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def autoencoder(self) -> Any: ...
    @property
    def train(self) -> Training: ...
    @property
    def statistics(self) -> int: ...
    @property
    def evaluation(self) -> TokenizerEvaluation: ...
    @property
    def machine(self) -> Machine: ...
    def identity(self) -> WatchedRun: ...


class Watched(Protocol):
    """The built parts of a run that ends in a tokenizer."""

    @property
    def run(self) -> WatchedRun: ...
    @property
    def task(self) -> Task: ...
    @property
    def autoencoder(self) -> TrainableAutoencoder: ...
    @property
    def device(self) -> torch.device: ...


def hooks(parts: Watched, folder: Path) -> Hooks:
    """Raises a UserError where data and metrics do not suit each other: better before training than
    after it.
    """
    _check_metrics(parts)

    def evaluate(seen: int, check: Check) -> None:
        run = parts.run
        exported = seen >= run.train.images
        if exported:
            export(parts, folder / TOKENIZER, seen, check)
        done = dist.rank() == 0 and measured(parts, folder / "records", seen)
        if run.evaluation.metrics and not dist.any_flag(done, parts.device):
            tokenizer = opened(parts, folder / TOKENIZER) if exported else preview(parts, seen)
            write(measure(parts, tokenizer, seen, check), folder / "records")

    return Hooks(
        sample=lambda seen: save_picture(parts, folder / "samples" / f"{seen:012d}.png"),
        evaluate=evaluate,
    )


def digest(parts: Watched) -> str:
    """Twelve hex digits of what decides the result of a run."""
    return config.digest(parts.run.identity())


def preview(parts: Watched, seen: int) -> Preview:
    """The present weights as a tokenizer."""
    return Preview(parts.autoencoder, f"{digest(parts)}-{seen}")


def opened(parts: Watched, folder: Path) -> Tokenizer:
    """An exported tokenizer, read from its folder as any user would."""
    size = parts.task.source.size
    tokenizer = parts.run.autoencoder.tokenizer(folder, size).build(size)
    if isinstance(tokenizer, nn.Module):
        tokenizer.to(parts.device)
    return tokenizer


def overrides(parts: Watched, folder: Path) -> list[str]:
    """What makes a run use the tokenizer that training in `folder` ended in."""
    size = parts.task.source.size
    tokenizer = parts.run.autoencoder.tokenizer(folder / TOKENIZER, size)
    rows = config.differences(type(tokenizer)(), tokenizer)
    chosen = [f"tokenizer.{path}={config.shown(value)}" for path, _, value in rows]
    return [f"tokenizer={registry.entry_of(type(tokenizer)).name}", *chosen]


def export(parts: Watched, folder: Path, seen: int, check: Check) -> None:
    """Write the present weights as a tokenizer, unless they are there."""
    origin = {"run": parts.run.name, "config_hash": digest(parts), "seen": seen}
    origin |= {"weights": parts.autoencoder.weights}
    text = json.dumps(origin, indent=1) + "\n"
    file = folder / ORIGIN
    there = dist.rank() == 0 and file.is_file() and file.read_text(encoding="utf-8") == text
    if not dist.any_flag(there, parts.device):
        parts.autoencoder.export(folder, parts.task.source, parts.run.statistics, check)
        if dist.rank() == 0:
            # Written last: without it the export is done again.
            write_text(file, text)
        dist.barrier()


def measure(parts: Watched, tokenizer: Tokenizer, seen: int, check: Check) -> list[record.Record]:
    """The records of an evaluation; `check` is called between batches."""
    run = parts.run
    subject = Subject(run.name, digest(parts), parts.autoencoder.weights, seen, run.seed)
    return reconstruction.measure(
        tokenizer, parts.task.source, run.evaluation.split, _options(parts), subject, check
    )


def measured(parts: Watched, folder: Path, seen: int) -> bool:
    """Whether records of every metric of a run exist at `seen` images."""
    if not folder.is_dir():
        return False
    mine = [r for r in record.read(folder) if (r.config_hash, r.seen) == (digest(parts), seen)]
    return {r.metric for r in mine} >= set(parts.run.evaluation.metrics)


@torch.no_grad()
def save_picture(parts: Watched, target: Path) -> None:
    """A fixed set of images and their reconstructions as one picture, unless it is there."""
    if dist.rank() == 0 and not target.exists():
        images = _shown(parts)
        tokenizer = preview(parts, 0)
        again = to_uint8(tokenizer.decode(tokenizer.encode(to_float(images))))
        values = psnr(images, again).tolist()
        cells: list[Tensor] = []
        captions: list[str] = []
        for start in range(0, len(images), COLUMNS):
            stop = start + COLUMNS
            cells += [images[start:stop].cpu(), again[start:stop].cpu()]
            captions += ["original"] * len(images[start:stop])
            captions += [f"{value:.1f} dB" for value in values[start:stop]]
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as part:
            grid(torch.cat(cells), captions, COLUMNS).save(part, format="PNG")
    dist.barrier()


def _shown(parts: Watched) -> Tensor:
    """The images of the picture, uint8 [n, 3, H, W]; evenly spaced, so that all classes show."""
    source = parts.task.source
    split = parts.run.evaluation.split if source.count(parts.run.evaluation.split) else "train"
    total = source.count(split)
    # Rows of the picture are full, or the second of a pair would not stand below the first.
    n = max(1, min(SHOWN, total) // COLUMNS) * COLUMNS if total >= COLUMNS else total
    samples = [source.read(split, i * total // n, i * total // n) for i in range(n)]
    return torch.stack([sample.image for sample in samples]).to(parts.device)


def _options(parts: Watched) -> Options:
    wanted = parts.run.evaluation
    return Options(
        metrics=wanted.metrics,
        samples=wanted.samples,
        quantise=wanted.quantise,
        trunk=wanted.trunk,
        device=parts.device,
    )


def _check_metrics(parts: Watched) -> None:
    wanted, source = parts.run.evaluation, parts.task.source
    if not wanted.metrics:
        return
    total = source.count(wanted.split)
    if not total:
        raise MetricError(
            f"the data set has no images in evaluation.split={wanted.split}; choose another, or "
            "leave out evaluation.metrics"
        )
    reconstruction.chosen_metrics(_options(parts), wanted.samples or total, total, wanted.split)


def describe(parts: Watched, folder: Path) -> str:
    """One line on what is about to be trained, where, and how."""
    run, latent = parts.run, parts.autoencoder.spec
    split = f" = {dist.world()} processes" if dist.world() > 1 else ""
    micro = f", at most {run.machine.micro_batch} at once" if run.machine.micro_batch else ""
    count = sum(p.numel() for p in parts.autoencoder.trained().values())
    return (
        f"{run.name}: {count:,} parameters, images of {parts.task.source.size} px in "
        f"{latent.channels}x{latent.height}x{latent.width}; {run.train.images:,} images "
        f"in batches of {run.train.batch}{split}{micro}; "
        f"{run.train.precision} on {parts.device.type}; {folder}"
    )
