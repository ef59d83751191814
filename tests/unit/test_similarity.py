"""PSNR and SSIM against closed forms, scipy and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from nanogen.errors import MetricError
from nanogen.metrics.similarity import psnr, quantised, ssim

LEVELS = torch.arange(256)


def noise(count: int, size: int, seed: int = 0, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator).byte()


def flat(level: int, size: int = 16) -> torch.Tensor:
    return torch.full((1, 3, size, size), level, dtype=torch.uint8)


def blurry_pair(size: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images and the same with noise: the structure that SSIM is about."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(2, 3, size, size)), (0, 0, 3, 3))
    image = (smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255
    worse = (image + rng.normal(scale=12, size=image.shape)).clip(0, 255)
    return torch.from_numpy(image.round()).byte(), torch.from_numpy(worse.round()).byte()


def scipy_ssim(one: np.ndarray, other: np.ndarray) -> float:
    """One pair [3, H, W]; scipy's "mirror" is the reflection that does not repeat the border."""
    one, other = one.astype(float) / 255, other.astype(float) / 255

    def blur(x):
        return ndimage.gaussian_filter(x, (0, 1.5, 1.5), mode="mirror", radius=(0, 5, 5))

    m, n = blur(one), blur(other)
    v, w, c = blur(one**2) - m**2, blur(other**2) - n**2, blur(one * other) - m * n
    top = (2 * m * n + 1e-4) * (2 * c + 9e-4)
    return (top / ((m**2 + n**2 + 1e-4) * (v + w + 9e-4))).mean()


def test_equal_images():
    one = noise(2, 20)
    assert psnr(one, one).tolist() == [100.0, 100.0]
    torch.testing.assert_close(ssim(one, one), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("offset", [1, 5, 100])
def test_a_constant_offset(offset):
    """Without structure, SSIM is its luminance term."""
    dark, light = flat(60), flat(60 + offset)
    expected = 20 * math.log10(255 / offset)
    assert psnr(dark, light).item() == pytest.approx(expected, abs=1e-12)
    a, b = 60 / 255, (60 + offset) / 255
    luminance = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert ssim(dark, light).item() == pytest.approx(luminance, abs=1e-12)
    # Unsigned levels must not wrap around.
    assert psnr(light, dark).item() == pytest.approx(expected, abs=1e-12)


def test_black_against_white():
    assert psnr(flat(0), flat(255)).item() == pytest.approx(0, abs=1e-12)
    assert ssim(flat(0), flat(255)).item() == pytest.approx(1e-4 / (1 + 1e-4), rel=1e-9)


def test_psnr_of_one_wrong_level():
    one, other = flat(10, 8), flat(10, 8)
    other[0, 1, 3, 4] += 7
    expected = 10 * math.log10(255**2 * 3 * 64 / 49)
    assert psnr(one, other).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [6, 11, 40])
def test_ssim_is_that_of_scipy(size):
    for one, other in (blurry_pair(size), (noise(2, size), noise(2, size, 1))):
        expected = [scipy_ssim(a, b) for a, b in zip(one.numpy(), other.numpy(), strict=True)]
        assert ssim(one, other).tolist() == pytest.approx(expected, abs=1e-9)
        torch.testing.assert_close(ssim(one, other), ssim(other, one))


def test_an_image_of_another_shape():
    one, other = noise(1, 24, channels=1)[..., :9], noise(1, 24, 1, channels=1)[..., :9]
    expected = scipy_ssim(one[0].numpy(), other[0].numpy())
    assert ssim(one, other).item() == pytest.approx(expected, abs=1e-9)


def test_both_are_those_of_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.image")
    one, other = blurry_pair()
    a, b = one.double() / 255, other.double() / 255
    expected = functional.structural_similarity_index_measure(a, b, data_range=1.0, reduction=None)
    torch.testing.assert_close(ssim(one, other), expected, atol=1e-10, rtol=0)
    expected = functional.peak_signal_noise_ratio(a, b, 1.0, dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(psnr(one, other), expected, atol=1e-5, rtol=0)
    assert 0.2 < ssim(one, other)[0] < 0.95


def test_golden_values_of_torchmetrics():
    """Those of its version 1.9; 0.9872723 is scikit-image's SSIM, which cuts the border off."""
    one = np.random.RandomState(8).randint(0, 256, (2, 64, 64, 3))
    other = (one + np.random.RandomState(9).randint(-20, 21, one.shape)).clip(0, 255)
    a, b = (torch.from_numpy(images).byte().permute(0, 3, 1, 2) for images in (one, other))
    assert psnr(a, b).mean().item() == pytest.approx(26.8901034, abs=1e-5)
    assert ssim(a, b).mean().item() == pytest.approx(0.9873630, abs=1e-5)


def test_too_small_for_a_window():
    with pytest.raises(MetricError, match="at least 6 px a side, not 5"):
        ssim(noise(1, 5), noise(1, 5))


def test_quantising():
    """A round trip through pixels in [-1, 1] is exact with rounding, and not with truncation."""
    again = (LEVELS.float() / 255 * 2 - 1 + 1) / 2
    assert torch.equal(quantised(again, "round"), LEVELS.byte())
    truncated = quantised(again, "truncate").int()
    assert (truncated != LEVELS).sum() == 63 and (LEVELS - truncated).max() == 1
    assert quantised(torch.tensor([-0.2, 1.3]), "truncate").tolist() == [0, 255]
    assert quantised(torch.tensor([-0.2, 1.3]), "round").tolist() == [0, 255]
    # On average truncation loses half a level; rounding none.
    many = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    for how, lost in (("truncate", 0.5), ("round", 0.0)):
        mean = (many * 255 - quantised(many, how).double()).mean()
        assert mean.item() == pytest.approx(lost, abs=0.005)


def test_truncation_caps_a_perfect_reconstruction():
    """One level too low at half of all values: 10 log10(2 * 255^2) = 51.1 dB."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.rand(1, 3, 200, 200, dtype=torch.float64, generator=generator)
    found = psnr(quantised(exact, "round"), quantised(exact, "truncate"))
    assert found.item() == pytest.approx(10 * math.log10(2 * 255**2), abs=0.05)
