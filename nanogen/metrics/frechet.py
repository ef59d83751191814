"""Fréchet distance of Gaussians fitted to the features of a frozen network.

Dowson & Landau 1982; used on Inception features as FID by Heusel et al. 2017 (arXiv 1706.08500),
eq. 6. Only the distance on Inception features is called FID; on any other network it is
`fd-<network>`.

Three choices decide whether two such numbers can be compared: the network, the reference images,
and the number of samples. All three stand in the facts of the score.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from nanogen.errors import MetricError
from nanogen.metrics.base import Metric, Observation, Option, Score
from nanogen.metrics.gaussian import Gaussian, accumulate
from nanogen.metrics.reference import (
    cached_gaussian,
    kept,
    load_encoder,
    real_features,
    with_spectrum,
)
from nanogen.metrics.statistics_file import DATA, Statistics, located
from nanogen.registry import entries, register
from nanogen.store import Prepared


def frechet_distance(generated: Gaussian, reference: Gaussian) -> float:
    """`|m - r|^2 + tr S + tr R - 2 tr (S R)^(1/2)`, at least 0.

    The last trace is computed as the sum of the roots of the eigenvalues of R^(1/2) S R^(1/2),
    which has those of S R but is symmetric: real by construction, unlike a general matrix square
    root. Nothing is added to a diagonal. MetricError where the two are of different features.
    """
    if generated.mean.shape != reference.mean.shape:
        raise MetricError(
            f"the samples have {len(generated.mean)} features and the reference has "
            f"{len(reference.mean)}; choose a reference that was made with the same network"
        )
    product = reference.root @ generated.covariance @ reference.root
    values = torch.linalg.eigvalsh((product + product.T) / 2)
    overlap = values.clamp(min=0).sqrt().sum()
    gap = (generated.mean - reference.mean).square().sum()
    distance = gap + generated.covariance.trace() + reference.covariance.trace() - 2 * overlap
    return max(0.0, distance.item())


def expected_distance(reference: Gaussian, n: int) -> float:
    """What n real images would score against this reference, to first order in 1/n and 1/m.

    A Fréchet distance is biased upwards at small n. With eigenvalues w of the covariance R, the
    mean adds tr R / n and the covariance adds the second-order term of the trace formula under
    Wishart noise, `1/n * sum_ij w_i w_j (1 + [i = j]) / (2 (w_i + w_j))`; for R = I_d that is d/n
    + d(d+1)/(4n). The m images behind the reference add as much with m in place of n, unless m is
    not known.
    """
    w = reference.spectrum.values
    pairs = torch.outer(w, w) / (2 * (w[:, None] + w[None, :])).clamp(min=torch.finfo(w.dtype).tiny)
    bias = (w.sum() + pairs.sum() + pairs.diagonal().sum()).item()
    return bias * (1 / n + (1 / reference.n if reference.n else 0))


def reference_option(default: str, published: Collection[str] = ()) -> Option:
    """The option that names the reference."""
    listed = f"{' or '.join(published)}, " if published else ""
    return Option(
        f"{listed}{DATA} for the training images of the run's data, or the name of statistics that "
        "nanogen prepare stats made",
        default,
    )


class FrechetDistance(Metric):
    """Subclass with a registered encoder and one of its outputs; samples are compared with the
    training images of the data, or with named statistics.
    """

    network: ClassVar[str]
    feature: ClassVar[str] = "pool"
    features: ClassVar[int]
    """how many there are"""
    options = {"reference": reference_option(DATA)}

    @property
    def of_data(self) -> bool:
        return self.chosen["reference"] == DATA

    def check(self, samples: int) -> None:
        """Besides: ConfigError for an unknown reference; MetricError where it is of another
        network, or of too few images: they bias a distance as too few samples do.
        """
        super().check(samples)
        if self.of_data:
            real, least = self.context.source.count("train"), 2 * self.features
        else:
            self._check_statistics()
            real, least = self.statistics.n, 2 * self.features if self.statistics.n else 0
        if real < least:
            raise MetricError(
                f"{self.title} needs {least} real images to compare with, twice its features, and "
                f"has {real}; choose another reference"
            )

    def refuse_unknown(self) -> None:
        """ConfigError where nobody published or made the reference."""
        published = any(asset.name == self.chosen["reference"] for asset in self.assets)
        if not self.of_data and not published:
            located(self.chosen["reference"], self.network)

    def _check_statistics(self) -> None:
        found = len(self.statistics.gaussian(self.feature).mean)
        made_with = self.statistics.network_hash
        seen_by = load_encoder(self.network, self.context.device).fingerprint if made_with else ""
        # Published files do not say it.
        if made_with != seen_by:
            raise MetricError(
                f"{self.title}: its reference was made with {made_with}, samples are seen by "
                f"{seen_by}; make it anew with nanogen prepare stats"
            )
        if found != self.features:
            raise MetricError(
                f"{self.title}: its reference has {found} features, samples have {self.features}; "
                f"choose one that was made with {self.network}"
            )

    @cached_property
    def file(self) -> Prepared:
        """The file of a reference that is not the data."""
        return located(self.chosen["reference"], self.network)

    @cached_property
    def statistics(self) -> Statistics:
        """What is in it."""
        return Statistics.load(self.file.path)

    @cached_property
    def reference(self) -> Gaussian:
        """Of all real images: training images as they are stored, or those behind statistics."""
        if self.of_data:
            return self.of_training_images()
        return with_spectrum(self.statistics.gaussian(self.feature))

    def of_training_images(self) -> Gaussian:
        return cached_gaussian(self.context, self.network, self.feature, "train")

    def described(self) -> dict[str, str | int]:
        """What samples are compared with, as facts of the score."""
        known = {"reference_images": self.reference.n} if self.reference.n else {}
        if self.of_data:
            found = {
                "reference": "train split",
                "reference_hash": self.context.source.fingerprint,
            }
        else:
            found = {
                "reference": self.chosen["reference"],
                "reference_file": self.file.path.name,
                "reference_hash": self.file.sha256,
            }
        return {**found, **known}

    def update(self, seen: Observation) -> None:
        accumulate(self.sums, seen.features(self.network)[self.feature])

    def compute(self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Score]:
        n = int(sums["n"])
        value = frechet_distance(Gaussian.of_sums(sums), self.reference)
        facts = {
            "network": self.network,
            "network_hash": load_encoder(self.network, self.context.device).fingerprint,
            **self.described(),
            "expected_of_real_images": expected_distance(self.reference, n),
        }
        # Resampling images would bias the distance itself: one evaluation has no honest error.
        return {self.name: Score(value, None, n, higher_is_better=False, facts=facts)}


def distances_on(network: str) -> list[str]:
    """The names of the registered metrics that take statistics of features of a network."""
    found = [(entry.name, entry.target) for entry in entries("metric")]
    return [
        name
        for name, target in found
        if issubclass(target, FrechetDistance) and target.network == network
    ]


@register("metric", "fd-animals", summary="Fréchet distance on a small CNN of animals (not FID)")
class FdAnimals(FrechetDistance):
    """On the 128 pooled features of `animals-cnn`.

    At least 256 samples, twice the number of features: with 129 or fewer the covariance is
    singular, and up to about twice that the upward bias is as large as the differences that the
    metric should show. Compare values of the same n only.
    """

    name = "fd-animals"
    version = 1
    task = "class_conditional"
    features = 128
    minimum = 2 * features
    network = "animals-cnn"

    def of_training_images(self) -> Gaussian:
        """As a training draws them, mirrored or not."""
        return kept(self, self._fit)

    def _fit(self) -> Gaussian:
        sums: dict[str, Tensor] = {}
        for batch in real_features(self.context, self.network, "train"):
            accumulate(sums, batch.features[self.feature])
        return Gaussian.of_sums(sums)
