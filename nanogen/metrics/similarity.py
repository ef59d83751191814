"""How alike two images are: PSNR and SSIM of 8-bit images, one value for each pair.

    psnr(images, others)         # both uint8 [B, 3, H, W] -> float64 [B], in decibels
    ssim(images, others)         # -> float64 [B], 1 for equal images

Both look at `grey levels / 255` and are computed in float64, so that neither the device nor the
batch shows in a printed digit.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from nanogen.errors import MetricError
from nanogen.types import to_uint8

Quantise = Literal["round", "truncate"]

SMALLEST_ERROR = 1e-10
"""mean squared error of equal images, which gives them 100 dB"""
SIGMA = 1.5
RADIUS = 5
"""of the Gaussian window, in pixels: 11 x 11"""
STABILISERS = (0.01**2, 0.03**2)
"""C1 and C2 for values in [0, 1]"""


def quantised(images: Tensor, how: Quantise = "round") -> Tensor:
    """[0, 1] floats to 8-bit grey levels, clamped.

    Rounding is right; truncation, which darkens by half a level and shifts 63 of the 256 levels
    even of a perfect autoencoder, is what published reconstruction scores were measured with.
    """
    if how == "round":
        return to_uint8(images)
    return images.clamp(0, 1).mul(255).to(torch.uint8)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio: `-10 log10` of the mean squared error over channels and pixels.

    uint8 [B, C, H, W] each -> float64 [B], at most 100 dB.
    """
    gap = (images.int() - others.int()).square().flatten(1)
    error = gap.sum(1).double() / (gap.shape[1] * 255**2)
    return -10 * error.clamp(min=SMALLEST_ERROR).log10()


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), mean over channels and all pixels.

    uint8 [B, C, H, W] each -> float64 [B]. A Gaussian window of 1.5 px, 11 x 11, over images that
    are mirrored at their borders: the map has a value at every pixel, unlike that of scikit-image,
    which cuts the border off. MetricError below 6 px a side, where there is nothing to mirror.
    """
    if min(images.shape[-2:]) <= RADIUS:
        raise MetricError(
            f"SSIM needs images of at least {RADIUS + 1} px a side, not "
            f"{min(images.shape[-2:])}; leave it out"
        )
    one, other = images.double() / 255, others.double() / 255
    mean, other_mean = _blurred(one), _blurred(other)
    # A difference of nearly equal numbers: rounding can leave a variance just below 0.
    variance = (_blurred(one * one) - mean * mean).clamp(min=0)
    other_variance = (_blurred(other * other) - other_mean * other_mean).clamp(min=0)
    covariance = _blurred(one * other) - mean * other_mean
    c1, c2 = STABILISERS
    likeness = (2 * mean * other_mean + c1) * (2 * covariance + c2)
    most = (mean * mean + other_mean * other_mean + c1) * (variance + other_variance + c2)
    return (likeness / most).flatten(1).mean(1)


def _blurred(x: Tensor) -> Tensor:
    """Every channel of [B, C, H, W] under the Gaussian window, of the same size."""
    places = torch.arange(-RADIUS, RADIUS + 1, dtype=x.dtype, device=x.device)
    window = torch.exp(-((places / SIGMA) ** 2) / 2)
    window = window / window.sum()
    planes = functional.pad(x.flatten(0, 1)[:, None], (RADIUS,) * 4, mode="reflect")
    rows = functional.conv2d(planes, window.reshape(1, 1, 1, -1))
    return functional.conv2d(rows, window.reshape(1, 1, -1, 1)).reshape(x.shape)
