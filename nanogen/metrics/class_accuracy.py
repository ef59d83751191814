"""Class accuracy: how often a classifier sees in a sample the class that was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from nanogen.errors import MetricError
from nanogen.metrics.base import Metric, Observation, Score, Unfit
from nanogen.metrics.reference import kept, load_encoder, real_features, reference_facts
from nanogen.registry import register
from nanogen.types import Request


def proportion_error(share: float, n: int) -> float:
    """Standard error of a share of n trials, never 0 (Agresti & Coull 1998: two more of each)."""
    p = (share * n + 2) / (n + 4)
    return math.sqrt(p * (1 - p) / (n + 4))


class ClassAccuracy(Metric):
    """Subclass with a registered encoder; its output `feature` is logits in class order."""

    findings = ("worst_class", "worst_class_accuracy")
    network: ClassVar[str]
    feature: ClassVar[str] = "logits"

    @cached_property
    def reference(self) -> float:
        """Accuracy on real held-out images: the level that perfect samples would reach."""
        return kept(self, self._measure)

    def check(self, samples: int) -> None:
        """Besides: MetricError where the data set has other classes than the network."""
        super().check(samples)
        known = load_encoder(self.network, self.context.device).classes
        if known != self.context.source.classes:
            raise MetricError(
                f"{self.name} knows the classes {', '.join(known)}; this data set has others, "
                "so leave this metric out"
            )

    def check_request(self, request: Request) -> None:
        self.labels_of(request)

    def labels_of(self, request: Request) -> Tensor:
        """The classes that samples were drawn for, int64 [B] on the CPU; Unfit where they are not
        known, MetricError where there are others than those of the data.
        """
        if request.labels is None:
            raise Unfit(
                f"{self.name} needs images of known classes; these have none (folders that are "
                "all named as classes, or a samples.json beside them, say which)"
            )
        classes = len(self.context.source.classes)
        if len(request) and int(request.labels.max()) >= classes:
            raise MetricError(
                f"{self.name} knows {classes} classes, samples are of class "
                f"{int(request.labels.max())}; leave this metric out"
            )
        return request.labels.cpu()

    def _measure(self) -> float:
        right, n = 0, 0
        for batch in real_features(self.context, self.network, "held-out"):
            if batch.labels is None:
                raise MetricError(f"{self.name} needs labelled images; this data set has none")
            guesses = batch.features[self.feature].argmax(1).cpu()
            right, n = right + int((guesses == batch.labels).sum()), n + len(guesses)
        return right / n

    def update(self, seen: Observation) -> None:
        labels = self.labels_of(seen.request)
        logits = seen.features(self.network)[self.feature]
        right = (logits.argmax(1).cpu() == labels).double()
        classes = logits.shape[1]
        self.add("drawn", torch.bincount(labels, minlength=classes))
        self.add("right", torch.zeros(classes, dtype=torch.float64).index_add(0, labels, right))

    def compute(self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Score]:
        drawn, right = sums["drawn"], sums["right"]
        n, value = int(drawn.sum()), (right.sum() / drawn.sum()).item()
        shares = (right / drawn).nan_to_num(nan=math.inf)
        worst = int(shares.argmin())
        facts = {
            **reference_facts(self.context, self.network),
            "real": self.reference,
            "real_images": self.context.source.count("held-out"),
            "worst_class": self.context.source.classes[worst],
            "worst_class_accuracy": shares[worst].item(),
        }
        error = proportion_error(value, n)
        return {self.name: Score(value, error, n, higher_is_better=True, facts=facts)}


@register("metric", "accuracy-animals", summary="share of samples seen as the class asked for")
class AccuracyAnimals(ClassAccuracy):
    """On the logits of `animals-cnn`; the fact `real` is its accuracy on real held-out images."""

    name = "accuracy-animals"
    version = 1
    task = "class_conditional"
    minimum = 50
    network = "animals-cnn"
