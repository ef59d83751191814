"""Power-function averages, and averages of any length made of them afterwards."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import nn

from nanogen.errors import CheckpointError, ConfigError
from nanogen.train import posthoc
from nanogen.train.posthoc import Profile, mixture
from nanogen.train.power_ema import WIDEST, PowerEma, exponent
from nanogen.train.settings import AveragedTraining, without_habits


@pytest.mark.parametrize("width, gamma", [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_of_the_paper(width: float, gamma: float) -> None:
    assert exponent(width) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("width", [0.001, 0.03, 0.07, 0.15, 0.25, 0.2886])
def test_exponent_is_the_inverse_of_the_width(width: float) -> None:
    """sigma = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)), and that is the deviation of
    tau / t.
    """
    gamma = exponent(width)
    assert math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3)) == pytest.approx(width)
    moments = [(gamma + 1) / (gamma + 1 + power) for power in (1, 2)]
    assert math.sqrt(moments[1] - moments[0] ** 2) == pytest.approx(width, rel=1e-6)


def weights(steps: int, size: int = 4, seed: int = 0) -> torch.Tensor:
    """[steps, size]: a random walk."""
    draws = torch.randn(steps, size, generator=torch.Generator().manual_seed(seed))
    return draws.cumsum(0)


def followed(path: torch.Tensor, widths: tuple[float, ...], batch: int = 8) -> list[PowerEma]:
    """The averages after each step of a path of weights (copies)."""
    p = nn.Parameter(torch.full_like(path[0], 100.0))
    averages, found = PowerEma({"w": p}, widths), []
    for step, value in enumerate(path, start=1):
        p.data.copy_(value)
        averages.update(step * batch, batch)
        found.append(PowerEma({"w": p}, widths))
        found[-1].restore(averages.named())
    return found


@pytest.mark.parametrize("width", [0.05, 0.10, 0.25])
def test_each_step_weighs_the_integral_of_its_images(width: float) -> None:
    """Step k of n weighs (k / n)^(gamma + 1) - ((k - 1) / n)^(gamma + 1): nothing is left of what
    was there before training.
    """
    path, gamma = weights(40), exponent(width)
    for count in (1, 2, 13, 40):
        edges = (torch.arange(count + 1, dtype=torch.float64) / count) ** (gamma + 1)
        expected = (edges.diff()[:, None] * path[:count].double()).sum(0)
        found = followed(path[:count], (width,))[-1].values[width]["w"]
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_inner_products_against_quadrature() -> None:
    for a, b in (((1.0, 6.9), (1.0, 17.0)), ((0.4, 6.9), (1.0, 17.0)), ((3.0, 2.5), (2.0, 0.3))):
        one, two = Profile(*a), Profile(*b)

        def product(tau: float, one: Profile = one, two: Profile = two) -> float:
            return math.prod(
                (p.gamma + 1) * tau**p.gamma / p.end ** (p.gamma + 1) for p in (one, two)
            )

        expected, _ = integrate.quad(product, 0, min(one.end, two.end), epsabs=1e-12)
        assert one.inner(two) == pytest.approx(expected, rel=1e-7)
        assert two.inner(one) == pytest.approx(one.inner(two))


def profiles(count: int, widths: tuple[float, ...] = (0.05, 0.10)) -> list[Profile]:
    return [
        Profile(number / count, exponent(width))
        for number in range(1, count + 1)
        for width in widths
    ]


def test_a_stored_profile_is_found_and_nothing_else() -> None:
    stored = profiles(16)
    for number in (31, 30, 17):
        found = mixture(stored[number], stored)
        expected = np.zeros(32)
        expected[number] = 1
        assert found.factors == pytest.approx(expected, abs=1e-9)
        assert found.error < 1e-6


@pytest.mark.parametrize("width", [0.03, 0.07, 0.15])
def test_the_mixture_is_the_nearest_profile(width: float) -> None:
    """Against a least squares fit of the profiles on a fine grid."""
    stored, wanted = profiles(8), Profile(1.0, exponent(width))
    grid = (np.arange(20_000) + 0.5) / 20_000

    def drawn(p: Profile) -> np.ndarray:
        inside = np.minimum(grid / p.end, 1.0)
        return (p.gamma + 1) / p.end * inside**p.gamma * (grid <= p.end)

    columns = np.stack([drawn(p) for p in stored], 1)
    factors = np.linalg.lstsq(columns, drawn(wanted), rcond=None)[0]
    found = mixture(wanted, stored)
    assert found.factors == pytest.approx(factors, abs=2e-3)
    missed = np.linalg.norm(columns @ factors - drawn(wanted)) / np.linalg.norm(drawn(wanted))
    assert found.error == pytest.approx(missed, rel=0.01)


def test_more_snapshots_come_nearer() -> None:
    wanted = Profile(1.0, exponent(0.07))
    errors = [mixture(wanted, profiles(count)).error for count in (1, 4, 16, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.05 and errors[2] < 0.004 and errors[3] < 3e-4


STEPS = 320


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> tuple[Path, torch.Tensor]:
    """Sixteen snapshots of two widths, and the path of the weights."""
    folder, path = tmp_path_factory.mktemp("run"), weights(STEPS, seed=3)
    for step, averages in enumerate(followed(path, (0.05, 0.10)), start=1):
        if step % 20 == 0:
            posthoc.keep(folder, averages, step * 8)
    return folder, path


def loaded(folder: Path, width: float) -> torch.Tensor:
    p = nn.Parameter(torch.zeros(4))
    assert posthoc.load(folder, width, {"w": p}) == STEPS * 8
    return p.data


@pytest.mark.parametrize("width", [0.05, 0.10])
def test_a_width_that_was_tracked_is_given_back(kept, width: float) -> None:
    folder, path = kept
    made = posthoc.reconstruct(folder, width)
    assert (made.file.name, made.snapshots) == (f"posthoc-{width:g}.safetensors", 16)
    assert made.error < 1e-6
    exact = followed(path, (width,))[-1].values[width]["w"]
    torch.testing.assert_close(loaded(folder, width), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width, tolerance", [(0.07, 0.01), (0.085, 0.01), (0.03, 0.05)])
def test_another_width_is_near_the_average_of_that_width(kept, width, tolerance) -> None:
    folder, path = kept
    exact = followed(path, (width,))[-1].values[width]["w"]
    made = posthoc.reconstruct(folder, width)
    spread = path.std()
    assert made.error < tolerance
    assert (loaded(folder, width) - exact).abs().max() < tolerance * spread
    # Neither tracked average would have done.
    for other in (0.05, 0.10):
        wrong = followed(path, (other,))[-1].values[other]["w"]
        assert (wrong - exact).abs().max() > 3 * (loaded(folder, width) - exact).abs().max()


def test_names() -> None:
    assert posthoc.name_of(0.070) == "posthoc-0.07"
    assert posthoc.width_of("posthoc-0.070") == 0.07
    for other in ("ema", "raw", "posthoc", "posthoc-", "posthoc-long", "0.07"):
        assert posthoc.width_of(other) is None


@pytest.mark.parametrize("width", [0.0, -0.1, 0.289, 1.0, math.nan])
def test_widths_out_of_range(kept, width: float) -> None:
    with pytest.raises(ConfigError, match="--width .*must lie between 0 and 0.2887"):
        posthoc.reconstruct(kept[0], width)


def test_a_width_too_far_from_what_was_kept(kept) -> None:
    with pytest.raises(ConfigError, match=r"16 snapshots of the widths 0.05, 0.1 come no nearer"):
        posthoc.reconstruct(kept[0], 0.005)


def test_nothing_kept_nothing_made_and_broken_files(kept, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"kept no averages; train with train.posthoc="):
        posthoc.reconstruct(tmp_path, 0.07)
    with pytest.raises(CheckpointError, match=r"make it with: nanogen ema .* --width 0.07"):
        posthoc.load(tmp_path, 0.07, {})
    posthoc.reconstruct(kept[0], 0.09)
    with pytest.raises(CheckpointError, match="other parameters"):
        posthoc.load(kept[0], 0.09, {"v": nn.Parameter(torch.zeros(4))})
    (tmp_path / "averages").mkdir()
    (tmp_path / "averages" / "000000000008.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        posthoc.reconstruct(tmp_path, 0.07)


@pytest.mark.parametrize(
    "fields, text",
    [
        ({"posthoc": (0.05, 0.3)}, r"train.posthoc=0.05,0.3: .* between 0 and 0.2887"),
        ({"posthoc": (0.05, 0.05)}, "different widths"),
        # The names under which they are stored would be the same.
        ({"posthoc": (0.05, 0.05000001)}, "different widths"),
        ({"posthoc": (0.0,)}, "train.posthoc=0.0"),
        ({"posthoc_every": 10}, "no effect without train.posthoc"),
        ({"posthoc": (0.05,), "posthoc_every": 0}, "train.posthoc_every=0"),
    ],
)
def test_settings_are_checked(fields, text) -> None:
    with pytest.raises(ConfigError, match=text):
        AveragedTraining(**fields)


def test_when_snapshots_are_due() -> None:
    assert AveragedTraining(images=64_000, posthoc=(0.1,)).snapshot_every == 4_000
    assert AveragedTraining(posthoc=(0.1,), posthoc_every=7).snapshot_every == 7
    # When they are written is a habit; which widths there are is not.
    assert without_habits(AveragedTraining(posthoc=(0.1,), posthoc_every=7)) == AveragedTraining(
        posthoc=(0.1,)
    )
    assert WIDEST == pytest.approx(math.sqrt(1 / 12))
