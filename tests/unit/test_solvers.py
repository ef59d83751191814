"""Solvers against the flow of a Gaussian, whose exact solution is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nanogen.objectives.path import leafwise
from nanogen.sampling.schedule import times
from nanogen.sampling.solvers import euler, heun
from nanogen.types import State

MEAN, STD = 0.7, 0.5
STEPS = (25, 50, 100, 200)

# Largest error over x_1 in [-2, 2] by shift, for the steps above.
EULER = {
    1.0: (5.760e-2, 2.921e-2, 1.471e-2, 7.381e-3),
    2.8284: (1.061e-1, 5.435e-2, 2.753e-2, 1.386e-2),
    6.9282: (2.168e-1, 1.131e-1, 5.803e-2, 2.942e-2),
}
HEUN_THROUGHOUT = {
    1.0: (6.707e-4, 1.776e-4, 4.564e-5, 1.156e-5),
    2.8284: (1.307e-3, 2.303e-4, 4.471e-5, 9.518e-6),
    6.9282: (1.494e-2, 2.993e-3, 6.226e-4, 1.378e-4),
}


def gaussian(mean: float = MEAN, std: float = STD):
    """The velocity field whose data are N(mean, std^2)."""

    def velocity(x: Tensor, t: float) -> Tensor:
        variance = (1 - t) ** 2 * std**2 + t**2
        return (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean) - mean

    return lambda state, t, to: leafwise(lambda x: velocity(x, t), state)


def start() -> State:
    return {"image": torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]}


def error(state: State) -> float:
    """Distance to the exact map x_0 = m + s x_1."""
    return (state["image"] - (MEAN + STD * start()["image"])).abs().max().item()


def orders(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]


@pytest.mark.parametrize("ratio", EULER)
def test_euler(ratio: float) -> None:
    errors = [error(euler(gaussian(), start(), times(n, ratio))) for n in STEPS]
    assert errors == pytest.approx(EULER[ratio], rel=0.01)
    assert orders(errors)[-1] == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("ratio", HEUN_THROUGHOUT)
def test_heun_step(ratio: float) -> None:
    """The table is of Heun steps to the very end: append one more time to push Euler's step out."""
    errors = [error(heun(gaussian(), start(), [*times(n, ratio), 0.0])) for n in STEPS]
    assert errors == pytest.approx(HEUN_THROUGHOUT[ratio], rel=0.01)
    assert 1.7 < orders(errors)[-1] < 2.4


@pytest.mark.parametrize("ratio", HEUN_THROUGHOUT)
def test_heun_is_second_order_before_its_last_step(ratio: float) -> None:
    """At u = 0.2, which every grid holds, against the exact point m_t + sigma_t x_1."""
    errors = []
    for n in STEPS:
        grid = times(n, ratio)
        end = grid[4 * n // 5]
        found: list[float] = []

        def watched(
            state: State, t: float, to: float, end: float = end, found: list = found
        ) -> State:
            if t == end:
                exact = (1 - t) * MEAN + math.hypot((1 - t) * STD, t) * start()["image"]
                found.append((state["image"] - exact).abs().max().item())
            return gaussian()(state, t, to)

        heun(watched, start(), grid)
        # The point is met twice: as an Euler guess, then as the step that starts from it.
        assert len(found) == 2
        errors.append(found[1])
    assert orders(errors)[-1] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_evaluations(n: int) -> None:
    for solver, expected in ((euler, n), (heun, 2 * n - 1)):
        asked: list[float] = []

        def field(state: State, t: float, to: float, asked=asked) -> State:
            asked.append(t)
            return gaussian()(state, t, to)

        solver(field, start(), times(n))
        assert len(asked) == expected
        assert max(asked) == 1.0 and min(asked) > 0.0


@pytest.mark.parametrize("solver", [euler, heun])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_another_last_step(solver, n: int) -> None:
    """It replaces the last evaluation of the velocity, and sees the point where that was due."""
    grid, own, other = times(n), [], []

    def field(state: State, t: float, to: float) -> State:
        own.append((t, to, state["image"]))
        return gaussian()(state, t, to)

    def last(state: State, t: float) -> State:
        other.append((t, state["image"]))
        return leafwise(torch.zeros_like, state)

    solver(field, start(), grid)
    expected = own.pop()
    own.clear()
    end = solver(field, start(), grid, last)
    assert not end["image"].any() and len(other) == 1
    assert other[0][0] == expected[0] == grid[-2] and expected[1] == 0.0
    assert torch.equal(other[0][1], expected[2])
    assert len(own) == (n if solver is euler else 2 * n - 1) - 1


def test_steps_are_told_where_they_end() -> None:
    """A network of mean velocities needs the whole step of Euler's, none of Heun's but the last."""
    for solver, expected in (
        (euler, [(1.0, 0.5), (0.5, 0.0)]),
        (heun, [(1.0, 1.0), (0.5, 0.5), (0.5, 0.0)]),
    ):
        asked: list[tuple[float, float]] = []

        def field(state: State, t: float, to: float, asked=asked) -> State:
            asked.append((t, to))
            return gaussian()(state, t, to)

        solver(field, start(), times(2))
        assert asked == expected


@pytest.mark.parametrize("n", [1, 2, 4])
def test_mean_velocities_are_exact_in_any_steps(n: int) -> None:
    """The exact mean velocity of the Gaussian flow, (x_t - x_to) / (t - to)."""

    def mean(state: State, t: float, to: float) -> State:
        def velocity(x: Tensor) -> Tensor:
            spreads = [math.hypot((1 - s) * STD, s) for s in (t, to)]
            there = (1 - to) * MEAN + spreads[1] * (x - (1 - t) * MEAN) / spreads[0]
            return (x - there) / (t - to)

        return leafwise(velocity, state)

    assert error(euler(mean, start(), times(n))) < 1e-12


def test_heun_of_one_step_is_euler() -> None:
    grid = times(1)
    assert torch.equal(
        heun(gaussian(), start(), grid)["image"], euler(gaussian(), start(), grid)["image"]
    )


def test_euler_is_exact_on_straight_paths() -> None:
    """A point mass at m: v = (x - m) / t, and one step lands on it."""
    point = lambda state, t, to: leafwise(lambda x: (x - MEAN) / t, state)  # noqa: E731
    assert torch.allclose(
        euler(point, start(), times(1))["image"], torch.full((5, 1), MEAN, dtype=torch.float64)
    )


def test_leaves_move_together_and_apart() -> None:
    state = start() | {"cls": torch.zeros(5, 3, dtype=torch.float64)}

    def field(state: State, t: float, to: float) -> State:
        ones = torch.ones_like(state["cls"])
        return {"image": gaussian()(state, t, to)["image"], "cls": ones}

    for solver in (euler, heun):
        end = solver(field, state, times(7))
        assert torch.allclose(end["cls"], torch.full((5, 3), -1.0, dtype=torch.float64))
        assert torch.equal(end["image"], solver(gaussian(), start(), times(7))["image"])


@pytest.mark.parametrize("ratio", [1.0, 2.0, 6.9282])
def test_times(ratio: float) -> None:
    grid = times(50, ratio)
    assert len(grid) == 51 and grid[0] == 1.0 and grid[-1] == 0.0
    assert all(a > b for a, b in zip(grid, grid[1:], strict=False))
    assert grid[25] == pytest.approx(ratio / (1 + ratio))


# Steps of 50 that lie above 0.9, by shift.
@pytest.mark.parametrize(
    "ratio, above",
    [(1, 5), (2**0.5, 7), (2, 10), (8**0.5, 12), (4, 16), (32**0.5, 20), (48**0.5, 22), (8, 24)],
)
def test_steps_above_nine_tenths(ratio: float, above: int) -> None:
    assert sum(t > 0.9 for t in times(50, ratio)) == above
