"""Evaluating a run, a folder of images, or real data made worse: one harness, one kind of record.

Nothing here can disturb training: what is drawn is a function of the sampling seed and the weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import chz
import numpy as np
import torch
from torch import Tensor

from nanogen import config, dist, recipes
from nanogen.bench import record
from nanogen.bench.record import Record
from nanogen.data.transforms import centre_crop, decode
from nanogen.errors import ConfigError, DataError
from nanogen.files import whole_file, writable_folder
from nanogen.metrics import harness
from nanogen.metrics.base import Context, Metric
from nanogen.model import parameter_count
from nanogen.run import Parts, Run
from nanogen.run_folder import Opened, open_run
from nanogen.sampling.grid import grid
from nanogen.tasks.base import Task
from nanogen.train.loop import Hooks
from nanogen.train.signals import Check
from nanogen.types import Request

GRID = 40
"""samples of the grid that training draws"""
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def hooks(parts: Parts, folder: Path) -> Hooks:
    """What a training run does at its due moments: a grid of samples, records of its metrics.

    What the folder already holds is not done again. Raises a UserError where data, conditioner or
    metrics do not suit each other: better before training than after it.
    """
    chosen_metrics(parts)
    parts.conditioner.encode(parts.task.batch(np.zeros(1, np.int64)))
    if parts.run.train.sample_every or parts.run.evaluation.metrics:
        parts.conditioner.encode(parts.task.request(0, 1))
        parts.sampler()

    def measure(seen: int, check: Check) -> None:
        done = dist.rank() == 0 and measured(parts.run, folder / "records", seen)
        if not dist.any_flag(done, parts.device):
            write(evaluate(Opened(parts, seen, "ema"), check), folder / "records")

    return Hooks(
        sample=lambda seen: save_grid(parts, folder / "samples" / f"{seen:012d}.png"),
        evaluate=measure,
    )


def measured(run: Run, folder: Path, seen: int) -> bool:
    """Whether records of every metric of a run exist at `seen` images, for its averaged weights."""
    if not folder.is_dir():
        return False
    digest = config.digest(run.identity())
    mine = [r for r in record.read(folder) if (r.config_hash, r.weights) == (digest, "ema")]
    # A metric with several scores names them "metric/part".
    found = {r.metric.partition("/")[0] for r in mine if r.seen == seen}
    return found >= set(run.evaluation.metrics)


def save_grid(parts: Parts, target: Path) -> None:
    """A fixed set of samples as one picture, unless it is there.

    The same seeds at every moment, so that pictures can be compared.
    """
    if dist.rank() == 0 and not target.exists():
        request = parts.task.request(0, GRID)
        images = torch.cat([images.cpu() for _, images in parts.sampler().stream(request)])
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as part:
            grid(images, parts.task.captions(request)).save(part, format="PNG")
    dist.barrier()


def of_run(
    folder: Path, metrics: tuple[str, ...], weights: str, overrides: list[str], out: Path | None
) -> list[Record]:
    """Measure the newest checkpoint of a run folder, with its own metrics unless others are
    named.
    """
    opened = open_run(folder, weights, overrides)
    run = opened.parts.run
    if metrics:
        changed = chz.replace(run, evaluation=chz.replace(run.evaluation, metrics=metrics))
        opened = replace(opened, parts=replace(opened.parts, run=changed))
    elif not run.evaluation.metrics:
        raise ConfigError(
            f"{folder} names no metrics; give some with --metrics (see nanogen ls metrics)"
        )
    target = writable_folder(out or folder / "records")
    return write(evaluate(opened), target)


def chosen_metrics(parts: Parts) -> list[Metric]:
    """The metrics of a run, fresh, checked against its task and its number of samples."""
    wanted = parts.run.evaluation
    context = Context(parts.task.source, parts.device)
    return harness.choose(wanted.metrics, parts.task.kind, wanted.samples, context)


def evaluate(opened: Opened, check: Check = lambda: None) -> list[Record]:
    """Draw the samples of a run's evaluation and measure them; the same records on every process.

    `check` is called before each batch of samples; what it raises ends the evaluation.
    """
    parts, run = opened.parts, opened.parts.run
    started = time.monotonic()
    metrics = chosen_metrics(parts)
    if not metrics:
        return []
    sampler = parts.sampler()
    samples = harness.drawn(sampler, parts.task, run.evaluation.samples, check)
    scores = harness.measure(metrics, samples, Context(parts.task.source, parts.device))
    seconds = round(time.monotonic() - started, 3)
    return [
        Record(
            run=run.name,
            task=parts.task.kind,
            method=run.name.rpartition("/")[2],
            metric=name,
            version=version,
            value=score.value,
            standard_error=score.standard_error,
            n=score.n,
            higher_is_better=score.higher_is_better,
            budget=run.budget,
            weights=opened.weights,
            seen=opened.seen,
            facts=dict(score.facts),
            sampler=sampler.facts(),
            training_seed=run.seed,
            config_hash=config.digest(run.identity()),
            parameters=parameter_count(parts.model),
            device=parts.device.type,
            commit=record.commit(),
            versions=record.versions(),
            seconds=seconds,
        )
        for name, (score, version) in scores.items()
    ]


def write(records: list[Record], folder: Path) -> list[Record]:
    """Write records on the first process; returns them."""
    if dist.rank() == 0:
        for one in records:
            record.write(folder, one)
    dist.barrier()
    return records


def of_images(folder: Path, metrics: Sequence[str], reference: str, out: Path) -> list[Record]:
    """Measure a folder of images against the data of a preset.

    Captions or classes come from the `samples.json` that `nanogen sample` writes, where there is
    one.
    """
    run = recipes.preset(reference)
    task: Task = run.task.build(run.seed)
    files = image_files(folder)
    request = _request_of(folder, files, task)
    names = metrics or run.evaluation.metrics
    context = Context(task.source, torch.device("cpu"))
    chosen = harness.choose(names, task.kind, len(files), context)
    writable_folder(out)
    started = time.monotonic()
    scores = harness.measure(chosen, _loaded(files, request, task.source.size), context)
    records = [
        Record(
            run=str(folder),
            task=task.kind,
            method=folder.name,
            metric=name,
            version=version,
            value=score.value,
            standard_error=score.standard_error,
            n=score.n,
            higher_is_better=score.higher_is_better,
            facts=dict(score.facts),
            commit=record.commit(),
            versions=record.versions(),
            seconds=round(time.monotonic() - started, 3),
        )
        for name, (score, version) in scores.items()
    ]
    return write(records, out)


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, by name; the grid that `nanogen sample` adds is left out."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder of images")
    files = sorted(
        p for p in folder.iterdir() if p.suffix.lower() in IMAGES and p.name != "grid.png"
    )
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(IMAGES)})")
    return files


def _request_of(folder: Path, files: list[Path], task: Task) -> Request:
    indices = torch.arange(len(files))
    try:
        rows = json.loads((folder / "samples.json").read_text(encoding="utf-8"))["samples"]
        captions = {row["file"]: row["caption"] for row in rows}
        texts = [captions[file.name] for file in files]
    except FileNotFoundError:
        return Request(indices)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / 'samples.json'} does not describe these images: {error!r}"
        ) from None
    classes = task.source.classes
    if task.kind == "class_conditional" and all(text in classes for text in texts):
        return Request(indices, labels=torch.tensor([classes.index(text) for text in texts]))
    return Request(indices, texts=tuple(texts))


def _loaded(
    files: list[Path], request: Request, size: int, batch: int = 100
) -> Iterator[tuple[Request, Tensor]]:
    for start in range(0, len(files), batch):
        images = [
            centre_crop(decode(file.read_bytes(), str(file)), size)
            for file in files[start : start + batch]
        ]
        yield request.rows(start, start + batch), torch.stack(images)
