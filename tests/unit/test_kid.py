"""KID: torch-fidelity's value, a slow formula, and what it is around zero."""

from __future__ import annotations

import numpy
import pytest
import torch

from nanogen.errors import MetricError
from nanogen.metrics import kid as module
from nanogen.metrics.kid import discrepancy, kid


def normal(seed: int, n: int, d: int) -> torch.Tensor:
    return torch.from_numpy(numpy.random.RandomState(seed).randn(n, d))


GENERATED, REAL = normal(2, 400, 32), normal(3, 500, 32) * 1.1 + 0.1


def test_golden_value_of_torch_fidelity():
    found = kid(GENERATED, REAL, subsets=10, size=100)
    assert found.mean == pytest.approx(0.017399993023907222, rel=1e-10)
    assert found.deviation == pytest.approx(0.013525076629999258, rel=1e-10)


def test_the_formula_of_torch_fidelity():
    theirs = pytest.importorskip("torch_fidelity.metric_kid").kid_features_to_metric
    expected = theirs(GENERATED, REAL, kid_subsets=7, kid_subset_size=150, rng_seed=module.SEED)
    found = kid(GENERATED, REAL, subsets=7, size=150)
    mean, std = (expected[f"kernel_inception_distance_{part}"] for part in ("mean", "std"))
    assert found.mean == pytest.approx(mean, rel=1e-6)
    assert found.deviation == pytest.approx(std, rel=1e-6)


def test_pair_by_pair():
    a, b = normal(0, 6, 3), normal(1, 6, 3) + 1
    value = 0.0
    for i in range(6):
        for j in range(6):
            if i != j:
                value += ((a[i] @ a[j] / 3 + 1) ** 3 + (b[i] @ b[j] / 3 + 1) ** 3).item() / 30
            value -= 2 * ((a[i] @ b[j] / 3 + 1) ** 3).item() / 36
    assert discrepancy(a, b).item() == pytest.approx(value, abs=1e-12)


def test_equal_distributions_are_around_zero_and_may_be_below():
    values = [kid(normal(i, 60, 4), normal(99 + i, 60, 4), 1, 50).mean for i in range(40)]
    assert min(values) < 0 < max(values)
    assert abs(numpy.mean(values)) < 3 * numpy.std(values) / 40**0.5


def test_too_few_samples_are_refused():
    with pytest.raises(MetricError, match="has 400 generated and 500 real"):
        kid(GENERATED, REAL)
