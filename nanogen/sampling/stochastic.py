"""The stochastic solver: Euler-Maruyama on the reverse-time equation of the same marginals.

    dx = [v - (w / 2) s] dt + sqrt(w) dW,      s = -((1 - t) v + x) / t

(SiT, arXiv 2401.08740.) Any w(t) >= 0 gives the same marginals; w = 0 is the flow. The score
s is that of the velocity the field returns: under guidance, of the guided one. The last step adds
no noise. Every leaf of the state follows the same equation.

    solver = stochastic(DIFFUSIONS["2t"], noise)
    end = solver(field, noise(-1), stochastic_times(250))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

from torch import Tensor

from nanogen.objectives.path import leafwise
from nanogen.sampling.solvers import Field, Last, Solver, advance
from nanogen.types import State

Diffusion: TypeAlias = Callable[[float], float]
"""w at a time"""
Noise: TypeAlias = Callable[[int], State]
"""N(0, 1) for every leaf at a step, counted from 0"""

DIFFUSIONS: dict[str, Diffusion] = {
    "2t": lambda t: 2 * t,
    "sigma": lambda t: t,
    "constant": lambda t: 1.0,
    "sin2": lambda t: math.sin(math.pi * t) ** 2,
}
"""w(t); 2t is REPA's (arXiv 2410.06940), and SiT's `sigma` in code, which counts w / 2"""
DEFAULT = "2t"


def stochastic(diffusion: Diffusion, noise: Noise) -> Solver:
    """The solver with noise of its own for every step but the last."""

    def solve(
        field: Field, state: State, times: Sequence[float], last: Last | None = None
    ) -> State:
        for step, (now, following) in enumerate(pairwise(times[:-1])):
            spread = math.sqrt(diffusion(now) * (now - following))
            moved = advance(state, drift(field, state, now, diffusion), following - now)
            state = advance(moved, noise(step), spread)
        if last is not None:
            return last(state, times[-2])
        return advance(state, drift(field, state, times[-2], diffusion), times[-1] - times[-2])

    return solve


def drift(field: Field, state: State, t: float, diffusion: Diffusion) -> State:
    """v - (w / 2) s at time t > 0."""
    half = diffusion(t) / 2

    def of_leaf(x: Tensor, v: Tensor) -> Tensor:
        score = -((1 - t) * v + x) / t
        return v - half * score

    return leafwise(of_leaf, state, field(state, t, t))
