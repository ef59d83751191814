"""Standard errors over prompts: they know which images belong together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nanogen.metrics.base import Outcomes
from nanogen.metrics.uncertainty import Judged, spread


def judged(values: list[float], prompts: list[int], tags: list[str] | None = None) -> Judged:
    names = tuple(map(str, prompts))
    return Judged(Outcomes(names, tuple(tags or [""] * len(values)), tuple(values)))


def test_the_error_agrees_with_the_binomial_one_over_prompts():
    """One image a prompt: sqrt(p (1 - p) / n). Four equal images a prompt add nothing to that."""
    values, prompts = [1.0] * 24 + [0.0] * 36, list(range(60))
    error = math.sqrt(0.4 * 0.6 / 60)
    assert judged(values, prompts).resampled().std() == pytest.approx(error, rel=0.1)
    assert judged(values * 4, prompts * 4).resampled().std() == pytest.approx(error, rel=0.1)
    # As if independent, those 240 images would have half of it.
    naive = judged(values * 4, list(range(240))).resampled().std()
    assert naive == pytest.approx(error / 2, rel=0.1)
    # Images that differ within prompts, and prompts that do not differ, have hardly any.
    mixed = [float(k % 5 < 2) for k in range(240)]
    assert judged(mixed, [k // 4 for k in range(240)]).resampled().std() < error / 2


def test_means_over_tags_weigh_kinds_alike():
    found = judged([1, 1, 1, 0, 0, 0], [0, 1, 2, 3, 4, 5], ["a"] * 4 + ["b"] * 2)
    assert found.tags() == ("a", "b")
    assert found.mean_of_tags() == pytest.approx(0.375)
    assert found.mean_of_images() == pytest.approx(0.5)
    assert found.score_of_images({}, "a").value == 0.75 and found.score_of_images({}, "a").n == 4


def test_the_error_of_a_mean_over_tags_is_that_of_independent_strata():
    rng = np.random.default_rng(0)
    values = [*(rng.random(200) < 0.3).astype(float), *(rng.random(50) < 0.6).astype(float)]
    found = judged(values, list(range(250)), ["a"] * 200 + ["b"] * 50)
    parts = [np.std(values[:200]) / 200**0.5, np.std(values[200:]) / 50**0.5]
    score = found.score_of_tags({})
    assert score.standard_error == pytest.approx(math.hypot(*parts) / 2, rel=0.1)
    assert score.outcomes == found.outcomes


def test_no_spread_is_not_a_spread_of_zero():
    assert judged([1.0] * 9, list(range(9))).score_of_images({}).standard_error is None
    assert judged([1.0, 0.0], [5, 5]).score_of_images({}).standard_error is None
    assert spread([0.25, 0.75]) == pytest.approx(np.sqrt(0.125))


def test_errors_are_the_same_every_time():
    one, other = (judged([float(k % 3 == 0) for k in range(50)], list(range(50))) for _ in "ab")
    assert one.score_of_images({}).standard_error == other.score_of_images({}).standard_error
