"""Batches at stream positions: which images a step holds depends on nothing but the step."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import time

import numpy as np
import pytest
import torch

from nanogen.data import loader
from nanogen.data.base import Sample
from nanogen.data.loader import batches, micro_batches
from nanogen.errors import DataError
from nanogen.tasks.class_conditional import ClassConditional


class Numbered:
    """Images that say which sample and draw they are."""

    size, classes, captioned, fingerprint = 2, ("a", "b"), False, "numbered"

    def __init__(self, bad: int = -1) -> None:
        self.bad = bad

    def count(self, split: str) -> int:
        return 37

    def read(self, split: str, index: int, draw: int) -> Sample:
        if draw == self.bad:
            raise DataError(f"'{draw}.png' cannot be decoded; remove it")
        return Sample(torch.full((3, 2, 2), index, dtype=torch.uint8), index % 2)

    def prompts(self) -> tuple[str, ...]:
        return ()


def positions(seen: int, steps: int, batch: int, micro: int, workers: int = 0) -> list[int]:
    """Stream positions of `steps` steps of this process, in order."""
    count = steps * len(micro_batches(batch, micro))
    with contextlib.closing(
        batches(ClassConditional(Numbered(), 3), seen, batch, micro, workers)
    ) as stream:
        return [int(key) for one in itertools.islice(stream, count) for key in one.keys]


@pytest.fixture
def process(monkeypatch):
    """Pretend to be a process of several."""

    def be(rank: int, world: int) -> None:
        monkeypatch.setattr(loader.dist, "rank", lambda: rank)
        monkeypatch.setattr(loader.dist, "world", lambda: world)

    return be


@pytest.mark.parametrize(("batch", "world", "micro"), [(8, 1, 3), (8, 2, 4), (10, 3, 2), (7, 7, 9)])
def test_a_step_is_cut_without_gap_or_overlap(process, batch, world, micro):
    cut = []
    for rank in range(world):
        process(rank, world)
        cut += micro_batches(batch, micro)
    assert [p for start, size in cut for p in range(start, start + size)] == list(range(batch))
    assert max(size for _, size in cut) <= micro


def test_every_split_sees_the_same_images(process):
    whole = positions(16, 3, 8, 8)
    assert whole == list(range(16, 40))
    assert positions(16, 3, 8, 3) == whole
    halves = []
    for rank in range(2):
        process(rank, 2)
        halves.append(positions(16, 3, 8, 3))
    assert [p for s in range(3) for h in halves for p in h[4 * s : 4 * s + 4]] == whole


def test_a_batch_is_a_function_of_its_position():
    task = ClassConditional(Numbered(), 3)
    (one,) = itertools.islice(batches(task, 40, 8, 8, 0), 1)
    again = task.batch(np.arange(40, 48))
    assert torch.equal(one.images, again.images) and torch.equal(one.keys, again.keys)
    assert one.labels is not None and again.labels is not None
    assert torch.equal(one.labels, again.labels)
    # Each epoch shows every image once.
    epoch = task.batch(np.arange(37, 74)).images[:, 0, 0, 0].mul(255).round()
    assert sorted(epoch.int().tolist()) == list(range(37))


def test_readers_keep_the_order_and_end_with_the_stream():
    assert positions(8, 5, 8, 3, workers=2) == positions(8, 5, 8, 3)
    deadline = time.monotonic() + 4
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_arrives_as_it_was_raised(workers):
    stream = batches(ClassConditional(Numbered(bad=19), 3), 8, 8, 8, workers)
    assert len(next(stream)) == 8
    with pytest.raises(DataError) as raised:
        next(stream)
    assert str(raised.value) == "'19.png' cannot be decoded; remove it"
    assert multiprocessing.active_children() == []
