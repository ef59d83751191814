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

from nanogen.encoders.inception import NAME, WEIGHTS
from nanogen.errors import MetricError
from nanogen.metrics.base import Metric, Observation, Option, Score
from nanogen.metrics.reference import load_encoder
from nanogen.registry import register

SPLITS = 10
SEED = 2020
"""of the permutation, as torch-fidelity has it"""
PART_OF_ADM = 5000
TINY = 1e-10


@dataclass(frozen=True)
class InceptionScore:
    """Mean and population standard deviation over the splits."""

    mean: float
    deviation: float
    splits: int


def inception_score(
    logits: Tensor, splits: int = SPLITS, seed: int | None = SEED
) -> InceptionScore:
    """The score of class logits [n, K], in float64, over `splits` parts of a seeded permutation;
    no permutation for a seed of None.

    Without the permutation samples that are sorted by class score 1.0: each part then holds one
    class. Raises MetricError where n < splits.
    """
    n = len(logits)
    _check(n, splits)
    log_p = _permuted(logits, seed).double().log_softmax(1)
    return _over([_part(log_p[i * n // splits : (i + 1) * n // splits]) for i in range(splits)])


def score_of_diffusion_bench(logits: Tensor) -> InceptionScore:
    """As the code of DiffusionBench (arXiv 2606.24888) computes it: permuted with seed 0, in parts
    of floor(n / 10) that leave the rest out, in float32 with 1e-10 inside both logarithms.
    """
    size = len(logits) // SPLITS
    _check(len(logits), SPLITS)
    p = _permuted(logits, 0).float().softmax(1)
    values = []
    for part in p.split(size)[:SPLITS]:
        marginal = part.mean(0, keepdim=True)
        divergence = part * ((part + TINY).log() - (marginal + TINY).log())
        values.append(divergence.sum(1).mean().exp().double())
    return _over(values)


def score_of_adm(logits: Tensor) -> InceptionScore:
    """As the evaluation of ADM (arXiv 2105.05233) computes it: in parts of 5,000 in the order of
    the samples, which must not be sorted by class.
    """
    log_p = logits.double().cpu().log_softmax(1)
    return _over([_part(part) for part in log_p.split(PART_OF_ADM)])


def _check(n: int, splits: int) -> None:
    if n < splits:
        raise MetricError(f"an inception score of {splits} splits needs as many samples, has {n}")


def _permuted(logits: Tensor, seed: int | None) -> Tensor:
    if seed is None:
        return logits.cpu()
    order = numpy.random.RandomState(seed).permutation(len(logits))
    return logits.cpu()[torch.from_numpy(order)]


def _part(log_p: Tensor) -> Tensor:
    """exp of the mean divergence from the mean, of log probabilities [n, K]."""
    marginal = log_p.logsumexp(0) - torch.tensor(len(log_p), dtype=log_p.dtype).log()
    return (log_p.exp() * (log_p - marginal)).sum(1).mean().exp()


def _over(scores: list[Tensor]) -> InceptionScore:
    values = torch.stack(scores)
    return InceptionScore(values.mean().item(), values.std(unbiased=False).item(), len(scores))


class ClassifierScore(Metric):
    """Subclass with a registered encoder whose output `feature` is class logits."""

    findings = ("deviation_of_splits",)
    network: ClassVar[str]
    feature: ClassVar[str] = "logits"

    def scored(self, logits: Tensor) -> InceptionScore:
        """The score of all logits [n, K], in the order of the samples."""
        return inception_score(logits)

    def described(self) -> dict[str, str | int]:
        """How it is computed, as facts of the score."""
        return {"permutation_seed": SEED}

    def update(self, seen: Observation) -> None:
        logits = seen.features(self.network)[self.feature].detach().float().cpu()
        self.rows.setdefault("logits", []).append(logits)

    def compute(self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Score]:
        logits = rows["logits"]
        score = self.scored(logits)
        facts = {
            "network": self.network,
            "network_hash": load_encoder(self.network, self.context.device).fingerprint,
            "classes": logits.shape[1],
            "splits": score.splits,
            **self.described(),
            "deviation_of_splits": score.deviation,
        }
        # Of the mean over disjoint splits: population deviation / sqrt(splits - 1).
        error = score.deviation / (score.splits - 1) ** 0.5 if score.splits > 1 else None
        return {
            self.name: Score(score.mean, error, len(logits), higher_is_better=True, facts=facts)
        }


@register("metric", "is", summary="inception score on the Inception of FID", needs="inception-2015")
class IsOnInception(ClassifierScore):
    """On its 1,008 logits without bias; published with 50,000 samples, in one of three ways."""

    name = "is"
    version = 1
    task = "any"
    minimum = 1000
    network = NAME
    assets = (WEIGHTS,)
    options = {
        "variant": Option(
            "fidelity: torch-fidelity's permutation; reference: that of DiffusionBench's code; "
            "adm: none, in parts of 5,000",
            "fidelity",
            ("fidelity", "reference", "adm"),
        )
    }

    def scored(self, logits: Tensor) -> InceptionScore:
        variants = {
            "fidelity": inception_score,
            "reference": score_of_diffusion_bench,
            "adm": score_of_adm,
        }
        return variants[self.chosen["variant"]](logits)

    def described(self) -> dict[str, str | int]:
        seeds = {"fidelity": SEED, "reference": 0, "adm": "none: in the order of the samples"}
        return {"permutation_seed": seeds[self.chosen["variant"]]}


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
