"""Features of real images: what generated ones are compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from nanogen import registry
from nanogen.errors import MetricError
from nanogen.metrics.base import Context, Metric


@dataclass(frozen=True)
class RealFeatures:
    """Features of one batch of real images."""

    features: Mapping[str, Tensor]
    """name -> [B, ...], on the device of the context"""
    labels: Tensor | None
    """int64 [B] on the CPU, None where images have no label"""


T = TypeVar("T")
_kept: dict[tuple[object, ...], Any] = {}


class Encoder(Protocol):
    """A registered feature network: frozen, made without arguments."""

    fingerprint: str
    """changes whenever any feature changes"""
    classes: tuple[str, ...]
    """of its logits, in their order; empty where it is no classifier"""

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """uint8 [B, 3, H, W] to features by name, [B, ...] each."""
        ...


@functools.cache
def load_encoder(name: str, device: torch.device) -> Encoder:
    """The registered encoder `name` on a device, loaded once: uint8 images to features."""
    network = registry.get("network", name)()
    return network.to(device) if isinstance(network, torch.nn.Module) else network


def reference_facts(context: Context, network: str) -> dict[str, str]:
    """What decides whether two values of a metric can be compared, as facts of its score."""
    return {
        "network": network,
        "network_hash": load_encoder(network, context.device).fingerprint,
        "reference_hash": context.source.fingerprint,
    }


def kept(metric: Metric, build: Callable[[], T]) -> T:
    """What `build` returns, built once a process: a run is evaluated often, its references stay."""
    key = (type(metric), metric.context.source.fingerprint, metric.context.device)
    if key not in _kept:
        _kept[key] = build()
    return _kept[key]


def real_features(
    context: Context, network: str, split: str, most: int | None = None
) -> Iterator[RealFeatures]:
    """Features of a split in stored order, batch by batch; `most` takes that many, evenly spaced.

    Even spacing keeps the shares of the classes whatever the order in which the data are stored.
    Raises MetricError where the data set has no such split.
    """
    total = context.source.count(split)
    if total == 0:
        raise MetricError(f"the data set has no {split} split; choose another metric")
    count = min(total, most or total)
    indices = [i * total // count for i in range(count)]
    encoder = load_encoder(network, context.device)
    for start in range(0, count, context.batch):
        samples = [context.source.read(split, i, i) for i in indices[start : start + context.batch]]
        images = torch.stack([s.image for s in samples]).to(context.device)
        labels = [s.label for s in samples if s.label is not None]
        with torch.no_grad():
            features = encoder(images)
        yield RealFeatures(features, torch.tensor(labels) if len(labels) == len(samples) else None)
