"""Preprocessing of vision encoders against what can be computed by hand."""

from __future__ import annotations

import pytest
import torch
from parts import images

from nanogen.encoders.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
)

PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("mean", "std", "white"),
    [
        (IMAGENET_MEAN, IMAGENET_STD, (2.2489083, 2.4285715, 2.64)),
        (CLIP_MEAN, CLIP_STD, (1.9303361, 2.0748837, 2.145897)),
        (HALF, HALF, (1.0, 1.0, 1.0)),
    ],
)
@pytest.mark.parametrize("resize_first", [True, False])
def test_a_constant_image(mean, std, white, resize_first):
    """Filters keep constants, so what is left is the normalisation."""
    preprocess = Preprocess(12, mean, std, "bicubic", resize_first=resize_first)
    found = preprocess(torch.ones(1, 3, 16, 16))
    expected = torch.tensor(white)[None, :, None, None].expand(1, 3, 12, 12)
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)
    black = preprocess(torch.zeros(1, 3, 16, 16))
    torch.testing.assert_close(
        black[0, :, 0, 0], -torch.tensor(mean) / torch.tensor(std), atol=5e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("mode", "antialias", "value"),
    # Columns 0, 1, 1, 0 repeated, four to one. The middle of four lies between the ones, which is
    # all that bilinear sees; bicubic weighs them by 19/32 each, and their neighbours by -3/32.
    # The antialiased triangle is eight pixels wide: (7 + 1) of 16 sixteenths are ones.
    [("bilinear", False, 1.0), ("bicubic", False, 19 / 16), ("bilinear", True, 0.5)],
)
def test_antialiasing(mode, antialias, value):
    columns = torch.tensor([0.0, 1, 1, 0]).repeat(8)
    pattern = columns.expand(1, 3, 32, 32)
    found = Preprocess(8, *PLAIN, mode, antialias=antialias)(pattern)
    # At the borders filters are cut off.
    torch.testing.assert_close(found[..., 1:-1], torch.full((1, 3, 8, 6), value))


def test_an_image_of_the_side_is_left_as_it_is():
    given = images(2, 16)
    for antialias in (False, True):
        assert torch.equal(Preprocess(16, *PLAIN, "bilinear", antialias=antialias)(given), given)


def test_the_order_only_rounds():
    given = images(2, 32)
    first, last = (
        Preprocess(14, IMAGENET_MEAN, IMAGENET_STD, "bicubic", resize_first=order)(given)
        for order in (True, False)
    )
    torch.testing.assert_close(first, last, atol=1e-5, rtol=0)


def test_every_choice_changes_the_fingerprint():
    made = [
        Preprocess(14, *PLAIN, "bicubic"),
        Preprocess(16, *PLAIN, "bicubic"),
        Preprocess(14, HALF, HALF, "bicubic"),
        Preprocess(14, *PLAIN, "bilinear"),
        Preprocess(14, *PLAIN, "bilinear", antialias=True),
        Preprocess(14, *PLAIN, "bicubic", resize_first=True),
    ]
    assert len({preprocess.fingerprint for preprocess in made}) == len(made)


def test_constants_are_no_weights():
    preprocess = Preprocess(14, HALF, HALF, "bicubic")
    assert not preprocess.state_dict() and not list(preprocess.parameters())
    assert preprocess.to(torch.float64)(images(1, 16).double()).dtype == torch.float64
