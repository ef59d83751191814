"""Fréchet distance: closed forms, an independent implementation, and the law of its bias."""

from __future__ import annotations

import numpy
import pytest
import scipy.linalg
import torch

from nanogen.errors import MetricError
from nanogen.metrics.frechet import expected_distance, frechet_distance
from nanogen.metrics.gaussian import Gaussian, accumulate


def gaussian(mean: object, covariance: object) -> Gaussian:
    return Gaussian(torch.tensor(mean).double(), torch.tensor(covariance).double(), 1000)


def normal(seed: int, n: int, d: int) -> torch.Tensor:
    return torch.from_numpy(numpy.random.RandomState(seed).randn(n, d))


EYE = numpy.eye(8)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        (gaussian(numpy.zeros(8), EYE), gaussian(numpy.full(8, 0.5), EYE), 2.0),
        (gaussian(numpy.zeros(8), EYE), gaussian(numpy.zeros(8), 4 * EYE), 8.0),
        (gaussian([0, 0], [[1, 0], [0, 4]]), gaussian([0, 0], [[9, 0], [0, 16]]), 8.0),
    ],
)
def test_closed_forms(a: Gaussian, b: Gaussian, distance: float) -> None:
    assert frechet_distance(a, b) == pytest.approx(distance, abs=1e-9)
    assert frechet_distance(b, a) == pytest.approx(distance, abs=1e-9)


def test_golden_value_of_torch_fidelity() -> None:
    r = numpy.random.RandomState(0)
    mix = r.randn(16, 16) / 4
    x = torch.from_numpy(r.randn(500, 16) @ mix + 0.1)
    y = torch.from_numpy(r.randn(700, 16) @ (mix * 1.2) + 0.3)
    assert frechet_distance(Gaussian.of(x), Gaussian.of(y)) == pytest.approx(1.6147257436, abs=1e-9)


def test_rotation_changes_nothing_and_self_distance_is_zero() -> None:
    x, y = normal(1, 200, 12), normal(2, 300, 12) * 1.3 + 0.2
    turn = torch.linalg.qr(normal(3, 12, 12)).Q
    distance = frechet_distance(Gaussian.of(x), Gaussian.of(y))
    assert frechet_distance(Gaussian.of(x @ turn), Gaussian.of(y @ turn)) == pytest.approx(distance)
    assert frechet_distance(Gaussian.of(x), Gaussian.of(x)) < 1e-6


def test_singular_covariances_equal_the_nuclear_norm_formula() -> None:
    x, y = normal(4, 50, 64), normal(5, 40, 64) + 0.1
    a, b = Gaussian.of(x), Gaussian.of(y)
    centred = [(f - f.mean(0)).numpy() / (len(f) - 1) ** 0.5 for f in (x, y)]
    overlap = scipy.linalg.svdvals(centred[0] @ centred[1].T).sum()
    gap = (a.mean - b.mean).square().sum().item()
    expected = gap + a.covariance.trace().item() + b.covariance.trace().item() - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-4)


def test_moments_from_uneven_float32_chunks_far_from_zero_match_numpy() -> None:
    features = (100 + normal(6, 1000, 5)).float()
    sums: dict[str, torch.Tensor] = {}
    for part in features.split([1, 7, 500, 492]):
        accumulate(sums, part, "some/")
    assert {name: value.dtype for name, value in sums.items()} == dict.fromkeys(
        ("some/n", "some/total", "some/outer"), torch.float64
    )
    found = Gaussian.of_sums(sums, "some/")
    expected = numpy.cov(features.double().numpy(), rowvar=False)
    numpy.testing.assert_allclose(found.covariance.numpy(), expected, atol=1e-9)
    numpy.testing.assert_allclose(found.mean.numpy(), features.double().mean(0), rtol=1e-13)
    assert found.n == 1000


def test_moments_of_centred_features_match_numpy_to_the_last_digits() -> None:
    features = normal(6, 1000, 5)
    sums: dict[str, torch.Tensor] = {}
    for part in features.split([1, 7, 500, 492]):
        accumulate(sums, part)
    expected = numpy.cov(features.numpy(), rowvar=False)
    numpy.testing.assert_allclose(Gaussian.of_sums(sums).covariance.numpy(), expected, atol=1e-12)


def test_sums_are_added_to_in_place_and_reading_them_changes_nothing() -> None:
    sums: dict[str, torch.Tensor] = {}
    accumulate(sums, normal(0, 9, 4))
    places = {name: value.data_ptr() for name, value in sums.items()}
    first = Gaussian.of_sums(sums)
    accumulate(sums, normal(1, 9, 4))
    assert {name: value.data_ptr() for name, value in sums.items()} == places
    both = Gaussian.of(torch.cat([normal(0, 9, 4), normal(1, 9, 4)]))
    torch.testing.assert_close(Gaussian.of_sums(sums).covariance, both.covariance)
    torch.testing.assert_close(first.covariance, Gaussian.of(normal(0, 9, 4)).covariance)


def test_permuted_samples_are_the_same_gaussian() -> None:
    x, y = normal(7, 300, 10), normal(8, 200, 10) + 0.5
    order = torch.from_numpy(numpy.random.RandomState(0).permutation(300))
    distance = frechet_distance(Gaussian.of(x), Gaussian.of(y))
    assert frechet_distance(Gaussian.of(x[order]), Gaussian.of(y)) == pytest.approx(distance, 1e-9)


def test_an_unknown_number_of_reference_images_adds_no_bias() -> None:
    reference = Gaussian(torch.zeros(8).double(), torch.eye(8).double(), 0)
    assert expected_distance(reference, 100) == pytest.approx((8 + 8 * 9 / 4) / 100)


def test_expected_distance_is_the_bias_of_a_finite_sample() -> None:
    scale = torch.linspace(0.2, 2.0, 16).double()
    reference = Gaussian(torch.zeros(16).double(), torch.diag(scale**2), 10**9)
    draws = [Gaussian.of(normal(100 + i, 400, 16) * scale) for i in range(60)]
    mean = numpy.mean([frechet_distance(g, reference) for g in draws])
    assert expected_distance(reference, 400) == pytest.approx(mean, rel=0.06)


def test_expected_distance_of_the_identity_is_its_closed_form() -> None:
    d, n = 8, 100
    expected = (d + d * (d + 1) / 4) * (1 / n + 1 / 1000)
    assert expected_distance(gaussian(numpy.zeros(d), EYE), n) == pytest.approx(expected)


def test_expected_distance_counts_the_reference_as_a_sample_too() -> None:
    pairs = [(normal(i, 500, 12), normal(1000 + i, 700, 12)) for i in range(40)]
    found = [frechet_distance(Gaussian.of(a), Gaussian.of(b)) for a, b in pairs]
    reference = Gaussian(torch.zeros(12).double(), torch.eye(12).double(), 700)
    assert expected_distance(reference, 500) == pytest.approx(numpy.mean(found), rel=0.08)


def test_one_sample_has_no_covariance() -> None:
    with pytest.raises(MetricError, match="at least 2 samples, has 1"):
        Gaussian.of(normal(0, 1, 4))
