"""Two evaluations on the same prompts, compared prompt by prompt.

That a prompt is hard is common to both sides and drops out of the difference: its interval is far
narrower than that of two means. Prompts are drawn anew as a whole, within their kinds where the
score is a mean over kinds; both sides see the same draw.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from nanogen.bench.statistics import Interval
from nanogen.metrics.base import Outcomes

RESAMPLES = 2000
SEED = 0
PERCENTILES = (2.5, 97.5)
SAME = 1e-9


@dataclass(frozen=True)
class Paired:
    """Second minus first on common prompts, with a 95 % interval of the bootstrap."""

    amount: float
    interval: Interval
    prompts: int


def paired(
    first: Outcomes, second: Outcomes, value: float, other: float | None = None
) -> Paired | None:
    """The paired difference of a score; `value` is that of the first, which tells whether the
    score is a mean over images or over kinds of prompt, and `other` that of the second. None where
    the prompts are not the same, the score is neither mean, or the second is not the same mean.
    """
    sides = _by_prompt(first), _by_prompt(second)
    if sides[0].keys() != sides[1].keys() or len(sides[0]) < 2:
        return None
    weights = _weights(first, value)
    if weights is None:
        return None
    amount, resampled = 0.0, np.zeros(RESAMPLES)
    rng = np.random.default_rng(SEED)
    for kind, weight in weights.items():
        keys = [key for key in sides[0] if kind is None or key[0] == kind]
        values = np.array([[np.sum(side[key]) for key in keys] for side in sides])
        counts = np.array([[len(side[key]) for key in keys] for side in sides])
        drawn = rng.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), size=RESAMPLES)
        means = values.sum(1) / counts.sum(1)
        again = (drawn @ values.T) / (drawn @ counts.T)
        amount += weight * float(means[1] - means[0])
        resampled += weight * (again[:, 1] - again[:, 0])
    if other is not None and abs(value + amount - other) > SAME:
        return None
    low, high = np.percentile(resampled, PERCENTILES)
    return Paired(amount, Interval(float(low), float(high)), len(sides[0]))


def _weights(outcomes: Outcomes, value: float) -> dict[str | None, float] | None:
    """Of the kinds of prompt in the score; one kind, None, for a mean over all images."""
    values, tags = np.array(outcomes.values), np.array(outcomes.tags)
    if abs(values.mean() - value) < SAME:
        return {None: 1.0}
    kinds = list(dict.fromkeys(outcomes.tags))
    if abs(np.mean([values[tags == kind].mean() for kind in kinds]) - value) < SAME:
        return dict.fromkeys(kinds, 1 / len(kinds))
    return None


def _by_prompt(outcomes: Outcomes) -> dict[tuple[str, str], list[float]]:
    """Values by kind and prompt, in a fixed order."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for prompt, tag, value in zip(outcomes.prompts, outcomes.tags, outcomes.values, strict=True):
        found[tag, prompt].append(value)
    return dict(sorted(found.items()))
