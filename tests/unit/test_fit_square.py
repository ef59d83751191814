"""How images come to the square of a scorer: PIL, the published code, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nanogen.encoders.fit_square import crop_square, pad_square

SIZES = [(40, 40), (24, 24), (64, 41), (41, 64), (25, 24), (24, 29), (100, 33)]


def picture(height: int, width: int) -> torch.Tensor:
    rows = np.random.RandomState(1000 * height + width).randint(0, 256, (height, width, 3))
    return torch.from_numpy(rows.astype(np.uint8)).permute(2, 0, 1)[None]


def by_pil(image: torch.Tensor, side: int, before) -> torch.Tensor:
    """float [1, 3, side, side]; `before` of an excess: how much is cut off before the centre."""
    whole = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    short = min(whole.size)
    width, height = (int(side * n / short) for n in whole.size)
    # Rows first, as in all versions before 13, which chooses the order by the shape.
    small = whole.resize((width, whole.height), Image.Resampling.BICUBIC)
    small = small.resize((width, height), Image.Resampling.BICUBIC)
    left, top = before(width - side), before(height - side)
    small = small.crop((left, top, left + side, top + side))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_crop_is_that_of_pil(height: int, width: int) -> None:
    image = picture(height, width)
    assert torch.equal(crop_square(image, 24), by_pil(image, 24, lambda n: n // 2))
    found = crop_square(image, 24, torchvision=True)
    assert torch.equal(found, by_pil(image, 24, lambda n: int(round(n / 2.0))))


def test_the_centres_differ_where_three_columns_are_cut() -> None:
    image = picture(24, 27)
    ours, theirs = crop_square(image, 24), crop_square(image, 24, torchvision=True)
    assert torch.equal(ours, image[..., 1:25] / 255) and torch.equal(theirs, image[..., 2:26] / 255)


def test_a_crop_is_that_of_the_processor_of_transformers() -> None:
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    process = clip.CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, do_normalize=False
    )
    for size in SIZES[:-1]:  # see `by_pil`
        image = picture(*size)
        fed = process(Image.fromarray(image[0].permute(1, 2, 0).numpy()), return_tensors="pt")
        torch.testing.assert_close(crop_square(image, 24), fed["pixel_values"], atol=1e-6, rtol=0)


def test_what_pads_is_black_and_its_larger_half_comes_last() -> None:
    found = pad_square(torch.full((2, 3, 10, 17), 255, dtype=torch.uint8), 17)
    assert found.shape == (2, 3, 17, 17)
    assert torch.equal(found[0, 0, :, 0], torch.tensor([0.0] * 3 + [1.0] * 10 + [0.0] * 4))
    tall = pad_square(torch.full((1, 3, 60, 30), 255, dtype=torch.uint8), 20)
    expected = torch.tensor([0.0] * 5 + [1.0] * 10 + [0.0] * 5)
    torch.testing.assert_close(tall[0, 1, 7], expected)


# hpsv2 1.2.0, image_transform(224, is_train=False, resize_longest_max=True) under torchvision
# 0.28.0, of `picture`, before mean and deviation; "no": with antialias=False
PUBLISHED = [
    ((300, 201), "yes", {(0, 100, 100): 0.518936, (1, 112, 37): 0.481079, (2, 40, 190): 0.0}),
    ((333, 500), "yes", {(0, 100, 100): 0.555681, (1, 112, 37): 0.467202, (2, 40, 190): 0.590537}),
    ((40, 40), "yes", {(0, 100, 100): 0.527243, (1, 112, 37): 0.811547, (2, 40, 190): 0.369054}),
    ((300, 201), "no", {(0, 100, 100): 0.659777, (1, 112, 37): 0.529935, (2, 40, 190): 0.0}),
    ((333, 500), "no", {(0, 100, 100): 0.764515, (1, 112, 37): 0.66963, (2, 40, 190): 0.639338}),
    ((40, 40), "no", {(0, 100, 100): 0.530455, (1, 112, 37): 0.836323, (2, 40, 190): 0.379727}),
]


@pytest.mark.parametrize(("size", "antialias", "places"), PUBLISHED)
def test_padding_is_that_of_the_published_code(size, antialias: str, places) -> None:
    found = pad_square(picture(*size), 224, antialias=antialias == "yes")[0]
    for (channel, row, column), value in places.items():
        assert found[channel, row, column].item() == pytest.approx(value, abs=2e-6)
