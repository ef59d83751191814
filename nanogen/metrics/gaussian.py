"""A Gaussian fitted to feature vectors, from float64 sums that add over batches and processes.

sums = {}
for features in batches:                       # [B, d] each
    accumulate(sums, features)                 # in place: n, sum x, sum x x^T
fitted = Gaussian.of_sums(sums)                # mean [d], covariance [d, d]
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nanogen.errors import MetricError


@dataclass(frozen=True)
class Spectrum:
    """What an eigendecomposition of a covariance gives, once and for all distances to it."""

    values: Tensor
    """[d] float64: its eigenvalues, those below 0 raised to it"""
    root: Tensor
    """[d, d] float64: its symmetric square root"""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean and covariance of n feature vectors, in float64 on the CPU."""

    mean: Tensor
    """[d]"""
    covariance: Tensor
    """[d, d], unbiased (divided by n - 1)"""
    n: int
    """0 where a published file does not say it"""
    known: Spectrum | None = None
    """the spectrum, where it was computed before"""

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        """The Gaussian of features [n, d]."""
        sums: dict[str, Tensor] = {}
        accumulate(sums, features)
        return cls.of_sums(sums)

    @classmethod
    def of_sums(cls, sums: Mapping[str, Tensor], prefix: str = "") -> Gaussian:
        """From what `accumulate` made with the same prefix."""
        n, total, outer = (sums[f"{prefix}{name}"] for name in ("n", "total", "outer"))
        return cls.from_sums(int(n), total, outer)

    @classmethod
    def from_sums(cls, n: int, total: Tensor, outer: Tensor) -> Gaussian:
        """From sum x [d] and sum x x^T [d, d] over n >= 2 vectors, both float64.

        Float64 is what makes the one-pass formula safe: with float32 features far from zero the
        difference below would lose all its digits.
        """
        if n < 2:
            raise MetricError(f"a covariance needs at least 2 samples, has {n}; draw more samples")
        mean = total / n
        covariance = torch.addr(outer, mean, mean, alpha=-n).div_(n - 1)
        return cls(mean, covariance, n)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Eigenvalues and root of the covariance: O(d^3), so it is computed when asked for."""
        if self.known is not None:
            return self.known
        values, vectors = torch.linalg.eigh(self.covariance)
        values = values.clamp(min=0)
        return Spectrum(values, (vectors * values.sqrt()) @ vectors.T)

    @property
    def root(self) -> Tensor:
        """[d, d]: the symmetric square root of the covariance."""
        return self.spectrum.root


def accumulate(sums: MutableMapping[str, Tensor], features: Tensor, prefix: str = "") -> None:
    """Add features [B, d] to the float64 sums `n`, `total` [d] and `outer` [d, d], in place.

    One product of matrices a batch and no second d x d: with d = 2048 each would be 34 MB.
    """
    features = features.detach().to("cpu", torch.float64)
    d = features.shape[1]
    if f"{prefix}n" not in sums:
        sums[f"{prefix}n"] = torch.zeros((), dtype=torch.float64)
        sums[f"{prefix}total"] = torch.zeros(d, dtype=torch.float64)
        sums[f"{prefix}outer"] = torch.zeros(d, d, dtype=torch.float64)
    sums[f"{prefix}n"] += len(features)
    sums[f"{prefix}total"] += features.sum(0)
    sums[f"{prefix}outer"].addmm_(features.T, features)
