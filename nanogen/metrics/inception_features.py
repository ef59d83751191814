"""Metrics that need the pooled Inception features of every sample and of real images: KID and
precision and recall.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from nanogen.encoders.inception import NAME, WEIGHTS
from nanogen.errors import MetricError
from nanogen.metrics.base import Context, Metric, Observation, Option
from nanogen.metrics.image_array import ImageArray
from nanogen.metrics.reference import cached_features, load_encoder
from nanogen.metrics.statistics_file import ADM_IN256, DATA
from nanogen.store import find

FEATURE = "pool"
ARCHIVE = "held-out"
"""what the images of an archive are called as a split"""


class InceptionFeatures(Metric):
    """Subclass with how many real images there should be, and `compute` of `rows["features"]`, the
    samples, and `reference`, the real images.
    """

    version = 1
    task = "any"
    network = NAME
    assets = (WEIGHTS, ADM_IN256)
    options = {
        "reference": Option(
            f"{DATA}: training images of the run's data, evenly spaced; {ADM_IN256.name}: the "
            "10,000 images of ADM's reference batch",
            DATA,
            (DATA, ADM_IN256.name),
        )
    }
    real_images: ClassVar[int]
    """most training images that are taken"""
    least_real_images: ClassVar[int]

    def __init__(self, context: Context, chosen: Mapping[str, str] | None = None) -> None:
        super().__init__(context, chosen)
        self.assets = (WEIGHTS,) if self.of_data else (WEIGHTS, ADM_IN256)

    @property
    def of_data(self) -> bool:
        return self.chosen["reference"] == DATA

    def check(self, samples: int) -> None:
        """Besides: MetricError where there are too few real images."""
        super().check(samples)
        if self.of_data and (found := self.context.source.count("train")) < self.least_real_images:
            raise MetricError(
                f"{self.title} needs {self.least_real_images} training images to compare with, the "
                f"data set has {found}; choose reference={ADM_IN256.name}, or another metric"
            )

    @cached_property
    def reference(self) -> Tensor:
        """float32 [m, 2048]: features of the real images."""
        if self.of_data:
            return cached_features(self.context, self.network, FEATURE, "train", self.real_images)
        prepared = find(ADM_IN256)
        images = ImageArray(prepared.path, prepared.sha256, ARCHIVE)
        context = dataclasses.replace(self.context, source=images)
        return cached_features(context, self.network, FEATURE, ARCHIVE)

    def described(self) -> dict[str, str | int]:
        """Network and reference, as facts of a score."""
        if self.of_data:
            name, digest = "train split, evenly spaced", self.context.source.fingerprint
        else:
            name, digest = ADM_IN256.name, find(ADM_IN256).sha256
        return {
            "network": self.network,
            "network_hash": load_encoder(self.network, self.context.device).fingerprint,
            "reference": name,
            "reference_hash": digest,
            "reference_images": len(self.reference),
        }

    def update(self, seen: Observation) -> None:
        features = seen.features(self.network)[FEATURE].detach().float().cpu()
        self.rows.setdefault("features", []).append(features)
