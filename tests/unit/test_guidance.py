"""Classifier-free guidance: its closed form on Gaussians, and the branches it runs."""

from __future__ import annotations

import math

import pytest
import torch

from nanogen.errors import ConfigError
from nanogen.objectives.path import leafwise, velocity_from_data
from nanogen.sampling.guidance import Guidance, guided
from nanogen.sampling.schedule import times
from nanogen.sampling.solvers import euler, heun
from nanogen.types import State

STD, CONDITIONAL, NULL, SCALE = 0.5, 0.7, -0.3, 3.0
GUIDED_MEAN = NULL + SCALE * (CONDITIONAL - NULL)


def gaussian(mean: float):
    def field(state: State, t: float, to: float) -> State:
        variance = (1 - t) ** 2 * STD**2 + t**2
        slope = (t - (1 - t) * STD**2) / variance
        return leafwise(lambda x: slope * (x - (1 - t) * mean) - mean, state)

    return field


def start() -> State:
    return {"image": torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]}


def test_full_interval() -> None:
    """With a shared variance guidance moves the mean: x_0 = 2.7 + 0.5 x_1."""
    field = guided(gaussian(CONDITIONAL), gaussian(NULL), Guidance(scale=SCALE))
    end = euler(field, start(), times(4000))["image"]
    assert (end - (GUIDED_MEAN + STD * start()["image"])).abs().max() < 1e-3


def test_interval() -> None:
    """Unguided down to t = 0.9, guided after: a closed form, with steps that meet 0.9 exactly."""
    guidance = Guidance(scale=SCALE, high=0.9)
    field = guided(gaussian(CONDITIONAL), gaussian(NULL), guidance)
    end = euler(field, start(), times(20_000))["image"]
    spread = math.sqrt(0.01 * STD**2 + 0.81)
    shift = 0.1 * (CONDITIONAL - GUIDED_MEAN) / spread
    expected = GUIDED_MEAN + STD * (start()["image"] + shift)
    assert expected[0].item() == pytest.approx(1.58906, abs=1e-5)
    assert expected[1].item() == pytest.approx(2.08906, abs=1e-5)
    assert (end - expected).abs().max() < 2e-4


@pytest.mark.parametrize(
    "ratio, null_calls",
    [(1, 45), (2**0.5, 43), (2, 40), (8**0.5, 38), (48**0.5, 28), (8, 26)],
)
def test_only_needed_branches_run(ratio: float, null_calls: int) -> None:
    calls = {"conditional": 0, "null": 0}

    def counting(name: str):
        def field(state: State, t: float, to: float) -> State:
            calls[name] += 1
            return leafwise(torch.zeros_like, state)

        return field

    field = guided(counting("conditional"), counting("null"), Guidance(scale=SCALE, high=0.9))
    euler(field, start(), times(50, ratio))
    assert calls == {"conditional": 50, "null": null_calls}


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
def test_scales(scale: float) -> None:
    """0 is the null field, 1 the conditional one (the null branch is not run), 2 lies beyond."""
    field = guided(gaussian(CONDITIONAL), gaussian(NULL), Guidance(scale=scale))
    found = field(start(), 0.4, 0.4)["image"]
    c, n = (gaussian(mean)(start(), 0.4, 0.4)["image"] for mean in (CONDITIONAL, NULL))
    assert torch.allclose(found, n + scale * (c - n))

    def never(state: State, t: float, to: float) -> State:
        raise AssertionError("this branch is not needed")

    if scale == 1:
        guided(gaussian(CONDITIONAL), never, Guidance(scale=scale))(start(), 0.4, 0.4)
    if scale == 0:
        guided(never, gaussian(NULL), Guidance(scale=scale))(start(), 0.4, 0.4)


def test_ends_of_the_interval_belong_to_it() -> None:
    guidance = Guidance(scale=2.0, low=0.1, high=0.9)
    assert [guidance.covers(t) for t in (0.09, 0.1, 0.5, 0.9, 0.91)] == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("steps", [10, 20, 50, 100, 250])
def test_a_uniform_grid_meets_every_tenth(steps: int) -> None:
    """So that an interval that begins or ends there holds the step."""
    grid = times(steps)
    assert [grid[steps - k * steps // 10] for k in range(11)] == [k / 10 for k in range(11)]


def test_guiding_data_is_guiding_velocity() -> None:
    """The map from predicted data to velocity is affine in the prediction, at the same x_t."""
    generator = torch.Generator().manual_seed(0)
    c, n, noisy = (torch.randn(6, 4, generator=generator) for _ in range(3))
    t = torch.tensor([0.01, 0.04, 0.06, 0.3, 0.9, 1.0])
    of_data = velocity_from_data(n + 3 * (c - n), noisy, t, 0.05)
    vc, vn = (velocity_from_data(x, noisy, t, 0.05) for x in (c, n))
    assert torch.allclose(of_data, vn + 3 * (vc - vn), rtol=1e-4, atol=1e-4)
    wide = [x.double() for x in (c, n, noisy, t)]
    of_data = velocity_from_data(wide[1] + 3 * (wide[0] - wide[1]), wide[2], wide[3], 0.05)
    vc, vn = (velocity_from_data(x, wide[2], wide[3], 0.05) for x in wide[:2])
    assert (of_data - (vn + 3 * (vc - vn))).abs().max() < 1e-6


def test_every_leaf_is_guided_alike() -> None:
    state = {"image": torch.zeros(2, 3), "cls": torch.zeros(2, 4)}
    one = lambda s, t, to: leafwise(torch.ones_like, s)  # noqa: E731
    zero = lambda s, t, to: leafwise(torch.zeros_like, s)  # noqa: E731
    found = guided(one, zero, Guidance(scale=3.0))(state, 0.5, 0.4)
    assert {name: leaf.unique().tolist() for name, leaf in found.items()} == {
        "image": [3.0],
        "cls": [3.0],
    }


@pytest.mark.parametrize(
    "scale, leaves, image, cls, calls",
    [
        (3.0, 1.5, 3.0, 1.5, 2),
        (1.0, 1.5, 1.0, 1.5, 2),
        (3.0, 1.0, 3.0, 1.0, 2),
        (0.0, 1.0, 0.0, 1.0, 2),
        (1.0, 1.0, 1.0, 1.0, 1),
        (0.0, 0.0, 0.0, 0.0, 1),
    ],
)
def test_leaves_have_a_scale_of_their_own(scale, leaves, image, cls, calls) -> None:
    """v = 1 with the condition and 0 without: what comes out is the scale of each leaf."""
    state, asked = {"image": torch.zeros(2, 3), "cls": torch.zeros(2, 4)}, []

    def constant(value: float):
        def field(state: State, t: float, to: float) -> State:
            asked.append(value)
            return leafwise(lambda x: torch.full_like(x, value), state)

        return field

    field = guided(constant(1.0), constant(0.0), Guidance(scale=scale, leaves=leaves))
    found = field(state, 0.5, 0.4)
    assert (found["image"].unique().tolist(), found["cls"].unique().tolist()) == ([image], [cls])
    assert len(asked) == calls


def test_heun_asks_at_both_ends_of_a_step() -> None:
    """With an interval that ends inside a step, each end is guided by its own time."""
    asked: list[float] = []

    def null(state: State, t: float, to: float) -> State:
        asked.append(t)
        return leafwise(torch.zeros_like, state)

    field = guided(gaussian(CONDITIONAL), null, Guidance(scale=2.0, high=0.5))
    heun(field, start(), [1.0, 0.6, 0.4, 0.0])
    assert asked == [0.4, 0.4]


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": -1.0},
        {"low": 0.5, "high": 0.5},
        {"high": 1.1},
        {"low": -0.1},
        {"leaves": -1.0},
        {"leaves": math.inf},
    ],
)
def test_refusals(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="sampling.guidance"):
        Guidance(**fields)
