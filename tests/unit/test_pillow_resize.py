"""The resize is Pillow's, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nanogen.encoders.pillow_resize import BICUBIC, BILINEAR, resize

FILTERS = [(BILINEAR, Image.Resampling.BILINEAR), (BICUBIC, Image.Resampling.BICUBIC)]
both = pytest.mark.parametrize(("own", "pillow"), FILTERS, ids=["bilinear", "bicubic"])


def random_image(rng: np.random.Generator, height: int, width: int, hard: bool) -> np.ndarray:
    """Noise; `hard` is of black and white only, where a bicubic filter overshoots."""
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return (image > 127).astype(np.uint8) * 255 if hard else image


def planes(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def by_pillow(image: np.ndarray, height: int, width: int, filter: Image.Resampling) -> torch.Tensor:
    """Along x, then along y: Pillow 13 would turn that round for some shapes."""
    once = Image.fromarray(image).resize((width, image.shape[0]), filter)
    return planes(np.array(once.resize((width, height), filter)))


@both
def test_any_sizes(own, pillow):
    rng = np.random.default_rng(0)
    for number in range(150):
        height, width, *size = (int(n) for n in rng.integers(1, 90, 4))
        image = random_image(rng, height, width, hard=number % 3 == 0)
        expected = by_pillow(image, size[0], size[1], pillow)
        assert torch.equal(resize(planes(image), (size[0], size[1]), own), expected)


@both
@pytest.mark.parametrize("side", [7, 64, 100, 129])
def test_squares_in_one_call_of_pillow(own, pillow, side):
    image = random_image(np.random.default_rng(1), 100, 100, hard=True)
    expected = planes(np.array(Image.fromarray(image).resize((side, side), pillow)))
    assert torch.equal(resize(planes(image), (side, side), own), expected)


@both
def test_a_window_is_a_part_of_the_whole(own, pillow):
    image = planes(random_image(np.random.default_rng(2), 31, 50, hard=False))
    whole = resize(image, (70, 23), own)
    rows, columns = slice(5, 44), slice(3, 20)
    assert torch.equal(resize(image, (70, 23), own, (rows, columns)), whole[:, rows, columns])
    assert torch.equal(resize(image, (31, 50), own, (rows, columns)), image[:, rows, columns])


def test_batches_and_layouts_change_nothing():
    images = torch.stack(
        [planes(random_image(np.random.default_rng(i), 20, 30, False)) for i in (3, 4)]
    )
    found = resize(images, (50, 11), BICUBIC)
    assert found.dtype == torch.uint8 and found.shape == (2, 3, 50, 11)
    for image, expected in zip(images, found, strict=True):
        assert torch.equal(resize(image, (50, 11), BICUBIC), expected)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(resize(last, (50, 11), BICUBIC), found)
