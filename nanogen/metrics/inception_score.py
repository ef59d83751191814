"""Inception score: are samples recognisable one by one, and varied as a whole?

Salimans et al. 2016 (arXiv 1606.03498), section 4: exp of the mean divergence of p(class | image)
from p(class). With the classifier of another network it is `is-<network>`; its best value is the
number of classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy
import torch
from torch import Tensor

from nanogen.errors import MetricError
from nanogen.metrics.base import Metric, Observation, Score
from nanogen.metrics.reference import load_encoder
from nanogen.registry import register

SPLITS = 10
SEED = 2020
"""of the permutation, as torch-fidelity has it"""


@dataclass(frozen=True)
class InceptionScore:
    """Mean and population standard deviation over the splits."""

    mean: float
    deviation: float


def inception_score(logits: Tensor, splits: int = SPLITS, seed: int = SEED) -> InceptionScore:
    """The score of class logits [n, K], in float64, over `splits` parts of a seeded permutation.

    Without the permutation samples that are sorted by class score 1.0: each part then holds one
    class. Raises MetricError where n < splits.
    """
    n = len(logits)
    if n < splits:
        raise MetricError(f"an inception score of {splits} splits needs as many samples, has {n}")
    order = numpy.random.RandomState(seed).permutation(n)
    log_p = logits.to("cpu", torch.float64)[torch.from_numpy(order)].log_softmax(1)
    scores = []
    for i in range(splits):
        part = log_p[i * n // splits : (i + 1) * n // splits]
        marginal = part.logsumexp(0) - torch.tensor(len(part), dtype=part.dtype).log()
        scores.append((part.exp() * (part - marginal)).sum(1).mean().exp())
    values = torch.stack(scores)
    return InceptionScore(values.mean().item(), values.std(unbiased=False).item())


class ClassifierScore(Metric):
    """Subclass with a registered encoder whose output `feature` is class logits."""

    network: ClassVar[str]
    feature: ClassVar[str] = "logits"

    def update(self, seen: Observation) -> None:
        logits = seen.features(self.network)[self.feature].detach().float().cpu()
        self.rows.setdefault("logits", []).append(logits)

    def compute(self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Score]:
        logits = rows["logits"]
        score = inception_score(logits)
        facts = {
            "network": self.network,
            "network_hash": load_encoder(self.network, self.context.device).fingerprint,
            "classes": logits.shape[1],
            "splits": SPLITS,
            "permutation_seed": SEED,
            "deviation_of_splits": score.deviation,
        }
        # Of the mean over disjoint splits: population deviation / sqrt(splits - 1).
        error = score.deviation / (SPLITS - 1) ** 0.5
        return {
            self.name: Score(score.mean, error, len(logits), higher_is_better=True, facts=facts)
        }


@register(
    "metric", "is-animals", summary="inception score on a small CNN of ten animals (at most 10)"
)
class IsAnimals(ClassifierScore):
    """On the logits of `animals-cnn`; from 100 samples a split can hold each of the ten classes."""

    name = "is-animals"
    version = 1
    task = "class_conditional"
    minimum = 100
    network = "animals-cnn"
