"""What the latent spaces of a benchmark keep of its images: scores, and pictures side by side.

A diffusion model cannot draw what its tokenizer loses, so these rows bound those of the models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nanogen import reconstruction, registry
from nanogen.bench import record
from nanogen.bench.record import Record
from nanogen.bench.report import Grid, Picture
from nanogen.bench.table import Cell, Column, Table
from nanogen.data.animals import Animals
from nanogen.data.base import Source
from nanogen.metrics.pairs import RfdAnimals
from nanogen.metrics.similarity import quantised
from nanogen.reconstruction import Options, Subject
from nanogen.run import Run
from nanogen.sampling.grid import picture
from nanogen.types import Tokenizer, to_float

SPLIT = "held-out"
SAMPLES = 500
SHOWN = 12
"""images side by side on the page"""
GAP = 2
"""white pixels between an image and its reconstructions"""


def task_of(run: Run) -> str:
    return run.name.partition("/")[0]


def name_of(run: Run) -> str:
    """Registered name of a run's tokenizer."""
    return registry.entry_of(type(run.tokenizer)).name


def latent_runs(runs: Sequence[Run]) -> list[Run]:
    """The first run of each task in each space that is not pixels."""
    found = {(task_of(run), name_of(run)): run for run in reversed(runs)}
    return [run for (_, name), run in sorted(found.items()) if name != "pixels"]


def measure(run: Run, folder: Path) -> list[Record]:
    """Records of a run's tokenizer on held-out images; what `folder` holds of it is read again."""
    source: Source = run.task.data.build()
    tokenizer: Tokenizer = run.tokenizer.build(source.size)
    target = folder / f"{task_of(run)}-{name_of(run)}"
    metrics = ("psnr", "ssim", *((RfdAnimals.name,) if isinstance(run.task.data, Animals) else ()))
    if target.is_dir():
        known = [r for r in record.read(target) if r.facts["tokenizer"] == tokenizer.fingerprint]
        if {r.metric for r in known} >= set(metrics):
            return known
    samples = min(SAMPLES, source.count(SPLIT))
    options, subject = Options(metrics, samples), Subject(name_of(run))
    records = reconstruction.measure(tokenizer, source, SPLIT, options, subject)
    # The same tokenizer on other images is another row.
    found = [dataclasses.replace(r, task=f"{r.task}: {task_of(run)}") for r in records]
    for one in found:
        record.write(target, one)
    return found


def table(records: Sequence[Record], title: str) -> Table:
    """A row for each tokenizer, a column for each score."""
    metrics = {r.metric: r.higher_is_better for r in records}
    found = {(r.method, r.metric): r for r in records}
    rows = []
    for name in dict.fromkeys(r.method for r in records):
        mine = [r for r in records if r.method == name]
        latent = " x ".join(map(str, mine[0].facts["latent"]))  # ty: ignore[invalid-argument-type]
        scores = [found.get((name, metric)) for metric in metrics]
        cells = (Cell() if r is None else Cell(r.value, r.standard_error) for r in scores)
        rows.append((Cell(name), Cell(latent), Cell(f"{mine[0].parameters:,}"), *cells))
    return Table(
        title,
        (
            *(Column("tokenizer"), Column("latent"), Column("parameters")),
            *(Column(m, higher_is_better=higher) for m, higher in metrics.items()),
        ),
        tuple(rows),
    ).with_best()


@torch.no_grad()
def pictures(runs: Sequence[Run], records: Sequence[Record]) -> Grid:
    """Held-out images of one task, each beside what every tokenizer made of it."""
    source: Source = runs[0].task.data.build()
    total = source.count(SPLIT)
    numbers = [i * total // SHOWN for i in range(SHOWN)]
    samples = [source.read(SPLIT, number, number) for number in numbers]
    images = torch.stack([sample.image for sample in samples])
    columns = [images]
    for run in runs:
        tokenizer = run.tokenizer.build(source.size)
        again = tokenizer.decode(tokenizer.encode(to_float(images), torch.tensor(numbers)))
        columns.append(quantised(again, "round"))
    captions = [sample.text or source.classes[sample.label or 0] for sample in samples]
    scores = {r.method: r.value for r in records if r.metric == "psnr"}
    names = [f"{name_of(run)} ({scores[name_of(run)]:.1f} dB)" for run in runs]
    return Grid(
        f"Reconstructions: {task_of(runs[0])}",
        tuple(
            Picture(picture(_beside(row)), caption)
            for row, caption in zip(zip(*columns, strict=True), captions, strict=True)
        ),
        f"Held-out images, evenly spaced, not chosen: original, {', '.join(names)}.",
        wide=True,
    )


def _beside(images: Sequence[Tensor]) -> Tensor:
    """uint8 [3, H, W] each as one picture, [3, H, n W + gaps]."""
    gap = images[0].new_full((3, images[0].shape[1], GAP), 255)
    parts = [part for image in images for part in (gap, image)]
    return torch.cat(parts[1:], dim=2)
