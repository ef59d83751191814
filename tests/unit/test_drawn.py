"""Images of an evaluation that are drawn once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nanogen.errors import UserError
from nanogen.evaluation.drawn import DrawnOnce
from nanogen.types import Request

LABELS = torch.tensor([3, 1, 4, 1, 5])
TEXTS = ("a cat", "", "ein Bär", "a cat", 'a "dog"')


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("texts", [None, TEXTS])
def test_the_same_batches_again(tmp_path: Path, labels: Tensor | None, texts: tuple | None) -> None:
    """Samples 10 .. 14 in batches of two, with holes in memory and rows that share theirs."""
    request = Request(torch.arange(10, 15), labels, texts)
    pixels = torch.randint(256, (5, 8, 6, 3), dtype=torch.uint8).movedim(3, 1)
    calls = []

    def draw(start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
        calls.append((start, stop))
        for first in range(0, 5, 2):
            yield request.rows(first, first + 2), pixels[first : first + 2]

    drawn = DrawnOnce(tmp_path, draw)
    one, two = list(drawn.read(10, 15)), list(drawn.read(10, 15))
    assert calls == [(10, 15)]
    assert [len(rows) for rows, _ in two] == [2, 2, 1]
    for (mine, images), (theirs, others) in zip(one, two, strict=True):
        assert torch.equal(images, others) and others.dtype == torch.uint8
        assert torch.equal(mine.indices, theirs.indices)
        assert mine.texts == theirs.texts
        assert (mine.labels is None) == (theirs.labels is None)
        assert mine.labels is None or torch.equal(mine.labels, theirs.labels)  # type: ignore[arg-type]


def test_what_was_not_drawn_whole_is_not_kept(tmp_path: Path) -> None:
    def draw(start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
        yield Request(torch.tensor([start])), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(DrawnOnce(tmp_path, draw).read(0, 2))
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_kept_are_one_clear_line(tmp_path: Path) -> None:
    def draw(start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
        yield Request(torch.tensor([start])), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)

    with pytest.raises(UserError, match="cannot keep what was drawn.*choose another --out"):
        list(DrawnOnce(tmp_path / "nothing", draw).read(0, 1))
