"""Masks and boxes from logits: against loops over pixels, an ellipse, and each published rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from literal_instances import literal_instances

from nanogen.metrics.instances import OFFICIAL, PICKS, REFERENCE, Sizes, bounds, instances

both = pytest.mark.parametrize("compat", [OFFICIAL, REFERENCE], ids=["official", "reference"])
NAMES = ("cow", "dog", "bench")


def log_shares(*shares: float) -> torch.Tensor:
    """A row of logits with these probabilities of the classes, and the rest for "nothing"."""
    return torch.tensor([*shares, 1 - sum(shares)]).log()


@both
@pytest.mark.parametrize("image", [(9, 14), (32, 40), (24, 24)])
def test_equal_to_loops_over_pixels(compat, image):
    generator = torch.Generator().manual_seed(0)
    classes = 3 * torch.randn(12, 4, generator=generator)
    masks = 4 * torch.randn(12, 6, 6, generator=generator)
    network = (24, 24)
    found = instances(classes, masks, Sizes(network, image), NAMES, compat)
    expected = literal_instances(classes.numpy(), masks.numpy(), network, image, compat is OFFICIAL)
    assert len(found) == len(expected) >= 8
    for one, literal in zip(found, expected, strict=True):
        assert one.name == NAMES[literal.label]
        assert one.score == pytest.approx(literal.score, abs=2e-6)
        assert one.box == literal.box
        assert np.array_equal(one.mask.numpy(), literal.mask)


@both
def test_an_ellipse(compat):
    """Inside it, logits are 2: its mask, its box, and its score are known in closed form."""
    y, x = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    inside = ((x - 30) / 12) ** 2 + ((y - 15) / 8) ** 2 <= 1
    masks = torch.where(inside, 2.0, -3.0)[None]
    (one,) = instances(
        log_shares(0.05, 0.9)[None], masks, Sizes((40, 60), (40, 60)), NAMES[:2], compat
    )
    assert one.name == "dog"
    assert torch.equal(one.mask, inside)
    last = 1 if compat is OFFICIAL else 0
    assert one.box == (18, 7, 42 + last, 23 + last)
    count = int(inside.sum())
    certainty = count / (1 + math.exp(-2)) / (count + 1e-6)
    assert one.score == pytest.approx(0.9 * certainty, abs=1e-6)


def test_official_boxes_reach_the_size_of_the_image_and_others_do_not():
    masks = torch.ones(1, 4, 4)
    classes, sizes = log_shares(0.95)[None], Sizes((8, 8), (10, 12))
    assert instances(classes, masks, sizes, ("cow",), OFFICIAL)[0].box == (0, 0, 12, 10)
    assert instances(classes, masks, sizes, ("cow",), REFERENCE)[0].box == (0, 0, 11, 9)


def test_reference_cuts_out_before_it_resizes():
    """One bright pixel of four: resized logits have a smooth edge, a resized mask a blocky one."""
    masks = torch.tensor([[[4.0, -1.0], [-1.0, -1.0]]])
    classes, sizes = log_shares(0.95)[None], Sizes((2, 2), (8, 8))
    (official,) = instances(classes, masks, sizes, ("cow",), OFFICIAL)
    (reference,) = instances(classes, masks, sizes, ("cow",), REFERENCE)
    assert reference.mask.sum() == 16 and reference.mask[:4, :4].all()
    assert official.mask.sum() == 24 and official.mask[4, :4].all() and not official.mask[4, 4]


def test_reference_rounds_scores_and_official_keeps_them():
    masks = torch.full((1, 2, 2), 30.0)
    classes, sizes = log_shares(0.30000028)[None], Sizes((2, 2), (2, 2))
    (reference,) = instances(classes, masks, sizes, ("cow",), REFERENCE)
    (official,) = instances(classes, masks, sizes, ("cow",), OFFICIAL)
    assert reference.score == 0.3 < official.score
    assert not instances(log_shares(0.299999)[None], masks, sizes, ("cow",), REFERENCE)


@both
def test_empty_masks_are_no_detections(compat):
    classes = log_shares(0.95).expand(3, -1)
    masks = torch.tensor([-1.0, 0.0, 20.0])[:, None, None].expand(3, 5, 5)
    found = instances(classes, masks, Sizes((5, 5), (7, 7)), ("cow",), compat)
    assert len(found) == 1 and found[0].mask.all()
    assert instances(classes[:2], masks[:2], Sizes((5, 5), (7, 7)), ("cow",), compat) == []


@both
def test_a_query_can_be_two_detections(compat):
    found = instances(
        log_shares(0.35, 0.5)[None],
        torch.full((1, 2, 2), 20.0),
        Sizes((2, 2), (2, 2)),
        NAMES[:2],
        compat,
    )
    assert [one.name for one in found] == ["dog", "cow"]


@both
def test_the_surest_hundred_are_looked_at(compat):
    shares = torch.linspace(0.5, 0.9, 130)
    classes = torch.stack([shares, 1 - shares], 1).log()
    masks = torch.full((130, 2, 2), 30.0)
    found = instances(classes, masks, Sizes((2, 2), (2, 2)), ("cow",), compat)
    assert PICKS == 100
    expected = shares.flip(0)[:PICKS].tolist()
    assert [one.score for one in found] == pytest.approx(expected, abs=1e-5)


def test_equal_scores_keep_the_order_of_their_queries():
    masks = torch.full((4, 4, 4), -1.0)
    for query in range(4):
        masks[query, query] = 20
    found = instances(
        log_shares(0.9).expand(4, -1), masks, Sizes((4, 4), (4, 4)), ("cow",), OFFICIAL
    )
    assert [one.box[1] for one in found] == [0, 1, 2, 3]


def test_bounds_of_scattered_pixels():
    masks = torch.zeros(2, 5, 7, dtype=torch.bool)
    masks[0, 1, 2] = masks[0, 3, 6] = masks[1, 4, 0] = True
    assert bounds(masks, 0) == [(2, 1, 6, 3), (0, 4, 0, 4)]
    assert bounds(masks, 1) == [(2, 1, 7, 4), (0, 4, 1, 5)]
