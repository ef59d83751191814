"""The one evaluation harness: images in, scores out. Training, `nanogen eval` and benchmarks all
use it.

Each process draws and measures its own share of the samples. What crosses processes are sums of
float64 and, for the metrics that need them, rows of features: never images.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from nanogen import dist, registry
from nanogen.errors import MetricError
from nanogen.metrics.base import Context, Metric, Observation, Score
from nanogen.metrics.reference import load_encoder
from nanogen.sampling.generate import Sampler
from nanogen.tasks.base import Task
from nanogen.types import Request

Scores = dict[str, tuple[Score, int]]
"""score name -> (score, version of its metric)"""


def choose(names: Sequence[str], kind: str, samples: int, context: Context) -> list[Metric]:
    """The named metrics, checked against the task's kind and the number of samples."""
    if names and samples < dist.world():
        # A process without a sample has no sums to add: the others would wait for it.
        raise MetricError(
            f"{samples} samples give {dist.world()} processes less than one each; "
            "raise evaluation.samples or start fewer"
        )
    chosen = []
    for name in names:
        target = cast(type[Metric], registry.get("metric", name))
        if target.task not in (kind, "any"):
            raise MetricError(
                f"metric {name} is for {target.task} tasks, this one is {kind}; leave it out"
            )
        if samples < target.minimum:
            raise MetricError(
                f"metric {name} needs at least {target.minimum} samples, not {samples}; "
                "ask for more"
            )
        chosen.append(target(context))
    return chosen


def measure(
    metrics: Sequence[Metric], batches: Iterable[tuple[Request, Tensor]], context: Context
) -> Scores:
    """Scores of all metrics over all processes.

    `batches` are this process's requests with their images, uint8 [B, 3, H, W].
    """
    networks = functools.partial(load_encoder, device=context.device)
    indices: list[Tensor] = []
    for request, images in batches:
        seen = Observation(images, request, networks)
        indices.append(request.indices)
        for metric in metrics:
            metric.update(seen)
    if not indices:
        raise MetricError("there are no samples to measure; draw at least one")
    order = dist.gather_rows(torch.cat(indices)).argsort(stable=True)
    scores: Scores = {}
    for metric in metrics:
        sums = dist.sum_across(metric.sums)
        rows = {
            name: dist.gather_rows(torch.cat(parts))[order]
            for name, parts in sorted(metric.rows.items())
        }
        scores |= {
            name: (score, metric.version) for name, score in metric.compute(sums, rows).items()
        }
    return scores


def drawn(
    sampler: Sampler, task: Task, samples: int, check: Callable[[], None]
) -> Iterator[tuple[Request, Tensor]]:
    """This process's share of samples 0 .. `samples` of a task's evaluation, batch by batch.

    `check` is called before each batch, equally often on every process: it may be collective.
    """
    rank, world = dist.rank(), dist.world()
    request = task.request(samples * rank // world, samples * (rank + 1) // world)
    batches = sampler.stream(request)
    largest_share = -(-samples // world)
    for _ in range(-(-largest_share // sampler.sampling.batch)):
        check()
        yield from itertools.islice(batches, 1)
