"""Inception score: known limits and the values of two other implementations."""

from __future__ import annotations

import numpy
import pytest
import torch

from nanogen.errors import MetricError
from nanogen.metrics.inception_score import inception_score, score_of_diffusion_bench

LOGITS = torch.from_numpy(numpy.random.RandomState(1).randn(1000, 10) * 2)
SORTED = torch.from_numpy(12 * numpy.eye(10)[numpy.repeat(numpy.arange(10), 100)])


def test_golden_value_of_torch_fidelity() -> None:
    score = inception_score(LOGITS)
    assert score.mean == pytest.approx(2.6123694527919215, abs=1e-12)
    assert score.deviation == pytest.approx(0.07010071366042918, abs=1e-12)


def test_golden_value_of_the_papers_code() -> None:
    assert score_of_diffusion_bench(LOGITS).mean == pytest.approx(2.611437678337097, rel=1e-6)
    assert score_of_diffusion_bench(SORTED).mean == pytest.approx(9.603789234161377, rel=1e-6)
    # Without its 1e-10 and in float64 the same permutation gives nearly the same.
    assert inception_score(LOGITS, seed=0).mean == pytest.approx(2.611437678337097, abs=1e-5)


def test_golden_values_without_a_permutation() -> None:
    assert inception_score(LOGITS, seed=None).mean == pytest.approx(2.621771739284782, abs=1e-12)
    assert inception_score(SORTED, seed=None).mean == pytest.approx(1.0, abs=1e-9)


def test_the_papers_code_leaves_the_rest_of_the_parts_out() -> None:
    # 1009 samples in parts of 100: the last nine of the permutation count nowhere.
    logits = torch.from_numpy(numpy.random.RandomState(2).randn(1009, 10))
    left_out = numpy.random.RandomState(0).permutation(1009)[1000:]
    expected = score_of_diffusion_bench(logits).mean
    logits[left_out] = 0
    assert score_of_diffusion_bench(logits).mean == expected


def test_logits_that_say_nothing_score_one() -> None:
    assert inception_score(torch.zeros(100, 10)).mean == pytest.approx(1.0)


def test_sure_and_balanced_logits_score_nearly_the_number_of_classes() -> None:
    assert inception_score(SORTED * 50 / 12).mean == pytest.approx(10, abs=0.5)
    assert inception_score(SORTED * 50 / 12, splits=1).mean == pytest.approx(10, abs=1e-9)


def test_all_samples_count_where_the_parts_are_uneven() -> None:
    # 7 parts of 1000 samples: bounds i * n // 7, so no sample is left out.
    order = numpy.random.RandomState(2020).permutation(1000)
    p = LOGITS.softmax(1).numpy()[order]
    parts = [p[i * 1000 // 7 : (i + 1) * 1000 // 7] for i in range(7)]
    values = [numpy.exp((q * numpy.log(q / q.mean(0))).sum(1).mean()) for q in parts]
    assert sum(map(len, parts)) == 1000
    assert inception_score(LOGITS, splits=7).mean == pytest.approx(numpy.mean(values), abs=1e-12)


def test_fewer_samples_than_splits_are_refused() -> None:
    with pytest.raises(MetricError, match="has 5"):
        inception_score(LOGITS[:5])
