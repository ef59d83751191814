"""The nouns: conditions that are chosen row by row, requests that are cut, images at the door."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogen.types import (
    LabelCondition,
    LatentSpec,
    Losses,
    Request,
    TextCondition,
    to_float,
    to_uint8,
)


def caption(*lengths: int, width: int = 2, total: int | None = None, value: float = 1.0):
    mask = torch.arange(max(lengths) if total is None else total) < torch.tensor(lengths)[:, None]
    features = mask[..., None].float().expand(-1, -1, width) * value
    return TextCondition(features, mask)


def test_labels_where() -> None:
    mine, null = LabelCondition(torch.tensor([3, 4, 5])), LabelCondition(torch.tensor([9, 9, 9]))
    keep = torch.tensor([True, False, True])
    assert mine.where(keep, null).ids.tolist() == [3, 9, 5]


@given(st.data())
def test_text_where_takes_tokens_and_mask_together(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    lengths = st.lists(st.integers(0, 5), min_size=count, max_size=count)
    mine = caption(*data.draw(lengths), total=6)
    theirs = caption(*data.draw(lengths), total=data.draw(st.integers(5, 7)), value=-1.0)
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    found = mine.where(keep, theirs)
    for row in range(count):
        source = mine if keep[row] else theirs
        expected = source.features[row][source.mask[row]]
        assert torch.equal(found.features[row][found.mask[row]], expected)
        assert not found.features[row][~found.mask[row]].any()
    assert found.features.shape[1] == int(found.mask.sum(1).max())


def test_where_with_a_null_of_no_tokens() -> None:
    mine, null = caption(2, 3), TextCondition(torch.zeros(2, 0, 2), torch.zeros(2, 0).bool())
    found = mine.where(torch.tensor([True, False]), null)
    assert found.mask.tolist() == [[True, True], [False, False]]
    assert mine.where(torch.tensor([False, False]), null).features.shape == (2, 0, 2)


def test_trimmed() -> None:
    assert caption(1, 3, total=9).trimmed().mask.shape == (2, 3)
    assert caption(0, 0, total=9).trimmed().features.shape == (2, 0, 2)
    assert caption(0, 0, total=0).trimmed().features.shape == (2, 0, 2)


def test_request_rows() -> None:
    request = Request(torch.arange(5), labels=torch.tensor([4, 3, 2, 1, 0]))
    assert len(request) == 5 and request.rows(3, 9).labels.tolist() == [1, 0]
    assert request.rows(1, 3).indices.tolist() == [1, 2] and request.rows(1, 3).texts is None
    texts = Request(torch.arange(3), texts=("a", "b", "c"))
    assert texts.rows(1, 3).texts == ("b", "c") and texts.rows(3, 5).texts == ()


def test_latent_spec() -> None:
    spec = LatentSpec(channels=16, height=32, width=24, patch=2)
    assert spec.dim == 16 * 32 * 24 and spec.tokens == 16 * 12


def test_total_is_the_weighted_sum() -> None:
    parts = {"flow": torch.tensor([1.0, 2.0]), "extra": torch.tensor([10.0, 20.0])}
    total = Losses(parts, {"flow": 1.0, "extra": 0.5}).total()
    assert total.tolist() == [6.0, 12.0]


def test_images_at_the_door() -> None:
    """To the nearest grey level, not down; and what is out of range is clamped."""
    values = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 254.4 / 255, 254.6 / 255, 1.0, 1.2])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 254, 255, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_uint8(values).dtype == torch.uint8 and to_float(every).dtype == torch.float32


@pytest.mark.parametrize("condition", [LabelCondition(torch.tensor([1, 2])), caption(1, 2)])
def test_conditions_have_a_length_and_move(condition) -> None:
    assert len(condition) == 2
    assert type(condition.to(torch.device("cpu"))) is type(condition)
