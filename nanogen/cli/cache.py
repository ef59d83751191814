"""`nanogen cache`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogen.cli.options import Out, Overrides

if TYPE_CHECKING:
    import torch

    from nanogen.cache.manifest import Plan
    from nanogen.cache.write_latents import LatentJob
    from nanogen.data.base import Source
    from nanogen.types import Tokenizer

SHOWN_EVERY = 10.0
"""seconds between two lines on how far it is"""


def main(
    name: Annotated[
        str, typer.Argument(help="A preset, a run folder, a tokenizer, or the folder of one.")
    ],
    overrides: Overrides = None,
    data: Annotated[
        str | None, typer.Option(help="With a tokenizer: animals, folder ...; animals if left out.")
    ] = None,
    path: Annotated[Path | None, typer.Option(help="Where the images of --data are.")] = None,
    size: Annotated[int | None, typer.Option(help="Pixels a side of these images.")] = None,
    out: Out = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16 or bf16; train.raw_precision of the run if left out."),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Store text features instead of latents.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Images read at once.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images ahead.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")] = (
        "auto"
    ),
) -> None:
    """Store the latents of a training set, or with --text the features of its captions, so that
    training need not encode them. The same command again goes on where it ended.
    """
    import torch

    from nanogen import config, dist
    from nanogen.cache.write_latents import LatentJob
    from nanogen.errors import ConfigError
    from nanogen.run import pick_device
    from nanogen.tokenizers.raw import PRECISIONS

    subject = _subject(name, overrides or [], data, path, size)
    kept: Any = precision or subject.precision
    if kept not in PRECISIONS:
        raise ConfigError(f"--precision {kept}: choose one of {', '.join(PRECISIONS)}")
    if text and precision is not None:
        raise ConfigError("--precision is of latents; text features keep that of their encoder")
    place = pick_device(device)
    torch.set_num_threads(subject.threads)
    with dist.processes(place):
        source = subject.source()
        tokenizer = subject.tokenizer.build(source.size)
        folder = out or Path("caches") / default_name(subject.tokenizer, tokenizer, source, kept)
        if text:
            _store_texts(subject, source, folder, place)
        else:
            about = config.dump(subject.tokenizer)
            _store_latents(LatentJob(tokenizer, source, kept, place, batch, workers, about), folder)
        if dist.rank() == 0:
            other = f" train.raw_precision={kept}" if kept != subject.precision else ""
            print(f"done; train from it with: machine.cache={folder}{other * (not text)}")


def _store_latents(job: LatentJob, folder: Path) -> None:
    import torch

    from nanogen.cache import latents
    from nanogen.cache.write_latents import plan_latents, write_latents

    if isinstance(job.tokenizer, torch.nn.Module):
        job.tokenizer.to(job.device)
    plan, show = plan_latents(job), _Progress(folder)
    show.plan(plan, plan.items * plan.variants * plan.record_bytes)
    write_latents(job, plan, folder / latents.FOLDER, show)


def _store_texts(subject: _Subject, source: Source, folder: Path, device: torch.device) -> None:
    import torch

    from nanogen import config
    from nanogen.cache import texts
    from nanogen.cache.write_texts import TextJob, plan_texts, write_texts
    from nanogen.conditioners.features import TextEncoder
    from nanogen.errors import ConfigError

    conditioner = subject.conditioner and subject.conditioner.build(source)
    if not isinstance(conditioner, TextEncoder):
        raise ConfigError(
            "--text stores the features of a frozen text encoder, but there is none; name a run "
            "with conditioner=hf-text or minilm"
        )
    if isinstance(conditioner, torch.nn.Module):
        conditioner.to(device)
    job = TextJob(conditioner, source, device, config.dump(subject.conditioner))
    work, show = plan_texts(job), _Progress(folder)
    show.plan(work.plan, work.expected_bytes)
    write_texts(job, work, folder / texts.FOLDER, show)


@dataclass(frozen=True)
class _Subject:
    """What is encoded, not built yet."""

    tokenizer: Any
    source: Callable[[], Source]
    """opens the data, as training sees them"""
    conditioner: Any = None
    precision: str = "fp32"
    threads: int = 1


def _subject(
    name: str, overrides: list[str], data: str | None, path: Path | None, size: int | None
) -> _Subject:
    from nanogen import config, registry
    from nanogen.cli.choose import run_or_preset
    from nanogen.cli.choose_tokenizer import chosen, exported
    from nanogen.errors import ConfigError

    if name in [entry.name for entry in registry.entries("tokenizer")] or exported(name):
        choice = chosen(name, overrides, data, path, size)
        return _Subject(choice.tokenizer, choice.data.build)
    for option, value, field in (
        ("--data", data, "task.data"),
        ("--path", path, "task.data.path"),
        ("--size", size, "task.data.size"),
    ):
        if value is not None:
            raise ConfigError(f"{option} goes with a tokenizer; of a run, set {field}={value}")
    run = config.override(run_or_preset(name), overrides)
    return _Subject(
        run.tokenizer,
        # A task may see its data in a way of its own.
        lambda: run.task.build(run.seed).source,
        run.conditioner,
        run.train.raw_precision,
        run.machine.threads,
    )


def default_name(chosen: object, tokenizer: Tokenizer, source: Source, precision: str) -> str:
    """A folder name that follows from the tokenizer and the data by their fingerprints."""
    from nanogen import registry

    def short(fingerprint: str) -> str:
        return hashlib.sha256(fingerprint.encode()).hexdigest()[:8]

    word = registry.entry_of(type(chosen)).name
    return f"{word}-{short(tokenizer.raw_fingerprint)}-{short(source.fingerprint)}-{precision}"


class _Progress:
    """Lines of the first process: the size before, and how far it is every few seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, time.monotonic()
        self.shown = self.started

    def plan(self, plan: Plan, expected: int) -> None:
        from nanogen import dist
        from nanogen.cache.manifest import shown_bytes

        if plan.content == "text":
            what = f"features of {plan.items:,} captions"
        else:
            views = f" in {plan.variants} variants" if plan.variants > 1 else ""
            shape = "x".join(map(str, plan.shape))
            what = f"{shape} latents of {plan.items:,} images{views}"
        if dist.rank() == 0:
            size = f"about {shown_bytes(expected)} in {plan.shards} shards"
            print(f"{self.folder}: {what}, {plan.precision}; {size}", flush=True)

    def __call__(self, done: int, total: int) -> None:
        from nanogen import dist

        now = time.monotonic()
        if dist.rank() == 0 and (now - self.shown > SHOWN_EVERY):
            self.shown = now
            left = (now - self.started) / done * (total - done)
            print(f"{done:,} of {total:,}, {left / 60:.0f} min left", flush=True)
