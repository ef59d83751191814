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
from nanogen.metrics.reference import kept, real_features, reference_facts
from nanogen.registry import register

NEIGHBOUR = 3
"""k of the paper's section 3.1"""
CHUNK = 1024
"""rows of a distance matrix held at once; changes memory only"""


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]."""

    precision: float
    recall: float


def precision_recall(generated: Tensor, real: Tensor, k: int = NEIGHBOUR) -> PrecisionRecall:
    """Of generated features [n, d] against real ones [m, d]; n and m must exceed k.

    Precision is the share of generated points in at least one real ball, recall the share of real
    points in at least one generated ball (border included). Distances are summed in float64, not
    by the inner-product trick, which rounds the distance of equal points away from 0.
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


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(points: Tensor, k: int) -> Tensor:
    """[n]: the distance of each point to the k-th nearest other one."""
    # Each point is among its own neighbours, at distance 0, hence k + 1.
    near = [_distances(part, points).kthvalue(k + 1, dim=1).values for part in points.split(CHUNK)]
    return torch.cat(near)


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """[n] float64: 1 where a point lies in at least one ball."""
    inside = [(_distances(part, centres) <= radii).any(1) for part in points.split(CHUNK)]
    return torch.cat(inside).double()


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
        n, found = len(generated), precision_recall(generated, self.reference)
        facts = {
            **reference_facts(self.context, self.network),
            "neighbour": NEIGHBOUR,
            "reference": "train split, evenly spaced",
            "reference_images": len(self.reference),
        }
        # Recall varies with the balls, drawn anew with the samples: the error of a share is too
        # small.
        error = proportion_error(found.precision, n)
        return {
            f"{self.name}/precision": Score(found.precision, error, n, True, facts),
            f"{self.name}/recall": Score(found.recall, None, n, True, facts),
        }


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
