"""What the metrics say of images whose quality is known: real ones, and real ones made worse.

A metric that does not put these rows in order measures something else.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogen import rng
from nanogen.bench import record
from nanogen.bench.record import Record
from nanogen.bench.table import Cell, Column, Table
from nanogen.metrics import harness
from nanogen.metrics.base import Context
from nanogen.metrics.harness import Work
from nanogen.run import Run
from nanogen.tasks.base import Task, collate
from nanogen.types import Request, to_float, to_uint8

SPLIT = "held-out"

Pair = tuple[Request, Tensor]
Change = Callable[[Request, Tensor], Pair]


def blurred(images: Tensor, std: float) -> Tensor:
    """uint8 [B, 3, H, W] after a Gaussian of `std` pixels, edges mirrored."""
    radius = round(3 * std)
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    line = torch.exp(-(x**2) / (2 * std**2))
    line = (line / line.sum()).expand(3, 1, 1, -1)
    padded = F.pad(to_float(images), (radius,) * 4, mode="reflect")
    return to_uint8(F.conv2d(F.conv2d(padded, line, groups=3), line.mT, groups=3))


def _blur(std: float) -> Change:
    return lambda request, images: (request, blurred(images, std))


def _speckled(request: Request, images: Tensor) -> Pair:
    """Gaussian noise with a standard deviation of 0.1, images in [0, 1]."""
    noise = rng.normal(0, "sanity", request.indices, tuple(images.shape[1:]))
    return request, to_uint8(to_float(images) + 0.1 * noise)


def _noise(request: Request, images: Tensor) -> Pair:
    """Uniform noise and nothing else."""
    count = images[0].numel()
    return request, to_uint8(rng.uniform(0, "sanity", request.indices, count).view_as(images))


def _shuffled(request: Request, images: Tensor) -> Pair:
    """Each image is judged by a request from half a batch away."""
    half = len(request) // 2
    labels = None if request.labels is None else request.labels.roll(half)
    texts = None if request.texts is None else (*request.texts[half:], *request.texts[:half])
    return dataclasses.replace(request, labels=labels, texts=texts), images


ROWS: dict[str, Change] = {
    "real, held out": lambda request, images: (request, images),
    "blurred by 1 pixel": _blur(1.0),
    "blurred by 1.5 pixels": _blur(1.5),
    "noise of 0.1 added": _speckled,
    "requests shuffled": _shuffled,
    "uniform noise": _noise,
}


def measure(run: Run, folder: Path) -> list[Record]:
    """Records of every row on the data of a run, with its metrics; rows measured before are read
    again.
    """
    target = folder / run.task.data.__class__.__name__.lower()
    if target.is_dir():
        known = record.read(target)
        wanted = {(row, metric) for row in ROWS for metric in run.evaluation.metrics}
        if {(r.method, r.metric.partition("/")[0]) for r in known} >= wanted:
            return known
    task: Task = run.task.build(run.seed)
    context = Context(task.source, torch.device("cpu"))
    count = min(run.evaluation.samples, task.source.count(SPLIT))
    records = []
    for name, change in ROWS.items():
        metrics = harness.choose(run.evaluation.metrics, context)
        harness.fits(metrics, task.kind, count)
        work = Work(count, count, functools.partial(_changed, task, count, change))
        for metric, measured in harness.measure(metrics, work, context).items():
            score = measured.score
            one = Record(
                run=f"{run.name.partition('/')[0]}: {name}",
                task=task.kind,
                method=name,
                metric=metric,
                version=measured.version,
                value=score.value,
                standard_error=score.standard_error,
                n=score.n,
                higher_is_better=score.higher_is_better,
                facts=dict(score.facts),
                commit=record.commit(),
                versions=record.versions(),
                known=True,
            )
            record.write(target, one)
            records.append(one)
    return records


def table(records: list[Record], title: str) -> Table:
    """Rows of `ROWS` by metrics."""
    metrics = list(dict.fromkeys(r.metric for r in records))
    found = {(r.method, r.metric): r for r in records}
    directions = {r.metric: r.higher_is_better for r in records}
    rows = tuple(
        (
            Cell(name),
            *(
                Cell(r.value, r.standard_error) if (r := found.get((name, m))) else Cell()
                for m in metrics
            ),
        )
        for name in ROWS
    )
    return Table(
        title,
        (Column("images"), *(Column(m, higher_is_better=directions[m]) for m in metrics)),
        rows,
    )


def _changed(task: Task, count: int, change: Change, start: int, stop: int) -> Iterator[Pair]:
    """All of them, in one block: `start` is 0 and `stop` the count."""
    return (change(*batch) for batch in _real(task, count))


def _real(task: Task, count: int, batch: int = 100) -> Iterator[Pair]:
    """Held-out images with the requests that they fulfil, evenly spaced over the split.

    Each batch is too, so that half a batch away is another class however the data are stored.
    """
    total, batches = task.source.count(SPLIT), -(-count // batch)
    for first in range(batches):
        numbers = torch.arange(first, count, batches)
        samples = [task.source.read(SPLIT, int(i) * total // count, int(i)) for i in numbers]
        real = collate(samples, numbers)
        texts = real.texts if task.kind == "text_to_image" else None
        labels = real.labels if task.kind == "class_conditional" else None
        yield Request(numbers, labels, texts), to_uint8(real.images)
