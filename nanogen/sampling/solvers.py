"""Solvers of dx/dt = v(x, t) from t = 1 (noise) to t = 0 (data).

A solver is a function (field, state, times) -> state. `field(state, t, to)` returns the velocity
of every leaf at time t for a step to time `to`: the mean one over the step where the network knows
it (MeanFlow), the one at t otherwise, and always where `to` is t. `times` are falling floats, the
first 1 and the last 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

from nanogen.objectives.path import leafwise
from nanogen.types import State

Field: TypeAlias = Callable[[State, float, float], State]
Solver: TypeAlias = Callable[[Field, State, Sequence[float]], State]


def euler(field: Field, state: State, times: Sequence[float]) -> State:
    """First order: one evaluation a step."""
    for now, following in zip(times, times[1:], strict=False):
        state = _advance(state, field(state, now, following), following - now)
    return state


def heun(field: Field, state: State, times: Sequence[float]) -> State:
    """Second order: the mean of the velocities at both ends of a step; the last step is Euler's (2
    n - 1 evaluations).
    """
    for now, following in zip(times[:-2], times[1:-1], strict=True):
        first = field(state, now, now)
        second = field(_advance(state, first, following - now), following, following)
        mean = leafwise(lambda a, b: (a + b) / 2, first, second)
        state = _advance(state, mean, following - now)
    return euler(field, state, times[-2:])


SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun}


def _advance(state: State, velocity: State, step: float) -> State:
    def move(x: Tensor, v: Tensor) -> Tensor:
        return x + step * v

    return leafwise(move, state, velocity)
