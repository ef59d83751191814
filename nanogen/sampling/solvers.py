"""Solvers of dx/dt = v(x, t) from t = 1 (noise) to t = 0 (data).

A solver is a function (field, state, times, last) -> state. `field(state, t, to)` returns the
velocity of every leaf at time t for a step to time `to`: the mean one over the step where the
network knows it (MeanFlow), the one at t otherwise, and always where `to` is t. `times` are falling
floats, the first 1 and the last 0. `last(state, t)` is another last step than the solver's own.

    end = heun(field, noise, times(50))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol, TypeAlias

from torch import Tensor

from nanogen.objectives.path import leafwise
from nanogen.types import State

Field: TypeAlias = Callable[[State, float, float], State]
Last: TypeAlias = Callable[[State, float], State]


class Solver(Protocol):
    def __call__(
        self, field: Field, state: State, times: Sequence[float], last: Last | None = None
    ) -> State: ...


def euler(field: Field, state: State, times: Sequence[float], last: Last | None = None) -> State:
    """First order: one evaluation a step."""
    for now, following in pairwise(times if last is None else times[:-1]):
        state = advance(state, field(state, now, following), following - now)
    return state if last is None else last(state, times[-2])


def heun(field: Field, state: State, times: Sequence[float], last: Last | None = None) -> State:
    """Second order: the mean of the velocities at both ends of a step; the last step is Euler's (2
    n - 1 evaluations), as in JiT (arXiv 2511.13720).
    """
    for now, following in pairwise(times[:-1]):
        first = field(state, now, now)
        second = field(advance(state, first, following - now), following, following)
        mean = leafwise(lambda a, b: (a + b) / 2, first, second)
        state = advance(state, mean, following - now)
    return euler(field, state, times[-2:], last)


SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun}
"""the deterministic ones"""


def advance(state: State, velocity: State, step: float) -> State:
    """x + step v, leaf by leaf."""

    def move(x: Tensor, v: Tensor) -> Tensor:
        return x + step * v

    return leafwise(move, state, velocity)
