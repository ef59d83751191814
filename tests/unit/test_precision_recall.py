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


def literal(generated: torch.Tensor, real: torch.Tensor, k: int) -> PrecisionRecall:
    """Point by point, without inner products."""

    def within(points: torch.Tensor, centres: torch.Tensor) -> float:
        radii = [(centres - c).square().sum(1).sort().values[k] for c in centres]
        inside = [
            any((p - c).square().sum() <= r for c, r in zip(centres, radii, strict=True))
            for p in points
        ]
        return sum(inside) / len(inside)

    return PrecisionRecall(within(generated, real), within(real, generated))


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e7])
def test_far_from_zero_it_is_still_decided_by_the_distance(offset: float) -> None:
    """Where norms are 1e14 times the distances, inner products alone decide nothing."""
    generated, real = normal(8, 40, 3).double() + offset, normal(9, 50, 3).double() + offset
    expected = literal(generated, real, 3)
    assert precision_recall(generated, real) == expected
    assert 0.5 < expected.precision < 1


def test_points_that_occur_often_lie_in_balls_without_extent() -> None:
    x = normal(10, 5, 4).double() + 0.1
    often = x.repeat(20, 1)
    assert precision_recall(often, often[torch.randperm(100)]) == PrecisionRecall(1.0, 1.0)
    assert precision_recall(often + 1e-6, often) == PrecisionRecall(0.0, 0.0)


def test_the_border_counts() -> None:
    # Points of a grid: distances are exact, and each lies on the border of its neighbours' balls.
    grid = torch.cartesian_prod(*[torch.arange(6.0)] * 2)
    shifted = grid + torch.tensor([1.0, 0.0])
    assert precision_recall(shifted, grid, k=1) == literal(shifted, grid, 1)
    assert precision_recall(shifted, grid, k=1).precision == 1


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(MetricError, match="have 3 generated and 50 real"):
        precision_recall(normal(0, 3, 4), normal(1, 50, 4))
