"""Classifier-free guidance (arXiv 2207.12598) within an interval of times (arXiv 2404.07724).

    g = v_null + s (v_condition - v_null)    for low <= t <= high,      g = v_condition elsewhere

The network sees only the branches that a step needs: outside the interval the null branch is never
run.
"""

from __future__ import annotations

import math

import chz

from nanogen.errors import ConfigError
from nanogen.objectives.path import leafwise
from nanogen.sampling.solvers import Field
from nanogen.types import State


@chz.chz
class Guidance:
    """Scale s = 1 means none. The interval is in noise time: [0, 0.9] leaves the noisiest tenth
    unguided.
    """

    scale: float = 1.0
    low: float = 0.0
    high: float = 1.0

    @chz.validate
    def _ranges(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ConfigError(f"guidance.scale={self.scale}: must be finite and not negative")
        if not 0 <= self.low < self.high <= 1:
            raise ConfigError(
                f"guidance.low={self.low} and guidance.high={self.high}: need 0 <= low < high <= 1"
            )

    def covers(self, t: float) -> bool:
        """Whether a step at time t is guided."""
        return self.scale != 1 and self.low <= t <= self.high


def guided(conditional: Field, null: Field, guidance: Guidance) -> Field:
    """The guided velocity field, in the precision of its two branches (float32)."""

    def field(state: State, t: float, to: float) -> State:
        v = conditional(state, t, to)
        if not guidance.covers(t):
            return v
        return leafwise(lambda c, n: n + guidance.scale * (c - n), v, null(state, t, to))

    return field
