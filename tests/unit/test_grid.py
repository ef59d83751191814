"""The labelled grid of samples."""

from __future__ import annotations

import numpy as np
import torch

from nanogen.sampling.grid import grid, picture


def solid(*levels: int, size: int = 8) -> torch.Tensor:
    return torch.stack([torch.full((3, size, size), level, dtype=torch.uint8) for level in levels])


def test_picture_keeps_pixels_and_channel_order() -> None:
    image = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    found = np.asarray(picture(image))
    assert found.shape == (4, 5, 3)
    assert np.array_equal(found, image.permute(1, 2, 0).numpy())


def test_every_image_is_on_the_page_in_its_place() -> None:
    page = np.asarray(grid(solid(10, 60, 110, 160, 210), ["a"] * 5, columns=3, cell=32))
    rows, columns = 2, 3
    assert page.shape == (rows * (32 + 30 + 6) + 6, columns * (32 + 6) + 6, 3)
    for number, level in enumerate((10, 60, 110, 160, 210)):
        row, column = divmod(number, columns)
        x, y = 6 + column * 38, 6 + row * 68
        # Enlarged without smoothing: inside its frame a cell has one grey level.
        assert (page[y + 1 : y + 31, x + 1 : x + 31] == level).all()


def test_large_images_are_not_shrunk_and_few_need_few_columns() -> None:
    page = grid(solid(0, 255, size=120), ["a", "b"], columns=10, cell=96)
    assert page.size == (2 * 126 + 6, 156 + 6)


def test_captions_are_drawn_and_long_ones_wrap() -> None:
    plain = np.asarray(grid(solid(0), [""], cell=96))
    short = np.asarray(grid(solid(0), ["a red cow"], cell=96))
    long = np.asarray(grid(solid(0), ["a red cow left of a blue dog and nothing else"], cell=96))
    assert plain.shape == short.shape == long.shape
    ink = [int((page[6 + 96 + 2 :] < 128).sum()) for page in (plain, short, long)]
    assert ink[0] == 0 < ink[1] < ink[2]
