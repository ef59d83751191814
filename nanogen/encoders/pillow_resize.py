"""Pillow's resize of 8-bit images, to the last bit, on any device and for whole batches.

    resize(images, (800, 1216), BILINEAR)          # uint8 [B, C, H, W] -> [B, C, 800, 1216]

Published scorers were made for images that Pillow resized: its filters widen where they shrink, its
two passes (along x, then along y) are each rounded to 8 bits, and its weights are integers of 22
bits. Here as there all sums are of integers, so neither device nor batch can change a pixel.

Pillow 13 turns the passes round for some shapes, of which the height shrinks much more than the
width: single grey levels differ. No published score was made with it, so that is not followed here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BITS = 22
"""of the fraction of a weight: 8 bits of a pixel and 2 for sums that overshoot complete 32"""


@dataclass(frozen=True)
class Filter:
    """A kernel of `weight`, which is zero from `support` on, in pixels of the smaller image."""

    support: float
    weight: Callable[[np.ndarray], np.ndarray]


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -1/2."""
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


BILINEAR = Filter(1, _triangle)
BICUBIC = Filter(2, _cubic)


def resize(
    images: Tensor,
    size: tuple[int, int],
    filter: Filter,
    window: tuple[slice, slice] | None = None,
) -> Tensor:
    """uint8 [..., H, W] -> uint8 [..., *size], or only the `window` (rows, columns) of that."""
    rows, columns = window or (slice(None), slice(None))
    narrowed = _along(images.movedim(-2, -1), size[1], filter, columns)
    return _along(narrowed.movedim(-2, -1), size[0], filter, rows)


def _along(images: Tensor, size: int, filter: Filter, part: slice) -> Tensor:
    """uint8 [..., N, M] -> the `part` of `size` places in place of N.

    A pass that changes no length is none: a kernel of pixels on themselves would not blur either.
    """
    length = images.shape[-2]
    if length == size:
        return images[..., part, :]
    places, weights = _taps(length, size, filter)
    places, weights = places[:, part].to(images.device), weights[:, part].to(images.device)
    wide = images.to(torch.int32)
    total = torch.full((), 1 << (BITS - 1), dtype=torch.int32, device=images.device)
    for place, weight in zip(places, weights, strict=True):
        total = total + wide.index_select(-2, place) * weight[:, None]
    return (total >> BITS).clamp(0, 255).to(torch.uint8)


def _taps(length: int, size: int, filter: Filter) -> tuple[Tensor, Tensor]:
    """For each of `size` places of the new image the old ones it is made of, int64 [T, size], and
    their weights, int32 [T, size]; unused taps have weight 0.
    """
    scale = length / size
    widening = max(scale, 1.0)
    support = filter.support * widening
    centre = (np.arange(size) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(int), 0)
    last = np.minimum((centre + support + 0.5).astype(int), length)
    places = first + np.arange((last - first).max())[:, None]
    inside = places < last
    weights = filter.weight((places - centre + 0.5) * (1 / widening)) * inside
    weights = weights / _summed(weights)
    # Rounds halves away from zero, as the cast of C after adding half of the sign does.
    whole = np.trunc(weights * (1 << BITS) + np.copysign(0.5, weights))
    return torch.from_numpy(np.where(inside, places, 0)), torch.from_numpy(whole.astype(np.int32))


def _summed(weights: np.ndarray) -> np.ndarray:
    """The sum over the first axis, added in order: numpy's own order may differ in the last bit."""
    return np.cumsum(weights, axis=0)[-1]
