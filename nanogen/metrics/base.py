"""What a metric is: sums over samples, and a function of the sums.

The harness shows every metric each batch of samples once, adds `sums` over processes, and asks for
the scores. Images are never gathered. The few metrics that need every sample (precision and
recall, the splits of an inception score) keep `rows` of features, which the harness gathers in the
order of the sample indices. So no score depends on batch size, order, or the number of processes.

A metric is registered as a class with a `Metric` interface; its constructor takes a `Context`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from nanogen.data.base import Source
from nanogen.types import Request

Features = Mapping[str, Tensor]


@dataclass(frozen=True)
class Context:
    """What a metric may need to build its references: the real data, and where to compute."""

    source: Source
    device: torch.device
    batch: int = 256
    """images that go through a feature network at once; changes speed and memory only"""


class Observation:
    """One batch of samples, with the features of each network computed once however many metrics
    ask.
    """

    def __init__(
        self,
        images: Tensor,
        request: Request,
        networks: Callable[[str], Callable[[Tensor], Features]],
    ):
        """`images` uint8 [B, 3, H, W]; `networks(name)` is an encoder that maps such images to
        features.
        """
        self.images = images
        self.request = request
        self._networks = networks
        self._features: dict[str, Features] = {}

    def features(self, network: str) -> Features:
        """Features of a registered encoder: name -> [B, ...]."""
        if network not in self._features:
            self._features[network] = self._networks(network)(self.images)
        return self._features[network]


@dataclass(frozen=True)
class Score:
    """One number of a metric. `standard_error` is None where no honest one exists (one seed of a
    distance).
    """

    value: float
    standard_error: float | None
    n: int
    """samples behind the value"""
    higher_is_better: bool
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    """what a reader must know beside the value: reference, its hash, the checker's own accuracy
    ...
    """


class Metric(ABC):
    """Subclass, register with `@register("metric", name, summary=...)`, and implement three
    methods.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """raised whenever the same images would get another value"""
    task: ClassVar[str]
    """"class_conditional", "text_to_image" or "any\""""
    minimum: ClassVar[int] = 1
    """fewest samples for which the value means anything; fewer are refused"""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.sums: dict[str, Tensor] = {}
        """float64 tensors, added over processes"""
        self.rows: dict[str, list[Tensor]] = {}
        """per-sample tensors [B, ...], gathered over processes and ordered by sample index"""

    @cached_property
    def reference(self) -> Any:
        """What samples are compared with; built on first use."""
        return None

    @abstractmethod
    def update(self, seen: Observation) -> None:
        """Add one batch to `sums` and `rows`."""

    @abstractmethod
    def compute(self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Score]:
        """Scores by name from the totals over all processes: the metric's own name, and any parts
        `name/part`.
        """

    def add(self, name: str, amount: Tensor) -> None:
        """Add a float64 amount to a sum."""
        amount = amount.detach().to("cpu", torch.float64)
        self.sums[name] = self.sums[name] + amount if name in self.sums else amount
