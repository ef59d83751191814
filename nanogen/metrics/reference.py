"""Features of real images: what generated ones are compared with.

    cached_features(context, "inception-2015", "pool", "train", most=10_000)    # [10000, 2048]
    cached_gaussian(context, "inception-2015", "pool", "train")                 # of all images

Both are computed once for each network and data set, and kept on disk (`feature_cache.py`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from nanogen import registry
from nanogen.data.base import as_stored
from nanogen.errors import MetricError
from nanogen.fingerprint import digest_of
from nanogen.metrics.base import Context, Metric
from nanogen.metrics.blocks import Kept, Share, Tallies, blocks
from nanogen.metrics.feature_cache import stored
from nanogen.metrics.gaussian import Gaussian, Spectrum, accumulate


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


def cached_features(
    context: Context, network: str, feature: str, split: str, most: int | None = None
) -> Tensor:
    """float32 [n, d]: one output of a registered network for the images of a split as they are
    stored; `most` takes that many, evenly spaced.

    Every process calls it: each extracts its share. Raises MetricError where the data set has no
    such split.
    """
    places = _places(context, split, most)
    key = _key(context, network, feature, split, len(places))

    def build() -> dict[str, Tensor]:
        total = _extracted(
            context,
            network,
            places,
            split,
            lambda tallies, features: tallies.rows.setdefault("features", []).append(
                features[feature].float().cpu().flatten(1)
            ),
        )
        return {"features": torch.cat(total.rows["features"])}

    return stored("features", key, build)["features"]


def cached_gaussian(context: Context, network: str, feature: str, split: str) -> Gaussian:
    """Mean and covariance of one output of a registered network over all images of a split as they
    are stored, with the spectrum that distances need.

    Every process calls it: each extracts its share. Raises MetricError where the data set has no
    such split.
    """
    places = _places(context, split, None)
    key = _key(context, network, feature, split, len(places))
    memory = ("gaussian", *key.items())

    def build() -> dict[str, Tensor]:
        total = _extracted(
            context,
            network,
            places,
            split,
            lambda tallies, features: accumulate(tallies.sums, features[feature].flatten(1)),
        )
        fitted = Gaussian.of_sums(total.sums)
        return {"mean": fitted.mean, "covariance": fitted.covariance}

    if memory not in _kept:
        found = stored("gaussian", key, build)
        fitted = Gaussian(found["mean"], found["covariance"], len(places))
        _kept[memory] = with_spectrum(fitted)
    return _kept[memory]


def with_spectrum(gaussian: Gaussian) -> Gaussian:
    """The same Gaussian, whose spectrum was computed once for ever: it is kept on disk.

    Every process calls it.
    """
    key = {"covariance": digest_of({"covariance": gaussian.covariance})}

    def build() -> dict[str, Tensor]:
        return {"values": gaussian.spectrum.values, "root": gaussian.spectrum.root}

    found = stored("spectrum", key, build)
    return dataclasses.replace(gaussian, known=Spectrum(found["values"], found["root"]))


def _key(
    context: Context, network: str, feature: str, split: str, count: int
) -> dict[str, str | int]:
    """Everything that decides features of real images. Devices round differently: each has its own,
    so that a feature of one is never compared with those of another.
    """
    return {
        "network": network,
        "network_hash": load_encoder(network, context.device).fingerprint,
        "feature": feature,
        "data": context.source.fingerprint,
        "split": split,
        "count": count,
        "device": context.device.type,
    }


def _extracted(
    context: Context,
    network: str,
    places: Sequence[int],
    split: str,
    take: Callable[[Tallies, Mapping[str, Tensor]], None],
) -> Tallies:
    """What `take` adds to tallies of features, over all images in their order; as in the harness,
    its bits do not depend on the number of processes.
    """
    encoder = load_encoder(network, context.device)
    cut = blocks(len(places), context.batch)
    share = Share(len(cut), Kept(None))
    for number in share.numbers:
        tallies = Tallies()
        for start in range(cut[number].start, cut[number].stop, context.batch):
            part = places[start : min(start + context.batch, cut[number].stop)]
            images = torch.stack([as_stored(context.source, split, place) for place in part])
            with torch.no_grad():
                take(tallies, encoder(images.to(context.device)))
        share.add(number, tallies)
    return share.total()


def _places(context: Context, split: str, most: int | None) -> list[int]:
    """The images of a split, or `most` of them. Even spacing keeps the shares of the classes
    whatever the order in which the data are stored.
    """
    total = context.source.count(split)
    if total == 0:
        raise MetricError(f"the data set has no {split} split; choose another metric")
    count = min(total, most or total)
    return [i * total // count for i in range(count)]


def real_features(
    context: Context, network: str, split: str, most: int | None = None
) -> Iterator[RealFeatures]:
    """Features of a split in stored order, batch by batch, as a training draws its images; `most`
    takes that many, evenly spaced.

    Raises MetricError where the data set has no such split.
    """
    indices = _places(context, split, most)
    encoder = load_encoder(network, context.device)
    for start in range(0, len(indices), context.batch):
        samples = [context.source.read(split, i, i) for i in indices[start : start + context.batch]]
        images = torch.stack([s.image for s in samples]).to(context.device)
        labels = [s.label for s in samples if s.label is not None]
        with torch.no_grad():
            features = encoder(images)
        yield RealFeatures(features, torch.tensor(labels) if len(labels) == len(samples) else None)
