"""Fréchet distance of Gaussians fitted to the features of a frozen network.

Dowson & Landau 1982; used on Inception features as FID by Heusel et al. 2017 (arXiv 1706.08500),
eq. 6. Only the distance on Inception features is called FID; on any other network it is
`fd-<network>`.

Three choices decide whether two such numbers can be compared: the network, the reference images,
and the number of samples. All three stand in the facts of the score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from nanogen.errors import MetricError
from nanogen.metrics.base import Metric, Observation, Score
from nanogen.metrics.reference import kept, real_features, reference_facts
from nanogen.registry import register


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean and covariance of n feature vectors, in float64 on the CPU."""

    mean: Tensor
    """[d]"""
    covariance: Tensor
    """[d, d], unbiased (divided by n - 1)"""
    n: int

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        """The Gaussian of features [n, d]."""
        features = features.to("cpu", torch.float64)
        return cls.from_sums(len(features), features.sum(0), features.T @ features)

    @classmethod
    def from_sums(cls, n: int, total: Tensor, outer: Tensor) -> Gaussian:
        """From sum x [d] and sum x x^T [d, d] over n >= 2 vectors, both float64.

        Float64 is what makes the one-pass formula safe: with float32 features far from zero the
        difference below would lose all its digits.
        """
        if n < 2:
            raise MetricError(f"a covariance needs at least 2 samples, has {n}; draw more samples")
        mean = total / n
        return cls(mean, (outer - n * torch.outer(mean, mean)) / (n - 1), n)

    @cached_property
    def root(self) -> Tensor:
        """[d, d]: the symmetric square root of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(generated: Gaussian, reference: Gaussian) -> float:
    """`|m - r|^2 + tr S + tr R - 2 tr (S R)^(1/2)`, at least 0.

    The last trace is computed as the sum of the roots of the eigenvalues of R^(1/2) S R^(1/2),
    which has those of S R but is symmetric: real by construction, unlike a general matrix square
    root.
    """
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
    + d(d+1)/(4n). The m images behind the reference add as much with m in place of n.
    """
    w = torch.linalg.eigvalsh(reference.covariance).clamp(min=0)
    pairs = torch.outer(w, w) / (2 * (w[:, None] + w[None, :])).clamp(min=torch.finfo(w.dtype).tiny)
    bias = (w.sum() + pairs.sum() + pairs.diagonal().sum()).item()
    return bias * (1 / n + 1 / reference.n)


class FrechetDistance(Metric):
    """Subclass with a registered encoder and one of its outputs; override `reference` if stored."""

    network: ClassVar[str]
    feature: ClassVar[str] = "pool"
    reference_name: ClassVar[str] = "train split"

    @cached_property
    def reference(self) -> Gaussian:
        """The Gaussian of all real training images."""
        return kept(self, self._fit)

    def _fit(self) -> Gaussian:
        n, total, outer = 0, torch.tensor(0.0), torch.tensor(0.0)
        for batch in real_features(self.context, self.network, "train"):
            real = batch.features[self.feature].to("cpu", torch.float64)
            n, total, outer = n + len(real), total + real.sum(0), outer + real.T @ real
        return Gaussian.from_sums(n, total, outer)

    def update(self, seen: Observation) -> None:
        features = seen.features(self.network)[self.feature].to("cpu", torch.float64)
        self.add("n", torch.tensor(len(features)))
        self.add("total", features.sum(0))
        self.add("outer", features.T @ features)

    def compute(self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Score]:
        n = int(sums["n"])
        generated = Gaussian.from_sums(n, sums["total"], sums["outer"])
        facts = {
            **reference_facts(self.context, self.network),
            "reference": self.reference_name,
            "reference_images": self.reference.n,
            "expected_of_real_images": expected_distance(self.reference, n),
        }
        value = frechet_distance(generated, self.reference)
        # Resampling images would bias the distance itself: one evaluation has no honest error.
        return {self.name: Score(value, None, n, higher_is_better=False, facts=facts)}


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
    minimum = 256
    network = "animals-cnn"
