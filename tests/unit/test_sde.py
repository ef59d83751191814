"""The stochastic solver against a Gaussian, whose equation is linear: its moments are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nanogen import rng
from nanogen.errors import ConfigError
from nanogen.objectives.path import leafwise, score_from_velocity
from nanogen.sampling.generate import Sampling
from nanogen.sampling.guidance import Guidance, guided
from nanogen.sampling.schedule import stochastic_times, times
from nanogen.sampling.solvers import Field, euler
from nanogen.sampling.stochastic import DIFFUSIONS, drift, stochastic
from nanogen.types import State

MEAN, STD = 0.7, 0.5
W = {"2t": lambda t: 2 * t, "sigma": lambda t: t, "constant": lambda t: 1.0}
W |= {"sin2": lambda t: math.sin(math.pi * t) ** 2}


def gaussian(mean: float = MEAN, std: float = STD) -> Field:
    """The velocity field whose data are N(mean, std^2)."""

    def velocity(x: Tensor, t: float) -> Tensor:
        variance = (1 - t) ** 2 * std**2 + t**2
        return (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean) - mean

    return lambda state, t, to: leafwise(lambda x: velocity(x, t), state)


def moments(w, grid: list[float], mean: float = MEAN) -> tuple[float, float]:
    """Mean and std of what Euler-Maruyama ends with, from the score -(x - m_t) / sigma_t^2 and the
    velocity of the Gaussian: a recursion of two numbers, without any draw.
    """
    m, variance = 0.0, 1.0
    for i, (t, to) in enumerate(zip(grid, grid[1:], strict=False)):
        var_t = (1 - t) ** 2 * STD**2 + t**2
        slope = (t - (1 - t) * STD**2) / var_t + w(t) / 2 / var_t
        shift = -slope * (1 - t) * mean - mean
        factor = 1 + (to - t) * slope
        m, variance = factor * m + (to - t) * shift, factor**2 * variance
        if i < len(grid) - 2:
            variance += w(t) * (t - to)
    return m, math.sqrt(variance)


def drawn(field: Field, diffusion: str, grid: list[float], rows: int, width: int) -> Tensor:
    keys = torch.arange(rows)

    def noise(step: int) -> State:
        return {"image": rng.normal(3, f"step{step}", keys, (width,))}

    return stochastic(DIFFUSIONS[diffusion], noise)(field, noise(-1), grid)["image"]


def test_the_published_grid() -> None:
    """250 times from 1 to 0.04, evenly, and 0."""
    grid = stochastic_times(250)
    assert len(grid) == 251 and grid[0] == 1.0 and grid[-1] == 0.0
    expected = torch.linspace(1, 0.04, 250, dtype=torch.float64).tolist()
    assert grid[:-1] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 48**0.5])
@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_a_shift_keeps_the_ends_of_the_grid(ratio: float, n: int) -> None:
    grid = stochastic_times(n, ratio)
    assert len(grid) == n + 1 and (grid[0], grid[-1]) == (1.0, 0.0)
    assert all(a > b for a, b in zip(grid, grid[1:], strict=False))
    if n > 1:
        assert grid[-2] == pytest.approx(0.04)
        # Evenly spaced before the shift: logit u = logit t - ln a.
        u = [t / (ratio + (1 - ratio) * t) for t in grid[:-1]]
        gaps = [a - b for a, b in zip(u, u[1:], strict=False)]
        assert gaps == pytest.approx([gaps[0]] * len(gaps))


def test_moments_of_many_draws() -> None:
    """The published sampler from 200,000 draws: mean 0.700, std 0.493 (the bias of 250 steps)."""
    found = drawn(gaussian(), "2t", stochastic_times(250), 500, 400)
    assert found.mean().item() == pytest.approx(0.700, abs=4e-3)
    assert found.std().item() == pytest.approx(0.493, abs=4e-3)
    mean, std = moments(W["2t"], stochastic_times(250))
    assert found.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(200_000))
    assert found.std().item() == pytest.approx(std, abs=4 * std / math.sqrt(400_000))


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_moments_of_every_diffusion(diffusion: str) -> None:
    assert set(DIFFUSIONS) == set(W)
    grid = stochastic_times(40)
    found = drawn(gaussian(), diffusion, grid, 100, 400)
    mean, std = moments(W[diffusion], grid)
    assert found.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(40_000))
    assert found.std().item() == pytest.approx(std, abs=4 * std / math.sqrt(80_000))


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_every_diffusion_has_the_same_marginals(diffusion: str) -> None:
    """In the limit of small steps, down to t = 0.04, where noise ends."""
    grid = [*stochastic_times(20_000)[:-1]]
    mean, std = moments(W[diffusion], [*grid, grid[-1]])
    assert mean == pytest.approx(0.96 * MEAN, abs=1e-3)
    assert std == pytest.approx(math.hypot(0.96 * STD, 0.04), abs=1e-3)


def test_the_score_in_the_drift() -> None:
    """v - (w / 2) s, with the score of the Gaussian itself, in fp64."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for t in (0.04, 0.3, 0.9, 1.0):
        v = gaussian()({"image": x}, t, t)["image"]
        score = -(x - (1 - t) * MEAN) / ((1 - t) ** 2 * STD**2 + t**2)
        found = drift(gaussian(), {"image": x}, t, DIFFUSIONS["2t"])["image"]
        assert (found - (v - t * score)).abs().max() < 1e-12
        rows = torch.full((9,), t, dtype=torch.float64)
        assert (score_from_velocity(v, x, rows) - score).abs().max() < 1e-12


def test_without_diffusion_it_is_euler() -> None:
    state = {"image": torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]}
    noise = lambda step: leafwise(torch.ones_like, state)  # noqa: E731
    grid = times(20)
    end = stochastic(lambda t: 0.0, noise)(gaussian(), state, grid)
    assert torch.equal(end["image"], euler(gaussian(), state, grid)["image"])


def test_guided_score() -> None:
    """The score is that of the guided velocity: the end is where guidance moves the mean."""
    field = guided(gaussian(0.7), gaussian(-0.3), Guidance(scale=3.0))
    grid = stochastic_times(60)
    found = drawn(field, "2t", grid, 50, 400)
    mean, std = moments(W["2t"], grid, mean=2.7)
    assert abs(mean - 2.7) < 0.02
    assert found.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(20_000))
    assert found.std().item() == pytest.approx(std, abs=4 * std / math.sqrt(40_000))


def test_every_leaf_has_noise_of_its_own() -> None:
    """Each leaf ends as if it were alone: the class token follows the equation of the image."""
    keys = torch.arange(4)
    start = {"image": torch.zeros(4, 2, 3), "cls": torch.ones(4, 5)}

    def noise(step: int, leaves: tuple[str, ...] = ("image", "cls")) -> State:
        return {
            leaf: rng.normal(0, f"{step}/{leaf}", keys, tuple(start[leaf].shape[1:]))
            for leaf in leaves
        }

    grid = stochastic_times(6)
    end = stochastic(DIFFUSIONS["sigma"], noise)(gaussian(), start, grid)
    for leaf in start:
        alone = stochastic(DIFFUSIONS["sigma"], lambda step, leaf=leaf: noise(step, (leaf,)))
        assert torch.equal(alone(gaussian(), {leaf: start[leaf]}, grid)[leaf], end[leaf])


@pytest.mark.parametrize("n", [1, 2, 7])
def test_steps_and_noise(n: int) -> None:
    """n evaluations, each of a velocity at a time; noise for all steps but the last."""
    asked: list[tuple[float, float]] = []
    steps: list[int] = []

    def field(state: State, t: float, to: float) -> State:
        asked.append((t, to))
        return gaussian()(state, t, to)

    def noise(step: int) -> State:
        steps.append(step)
        return {"image": torch.zeros(1, 1)}

    grid = stochastic_times(n)
    solver = stochastic(DIFFUSIONS["2t"], noise)
    solver(field, {"image": torch.zeros(1, 1)}, grid)
    assert asked == [(t, t) for t in grid[:-1]]
    assert steps == list(range(n - 1))
    asked.clear()
    end = solver(field, {"image": torch.zeros(1, 1)}, grid, lambda state, t: {"image": t})
    assert end == {"image": grid[-2]} and len(asked) == n - 1


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"diffusion": "sigma"}, "sampling.diffusion=sigma has no effect with sampling.solver=eul"),
        ({"solver": "heun", "diffusion": "sin2"}, "choose sampling.solver=sde"),
        ({"solver": "sde", "diffusion": "sigmoid"}, "did you mean sigma"),
    ],
)
def test_refusals(fields: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Sampling(**fields)
