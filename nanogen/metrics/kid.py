"""KID: the kernel Inception distance, which has no bias at any number of samples.

    found = kid(generated, real)          # features [n, d], [m, d]
    found.mean, found.deviation           # over 100 subsets of 1,000

Bińkowski et al. 2018 (arXiv 1801.01401): the squared maximum mean discrepancy of Inception features
under the kernel (x·y / d + 1)^3. Subsets and seed are those of torch-fidelity. Values around zero
are valid where two sets are alike, negative ones too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy
import torch
from torch import Tensor

from nanogen.errors import MetricError
from nanogen.metrics.base import Score
from nanogen.metrics.inception_features import InceptionFeatures
from nanogen.registry import register

SUBSETS, SIZE, SEED = 100, 1000, 2020
DEGREE, SHIFT = 3, 1.0


@dataclass(frozen=True)
class KernelDistance:
    """Mean and population standard deviation over the subsets."""

    mean: float
    deviation: float


def kid(
    generated: Tensor, real: Tensor, subsets: int = SUBSETS, size: int = SIZE
) -> KernelDistance:
    """Of features [n, d] and [m, d], in float64 on their device.

    MetricError where one of the sets is smaller than a subset.
    """
    if min(len(generated), len(real)) < size:
        raise MetricError(
            f"KID on subsets of {size} needs as many samples on each side, has {len(generated)} "
            f"generated and {len(real)} real; draw more samples"
        )
    draw = numpy.random.RandomState(SEED)
    values = []
    for _ in range(subsets):
        # In this order, and one generator for both sides: which rows are drawn depends on it.
        chosen = [
            torch.from_numpy(draw.choice(len(side), size, replace=False))
            for side in (generated, real)
        ]
        a, b = generated[chosen[0]].double(), real[chosen[1]].double()
        values.append(discrepancy(a, b))
    found = torch.stack(values)
    return KernelDistance(found.mean().item(), found.std(unbiased=False).item())


def discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """The unbiased squared maximum mean discrepancy of two sets [n, d] of equal size, a scalar.

    A point is not compared with itself, but with all points of the other set.
    """
    n = len(a)
    within = sum(_kernel(x, x).sum() - _kernel_of_itself(x).sum() for x in (a, b))
    return within / (n * (n - 1)) - 2 * _kernel(a, b).mean()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + SHIFT) ** DEGREE


def _kernel_of_itself(x: Tensor) -> Tensor:
    """The diagonal of `_kernel(x, x)`."""
    return (x.square().sum(1) / x.shape[1] + SHIFT) ** DEGREE


@register(
    "metric",
    "kid",
    summary="kernel Inception distance, 100 subsets of 1,000",
    needs="inception-2015",
)
class Kid(InceptionFeatures):
    """On the 2,048 pooled features, against up to 50,000 real images.

    The subsets overlap, so their deviation, which is a fact of the score, is no standard error.
    """

    findings = ("deviation_of_subsets",)
    name = "kid"
    minimum = SIZE
    size: ClassVar[int] = SIZE
    real_images = 50_000
    least_real_images = SIZE

    def compute(self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Score]:
        device = self.context.device
        found = kid(rows["features"].to(device), self.reference.to(device), size=self.size)
        facts = {
            **self.described(),
            "subsets": SUBSETS,
            "subset_size": self.size,
            "seed": SEED,
            "deviation_of_subsets": found.deviation,
        }
        n = len(rows["features"])
        return {self.name: Score(found.mean, None, n, higher_is_better=False, facts=facts)}
