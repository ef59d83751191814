"""Differentiable augmentation: planted draws, against loops over pixels."""

import pytest
import torch

from nanogen.errors import ConfigError
from nanogen.stage1.augment import DRAWS, Augmentation, augmented, diff_augment

KEYS = torch.tensor([5, 6, 7, 8])


def images(count=4, height=16, width=16):
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.rand(count, 3, height, width, generator=generator) - 1


def draws(count=4, **planted):
    """Draws that change nothing but where the mean of a colour is kept; `planted` by name."""
    names = ["move", "tint", "hole", "row", "column"]
    names += ["brightness", "saturation", "contrast", "hole_row", "hole_column"]
    still = dict.fromkeys(names, 0.5)
    assert len(names) == DRAWS
    return torch.tensor([list((still | planted).values())]).repeat(count, 1)


def test_probability_nought_is_the_identity():
    x = images()
    assert diff_augment(x, 0, "a", KEYS, Augmentation(probability=0.0)) is x


def test_neutral_draws_are_the_identity():
    torch.testing.assert_close(augmented(images(), draws(), Augmentation(cutout=0.0)), images())


@pytest.mark.parametrize(
    ("row", "column", "down", "right"),
    [(0.0, 0.5, 2, 0), (0.999, 0.5, -2, 0), (0.5, 0.0, 0, 2), (0.3, 0.7, 1, -1)],
)
def test_translation_by_planted_draws(row, column, down, right):
    """An eighth of 16 px is 2: five shifts, each a fifth of the draws."""
    x, wanted = images(), torch.zeros(4, 3, 16, 16)
    for i in range(16):
        for j in range(16):
            if 0 <= i - down < 16 and 0 <= j - right < 16:
                wanted[:, :, i, j] = x[:, :, i - down, j - right]
    found = augmented(x, draws(row=row, column=column), Augmentation(colour=False))
    assert torch.equal(found, wanted)


def test_half_a_pixel_counts_as_one():
    """An eighth of 20 px is 2.5: three, as int(2.5 + 0.5), and of a hole's side alike."""
    x = torch.ones(1, 3, 20, 20)
    found = augmented(x, draws(1, row=0.0), Augmentation(colour=False))
    assert found[0, 0, :, 0].tolist() == [0.0] * 3 + [1.0] * 17
    hole = Augmentation(translation=0.0, colour=False, cutout=0.125)
    assert (augmented(x, draws(1), hole)[0, 0] == 0).sum() == 9


def test_translation_reaches_every_shift_equally_often():
    shifts = torch.arange(1000) / 1000 + 0.0005
    x = torch.zeros(1000, 3, 16, 16)
    x[:, :, 8, 8] = 1
    planted = draws(1000)
    planted[:, 3] = shifts
    found = augmented(x, planted, Augmentation(colour=False))
    rows = found[:, 0].amax(2).argmax(1)
    assert torch.bincount(rows)[6:11].tolist() == [200] * 5


def test_colours_by_hand():
    x = images()
    planted = draws(brightness=0.8, saturation=0.25, contrast=0.9)
    found = augmented(x, planted, Augmentation(translation=0.0))
    bright = x + 0.3
    grey = bright.sum(1, keepdim=True) / 3
    muted = grey + (bright - grey) * 0.5
    level = muted.flatten(1).mean(1)[:, None, None, None]
    torch.testing.assert_close(found, level + (muted - level) * 1.4)


def test_saturation_nought_is_grey():
    found = augmented(images(), draws(saturation=0.0), Augmentation(translation=0.0))
    torch.testing.assert_close(found, found[:, :1].expand_as(found))


@pytest.mark.parametrize(("row", "column", "top", "left"), [(0.0, 0.999, -2, 14), (0.5, 0.5, 6, 6)])
def test_hole_by_planted_draws(row, column, top, left):
    """Side 4 on 16 px: its middle lies on one of 17 lines, so it may stick out by half."""
    x = images()
    only = Augmentation(translation=0.0, colour=False, cutout=0.25)
    found = augmented(x, draws(hole_row=row, hole_column=column), only)
    wanted = x.clone()
    wanted[:, :, max(0, top) : top + 4, max(0, left) : left + 4] = 0
    assert torch.equal(found, wanted)


def test_sides_that_differ():
    found = augmented(images(4, 16, 32), draws(column=0.0), Augmentation(colour=False))
    assert torch.equal(found[..., 4:], images(4, 16, 32)[..., :-4])
    assert not found[..., :4].any()


def test_a_sample_is_changed_by_its_key_alone():
    x, every = images(), Augmentation(probability=0.7, cutout=0.3)
    together = diff_augment(x, 1, "fake", KEYS, every)
    assert torch.equal(together, diff_augment(x, 1, "fake", KEYS, every))
    for row in range(4):
        alone = diff_augment(x[row : row + 1], 1, "fake", KEYS[row : row + 1], every)
        torch.testing.assert_close(alone, together[row : row + 1])
    for seed, purpose, keys in ((2, "fake", KEYS), (1, "real", KEYS), (1, "fake", KEYS + 1)):
        assert not torch.equal(diff_augment(x, seed, purpose, keys, every), together)


def test_coins_fall_apart_for_kinds_and_samples():
    """At probability 1/2 about a half of the samples is moved, and a half of those is tinted."""
    keys, x = torch.arange(2000), torch.zeros(2000, 3, 8, 8)
    x[:, :, 4, 4] = 1
    found = diff_augment(x, 0, "a", keys, Augmentation(probability=0.5))
    tinted = (found[:, 0] != 0).sum((1, 2)) > 1
    # An eighth of 8 px is 1: one of the nine shifts stays where it is.
    moved = found[:, 0].flatten(1).argmax(1) != 4 * 8 + 4
    assert tinted.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert moved.float().mean().item() == pytest.approx(0.5 * 8 / 9, abs=0.05)
    assert (moved & tinted).float().mean().item() == pytest.approx(0.25 * 8 / 9, abs=0.05)


def test_gradient_reaches_the_images_in_single_precision():
    x = images().to(torch.bfloat16).requires_grad_()
    found = diff_augment(x, 0, "a", KEYS, Augmentation(cutout=0.25))
    assert found.dtype == torch.float32 and torch.isfinite(found).all()
    found.square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


def test_gradient_is_that_of_a_linear_map():
    """With planted draws the change is affine: a step of any length changes it in proportion."""
    x, step, planted = images(), images().flip(0), draws(row=0.1, brightness=0.9, contrast=0.2)
    full = Augmentation()
    x.requires_grad_()
    (slope,) = torch.autograd.grad(augmented(x, planted, full).square().sum() / 2, x)
    out = augmented(x, planted, full)
    moved = augmented(x + step, planted, full) - out
    torch.testing.assert_close((slope * step).sum(), (out * moved).sum(), rtol=1e-4, atol=1e-3)


def test_values_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="augmentation.cutout=1.5"):
        Augmentation(cutout=1.5)
