"""Scores of batches that are at hand, in the order in which they are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nanogen.metrics import harness
from nanogen.metrics.base import Context, Metric
from nanogen.metrics.harness import Scores, Work
from nanogen.types import Request


def measured(
    metrics: Sequence[Metric], batches: Sequence[tuple[Request, Tensor]], context: Context
) -> Scores:
    """One block of all batches, whatever their order and size."""
    count = sum(len(request) for request, _ in batches)
    work = Work(max(count, 1), max(count, 1), lambda start, stop: iter(batches))
    return harness.measure(metrics, work, context)
