"""Precision and recall of samples: how many look real, and how much of the real variety they cover.

Kynkäänniemi et al. 2019 (arXiv 1904.06991): a set covers the union of the balls around its points,
each with the distance to the point's k-th nearest neighbour in the set as radius.
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
from nanogen.metrics.class_accuracy import proportion_error
from nanogen.metrics.inception_features import InceptionFeatures
from nanogen.metrics.reference import kept, real_features, reference_facts
from nanogen.registry import register

NEIGHBOUR = 3
"""k of the paper's section 3.1"""
CHUNK = 1024
"""rows of a distance matrix held at once; changes memory only"""
SPARE = 4
"""neighbours looked at beyond the k-th"""
ROUNDING = 1e-12
"""of a squared distance by inner products, to the norms: far above 2048 roundings of float64"""


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]."""

    precision: float
    recall: float


def precision_recall(generated: Tensor, real: Tensor, k: int = NEIGHBOUR) -> PrecisionRecall:
    """Of generated features [n, d] against real ones [m, d], on their device; n and m must exceed
    k.

    Precision is the share of generated points in at least one real ball, recall the share of real
    points in at least one generated ball (border included). In float64; what the inner-product
    formula of distances cannot decide for its rounding is decided by sums of squared differences.
    """
    if min(len(generated), len(real)) <= k:
        raise MetricError(
            f"precision and recall with k = {k} need more than {k} samples on each side, "
            f"have {len(generated)} generated and {len(real)} real; draw more samples"
        )
    generated, real = generated.double(), real.double()
    return PrecisionRecall(
        precision=_covered(generated, real, _radii(real, k)).mean().item(),
        recall=_covered(real, generated, _radii(generated, k)).mean().item(),
    )


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """[n, m]: squared distances, each off by less than `_slack`."""
    return torch.addmm(_norms(b) + _norms(a)[:, None], a, b.T, alpha=-2)


def _norms(x: Tensor) -> Tensor:
    return x.square().sum(1)


def _slack(a: Tensor, b: Tensor) -> float:
    """Bounds the rounding of `_squared`, which is of the size of the norms and not of the
    distance.
    """
    return ROUNDING * (_norms(a).max() + _norms(b).max()).item()


def _radii(points: Tensor, k: int) -> Tensor:
    """[n]: the squared distance of each point to the k-th nearest other one."""
    # Each point is among its own neighbours, at distance 0, hence k + 1. A few more, so that the
    # right ones are among them whatever the rounding.
    taken = min(k + 1 + SPARE, len(points))
    found = []
    for part in points.split(CHUNK):
        near = _squared(part, points).topk(taken, dim=1, largest=False).indices
        exact = torch.stack([(part - points[column]).square().sum(1) for column in near.T], 1)
        found.append(exact.kthvalue(k + 1, dim=1).values)
    return torch.cat(found)


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """[n] float64: 1 where a point lies in at least one ball; `radii` are squared."""
    slack = _slack(points, centres)
    found = []
    for part in points.split(CHUNK):
        margins = radii - _squared(part, centres)
        best = margins.max(1)
        nearest = centres[best.indices]
        inside = (part - nearest).square().sum(1) <= radii[best.indices]
        inside |= best.values > slack
        for row in (~inside & (best.values > -slack)).nonzero().flatten():
            close = margins[row] > -slack
            inside[row] = ((part[row] - centres[close]).square().sum(1) <= radii[close]).any()
        found.append(inside)
    return torch.cat(found).double()


def scores_of(
    name: str, found: PrecisionRecall, n: int, facts: Mapping[str, str | int | float]
) -> dict[str, Score]:
    """Both shares as parts of the metric `name`, of n samples."""
    # Recall varies with the balls, drawn anew with the samples: the error of a share is too small.
    error = proportion_error(found.precision, n)
    return {
        f"{name}/precision": Score(found.precision, error, n, True, facts),
        f"{name}/recall": Score(found.recall, None, n, True, facts),
    }


class ManifoldCoverage(Metric):
    """Subclass with a registered encoder, one of its outputs, and how many real images to take."""

    network: ClassVar[str]
    feature: ClassVar[str] = "pool"
    real_images: ClassVar[int]

    @cached_property
    def reference(self) -> Tensor:
        """[m, d]: features of evenly spaced training images."""
        return kept(self, self._collect)

    def _collect(self) -> Tensor:
        batches = real_features(self.context, self.network, "train", self.real_images)
        return torch.cat([b.features[self.feature].float().cpu() for b in batches])

    def update(self, seen: Observation) -> None:
        features = seen.features(self.network)[self.feature].detach().float().cpu()
        self.rows.setdefault("features", []).append(features)

    def compute(self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Score]:
        generated = rows["features"]
        facts = {
            **reference_facts(self.context, self.network),
            "neighbour": NEIGHBOUR,
            "reference": "train split, evenly spaced",
            "reference_images": len(self.reference),
        }
        found = precision_recall(generated, self.reference)
        return scores_of(self.name, found, len(generated), facts)


@register(
    "metric",
    "pr",
    summary="precision and recall on the Inception of FID, k = 3",
    needs="inception-2015",
)
class PrOnInception(InceptionFeatures):
    """On the 2,048 pooled features against 10,000 real images, as ADM has it; but ADM compares
    distances in float16, so that its values differ in the third digit.

    Both shares depend on the number of samples. Compare values of the same n.
    """

    name = "pr"
    minimum = 1000
    real_images = 10_000
    least_real_images = 1000

    def compute(self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Score]:
        device = self.context.device
        generated, real = rows["features"].to(device), self.reference.to(device)
        facts = {**self.described(), "neighbour": NEIGHBOUR, "distances": "float64"}
        return scores_of(self.name, precision_recall(generated, real), len(generated), facts)


@register("metric", "pr-animals", summary="precision and recall on a small CNN of animals, k = 3")
class PrAnimals(ManifoldCoverage):
    """On the 128 pooled features of `animals-cnn` against 2,000 training images.

    Both shares depend on the number of samples: more samples have smaller balls. Compare values of
    the same n.
    """

    name = "pr-animals"
    version = 1
    task = "class_conditional"
    minimum = 100
    network = "animals-cnn"
    real_images = 2000
