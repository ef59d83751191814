"""The learning rate as a function of the images seen: the published tables, and refusals."""

from __future__ import annotations

import math

import pytest

from nanogen import recipes
from nanogen.errors import ConfigError
from nanogen.train.schedule import Schedule


def rate(preset: str, step: int) -> float:
    """The learning rate of optimiser step `step`, counted from 0."""
    run = recipes.preset(preset)
    factor = run.schedule.factor(step * run.train.batch, run.train.batch, run.train.images)
    return run.optimiser.lr * factor


# Executed from the released configs: see arXiv 2606.24888 and its repository.
@pytest.mark.parametrize(
    "preset, step, expected",
    [
        ("imagenet/jit", 0, 2e-4),
        ("imagenet/jit", 50_039, 2e-4),
        ("imagenet/jit", 50_040, 2e-4),
        ("imagenet/jit", 75_000, 1.952745e-4),
        ("imagenet/jit", 100_079, 1.905265e-4),
        ("t2i/jit", 0, 2e-4),
        ("t2i/jit", 49_999, 2e-4),
        ("t2i/jit", 50_000, 2e-4),
        ("t2i/jit", 99_999, 1.905265e-4),
    ],
)
def test_released(preset: str, step: int, expected: float) -> None:
    assert rate(preset, step) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "preset, steps, epoch, warm, decayed",
    [("imagenet/jit", 100_080, 1251, 40, 800), ("t2i/jit", 100_000, 10_000, 5, 100)],
)
def test_released_is_the_formula_of_its_code(
    preset: str, steps: int, epoch: int, warm: int, decayed: int
) -> None:
    """Epochs of warm-up that starts at the full rate, then linear until long after the run."""
    first, last = warm * epoch, decayed * epoch
    for step in (*range(0, steps, 997), steps - 1):
        fall = 0.0 if step < first else (step - first) / (last - first)
        assert rate(preset, step) == pytest.approx(2e-4 * (1 - 0.9 * fall), rel=1e-12)


@pytest.mark.parametrize(
    "preset, steps", [("imagenet/jit@paper", 100_080), ("t2i/jit@paper", 10**5)]
)
def test_paper(preset: str, steps: int) -> None:
    """A linear rise from zero to 2e-4, then a linear fall that reaches 2e-5 at the end."""
    half = steps // 2
    assert rate(preset, 0) == pytest.approx(2e-4 / half)
    assert rate(preset, half - 1) == rate(preset, half) == 2e-4
    assert rate(preset, half + half // 2) == pytest.approx(1.1e-4)
    assert rate(preset, steps) == pytest.approx(2e-5)


def test_fidelities_differ_in_the_schedule_only() -> None:
    released, paper = (recipes.preset(name) for name in ("imagenet/jit", "imagenet/jit@paper"))
    rows = recipes.config.differences(released, paper)
    assert {path.partition(".")[0] for path, _, _ in rows} == {"name", "schedule"}


def test_lengths() -> None:
    assert recipes.preset("imagenet/jit").train.images == 100_080 * 1024
    assert recipes.preset("t2i/jit").train.images == 100_000 * 1024


def test_warmup_counts_from_the_first_step() -> None:
    schedule = Schedule(warmup=40)
    assert [schedule.factor(seen, 10, 100) for seen in (0, 10, 30, 40)] == [0.25, 0.5, 1.0, 1.0]


def test_cosine() -> None:
    schedule = Schedule(shape="cosine", final=0.2)
    for seen in (0, 25, 50, 75):
        expected = 0.2 + 0.8 * (1 + math.cos(math.pi * seen / 100)) / 2
        assert schedule.factor(seen, 1, 100) == pytest.approx(expected)
    assert schedule.factor(100, 1, 100) == schedule.factor(10**9, 1, 100) == 0.2


def test_constant_by_default() -> None:
    assert {Schedule().factor(seen, 1, 100) for seen in range(0, 200, 7)} == {1.0}


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"warmup": -1}, "warmup"),
        ({"warmup": 50, "decay_start": 40, "final": 0.5}, "warmup"),
        ({"final": 1.5}, "final"),
        ({"final": -0.1}, "final"),
        ({"decay_start": 60, "decay_end": 60, "final": 0.5}, "decay_end"),
        ({"warmup": 200, "final": 0.5}, "warmup"),
    ],
)
def test_contradictions_name_the_field(fields: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=f"schedule.{named}"):
        Schedule(**fields).check(100)


def test_an_end_before_the_warm_up_names_what_was_set() -> None:
    """Neither end of the decay was: they follow from the warm-up and the length of the run."""
    with pytest.raises(ConfigError) as caught:
        Schedule(warmup=3200, shape="cosine", final=0.0).check(999)
    text = str(caught.value)
    assert "schedule.warmup=3200" in text and "train.images=999" in text
    assert "decay" not in text
    with pytest.raises(ConfigError, match=r"decay_end=50 must come after schedule.warmup=60"):
        Schedule(warmup=60, decay_end=50, final=0.5).check(100)
    with pytest.raises(ConfigError, match=r"train.images=100 must come after schedule.decay_start"):
        Schedule(decay_start=200, final=0.5).check(100)
