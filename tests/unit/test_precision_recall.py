"""Precision and recall: an independent implementation's values, limits, and a brute-force check."""

from __future__ import annotations

import numpy
import pytest
import torch

from nanogen.errors import MetricError
from nanogen.metrics import precision_recall as module
from nanogen.metrics.precision_recall import PrecisionRecall, precision_recall


def normal(seed: int, n: int, d: int) -> torch.Tensor:
    return torch.from_numpy(numpy.random.RandomState(seed).randn(n, d).astype("float32"))


def test_golden_values_of_torch_fidelity() -> None:
    found = precision_recall(normal(4, 300, 8) * 0.7, normal(5, 400, 8))
    assert found == PrecisionRecall(pytest.approx(0.98), pytest.approx(0.4075))


def test_equal_sets_and_far_sets() -> None:
    x = normal(0, 50, 4)
    assert precision_recall(x, x) == PrecisionRecall(1.0, 1.0)
    assert precision_recall(x, x + 1000) == PrecisionRecall(0.0, 0.0)


def test_a_line_by_hand() -> None:
    # With k = 1 the real balls are [-1, 1], [0, 2], [6, 14], ...: 3 and 5 lie between them.
    real = torch.tensor([[0.0], [1.0], [10.0], [14.0]])
    generated = torch.tensor([[0.5], [3.0], [5.0], [2.0]])
    found = precision_recall(generated, real, k=1)
    assert found.precision == 0.5
    # Generated radii are 1.5, 1, 2, 1: [-1, 2], [2, 4], [3, 7], [1, 3] hold 0 and 1 only.
    assert found.recall == 0.5


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(6, 101, 6), normal(7, 77, 6)
    whole = precision_recall(a, b)
    monkeypatch.setattr(module, "CHUNK", 10)
    assert precision_recall(a, b) == whole


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(MetricError, match="have 3 generated and 50 real"):
        precision_recall(normal(0, 3, 4), normal(1, 50, 4))
