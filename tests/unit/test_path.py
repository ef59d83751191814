"""The straight path and the law of its times: closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from nanogen import rng
from nanogen.objectives import path
from nanogen.objectives.flow import FlowConfig
from nanogen.types import LatentSpec

RATIOS = [1.0, 2.0, 2.8284, 6.9282, 0.5]


def state(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("ratio", RATIOS)
def test_shift_adds_the_log_of_the_ratio(ratio: float) -> None:
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    gain = torch.logit(path.shift(u, ratio)) - torch.logit(u)
    assert (gain - math.log(ratio)).abs().max() < 1e-12
    assert path.shift(torch.tensor(0.5, dtype=torch.float64), ratio).item() == pytest.approx(
        ratio / (1 + ratio), rel=1e-15
    )
    # Ends stay, shifts compose, and 1 / a undoes a.
    assert path.shift(torch.tensor([0.0, 1.0]), ratio).tolist() == pytest.approx([0, 1])
    assert torch.allclose(path.shift(path.shift(u, ratio), 3.0), path.shift(u, 3 * ratio))
    assert torch.allclose(path.shift(path.shift(u, ratio), 1 / ratio), u)


@pytest.mark.parametrize(
    "dim, ratio", [(4096, 1), (8192, 1.4142), (16384, 2), (32768, 2.8284), (196608, 6.9282)]
)
def test_shift_ratio(dim: int, ratio: float) -> None:
    assert path.shift_ratio(dim) == pytest.approx(ratio, abs=5e-5)


@pytest.mark.parametrize("mean, std, ratio", [(0.0, 1.0, 1.0), (-1.1, 0.8, 6.9282)])
def test_times_are_logit_normal(mean: float, std: float, ratio: float) -> None:
    draws = rng.normal(0, "time", torch.arange(100_000), ()).double()
    t = path.shift(path.logit_normal(draws, mean, std), ratio)
    law = stats.norm(mean + math.log(ratio), std)
    assert stats.kstest(torch.logit(t).numpy(), law.cdf).pvalue > 0.01


@pytest.mark.parametrize(
    "mean, effective", [(-1.1, 0.8356), (-1.94, -0.0044)], ids=["JiT", "PixNerd"]
)
def test_effective_law_of_the_pixel_methods(mean: float, effective: float) -> None:
    """Their odd means undo the shift of 3 x 256 x 256 pixels (and JiT's -0.8 in data time)."""
    shifted = FlowConfig(time_mean=mean, shift_base=4096)
    assert shifted.effective_mean(LatentSpec(3, 256, 256, 16)) == pytest.approx(effective, abs=5e-5)
    outright = FlowConfig(time_mean=effective, shift_base=None)
    assert outright.effective_mean(LatentSpec(3, 256, 256, 16)) == effective


def test_path_ends_and_derivative() -> None:
    x, noise = state(4, 3, 2, 2), state(4, 3, 2, 2, seed=1)
    assert torch.equal(path.mix(x, noise, torch.zeros(4, dtype=x.dtype)), x)
    assert torch.equal(path.mix(x, noise, torch.ones(4, dtype=x.dtype)), noise)
    t = torch.tensor([0.1, 0.5, 0.7, 0.9], dtype=x.dtype)
    difference = (path.mix(x, noise, t + 1e-6) - path.mix(x, noise, t - 1e-6)) / 2e-6
    assert torch.allclose(difference, path.velocity(x, noise), atol=1e-8)


def test_data_and_velocity_say_the_same() -> None:
    x, noise = state(4, 3, 2, 2), state(4, 3, 2, 2, seed=1)
    t = torch.tensor([0.06, 0.3, 0.7, 1.0], dtype=x.dtype)
    noisy = path.mix(x, noise, t)
    assert torch.allclose(path.velocity_from_data(x, noisy, t, 0.05), noise - x)
    assert torch.allclose(path.data_from_velocity(noise - x, noisy, t), x)


def test_floor_bounds_the_divisor() -> None:
    x, noise = state(2, 3), state(2, 3, seed=1)
    t = torch.tensor([0.0, 0.01], dtype=x.dtype)
    noisy = path.mix(x, noise, t)
    found = path.velocity_from_data(x, noisy, t, 0.05)
    assert torch.allclose(found, (noise - x) * t[:, None] / 0.05)


def test_score_of_a_gaussian() -> None:
    """Data N(m, s^2): the score of x_t follows from its variance, with no use of the path."""
    m, s = 0.7, 0.5
    t = torch.tensor([0.05, 0.3, 0.8, 1.0], dtype=torch.float64)
    x = state(4, 3)
    variance = (1 - t) ** 2 * s**2 + t**2
    drift = (t - (1 - t) * s**2) / variance
    v = drift[:, None] * (x - (1 - t)[:, None] * m) - m
    score = -(x - (1 - t)[:, None] * m) / variance[:, None]
    assert (path.score_from_velocity(v, x, t) - score).abs().max() < 1e-12


def test_leafwise_keeps_the_leaves_apart() -> None:
    a = {"image": torch.ones(2, 3), "cls": torch.ones(2)}
    b = {"cls": torch.full((2,), 5.0), "image": torch.zeros(2, 3)}
    total = path.leafwise(torch.add, a, b)
    assert total["image"].tolist() == [[1, 1, 1]] * 2 and total["cls"].tolist() == [6, 6]
