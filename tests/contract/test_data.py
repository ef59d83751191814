"""What every data set and task promises: samples are a pure function of their position."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from parts import entries, open_data

from nanogen import registry
from nanogen.data.base import SPLITS, Sample, Source, finite
from nanogen.errors import DataError
from nanogen.registry import Entry
from nanogen.tasks.base import Task
from nanogen.types import Batch

every = pytest.mark.parametrize("entry", entries("data"))


@pytest.fixture
def source(entry: Entry, tmp_path: Path) -> Source:
    return open_data(entry.name, tmp_path)


def same(a: Sample, b: Sample) -> bool:
    return torch.equal(a.image, b.image) and (a.label, a.text) == (b.label, b.text)


@every
def test_says_what_it_reads(source: Source) -> None:
    assert isinstance(source.fingerprint, str) and source.fingerprint
    assert all(isinstance(name, str) for name in source.classes)
    for split in SPLITS:
        for index in (
            {0, source.count(split) // 2, source.count(split) - 1} if source.count(split) else ()
        ):
            sample = source.read(split, index, draw=7)
            assert sample.image.dtype == torch.uint8
            assert sample.image.shape == (3, source.size, source.size)
            assert (sample.text is not None) == source.captioned
            assert (sample.label is not None) == bool(source.classes)
            assert sample.label is None or 0 <= sample.label < len(source.classes)


@every
def test_splits(source: Source) -> None:
    assert source.count("train") > source.count("held-out") > 0


@every
def test_a_sample_is_a_pure_function(source: Source) -> None:
    places = [("train", 0, 3), ("train", 1, 3), ("held-out", 0, 0), ("train", 0, 4)]
    first = [source.read(*place) for place in places]
    torch.manual_seed(0)
    np.random.seed(0)
    again = [source.read(*place) for place in reversed(places)]
    assert all(same(a, b) for a, b in zip(first, reversed(again), strict=True))


@every
def test_opened_twice_it_is_the_same(entry: Entry, tmp_path: Path) -> None:
    one, again = open_data(entry.name, tmp_path), open_data(entry.name, tmp_path)
    assert one.fingerprint == again.fingerprint and one.prompts() == again.prompts()
    assert same(one.read("train", 2, 5), again.read("train", 2, 5))


@every
def test_train_and_held_out_are_disjoint(source: Source) -> None:
    """No image is in both, mirrored or not."""

    def images(split: str, mirror: bool) -> set[bytes]:
        total = source.count(split)
        count = min(total, 300)
        found = [source.read(split, i * total // count, 0).image for i in range(count)]
        return {(image.flip(-1) if mirror else image).numpy().tobytes() for image in found}

    for one, other in (("train", "held-out"), ("train", "validation"), ("validation", "held-out")):
        if source.count(one) and source.count(other):
            assert not images(one, False) & (images(other, False) | images(other, True))


@every
def test_variants(source: Source) -> None:
    """Every draw shows one of the variants that a cache holds, or the data say that there is no
    end of them.
    """
    if not source.variants:
        with pytest.raises(DataError, match="makes every training image anew"):
            finite(source, "latents")
        shown = {source.read("train", 0, draw).image.numpy().tobytes() for draw in range(20)}
        assert len(shown) > 2
        return
    images = finite(source, "latents")
    for index in (0, 1, source.count("train") - 1):
        views, known = images.views(index), images.describe(index)
        assert len(views) == source.variants
        variants = [images.variant(index, draw) for draw in range(20)]
        assert set(variants) == set(range(source.variants))
        for draw, variant in enumerate(variants):
            sample = source.read("train", index, draw)
            assert torch.equal(sample.image, views[variant])
            assert (sample.label, sample.text) == (known.label, known.text)


@every
def test_prompts(source: Source) -> None:
    prompts = source.prompts()
    assert bool(prompts) == source.captioned
    assert len(set(prompts)) == len(prompts) and all(prompt.strip() for prompt in prompts)


def tasks() -> list[object]:
    """Every task over every data set that it can use."""
    return [
        pytest.param(task.values[0], data.values[0], id=f"{task.id}-{data.id}")
        for task in entries("task")
        for data in entries("data")
    ]


def open_task(task: Entry, data: Entry, folder: Path) -> Task:
    try:
        return task.target(data=_Opened(open_data(data.name, folder))).build(seed=4)
    except DataError as problem:
        pytest.skip(f"{task.name} cannot use {data.name}: {problem}")


@pytest.mark.parametrize("task", entries("task"))
def test_a_task_can_use_the_data_in_the_package(task: Entry) -> None:
    usable = []
    for name in ("animals", "scenes"):
        with contextlib.suppress(DataError):
            usable.append(task.target(data=registry.get("data", name)()).build(seed=4))
    assert usable


class _Opened:
    """A data config whose source is open already."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def build(self) -> Source:
        return self.source


@pytest.mark.parametrize("task, data", tasks())
class TestTasks:
    @pytest.fixture
    def made(self, task: Entry, data: Entry, tmp_path: Path) -> Task:
        return open_task(task, data, tmp_path)

    def batch(self, made: Task, first: int, count: int) -> Batch:
        return made.batch(np.arange(first, first + count, dtype=np.int64))

    def test_batch(self, made: Task) -> None:
        found = self.batch(made, 10, 4)
        size = made.source.size
        assert found.images.shape == (4, 3, size, size) and found.images.dtype == torch.float32
        assert found.images.min() >= 0 and found.images.max() <= 1
        assert found.keys.tolist() == [10, 11, 12, 13] and len(found) == 4
        assert (found.labels is not None) == bool(made.source.classes)
        assert (found.texts is not None) == made.source.captioned

    def test_position_decides(self, made: Task) -> None:
        """A stream that is entered anywhere, in steps of any size, shows the same samples."""
        whole = self.batch(made, 0, 12)
        made.request(0, 5)
        for first, count in ((0, 5), (5, 7), (3, 1), (11, 1)):
            part = self.batch(made, first, count)
            assert torch.equal(part.images, whole.images[first : first + count])
            assert torch.equal(part.keys, whole.keys[first : first + count])
            if whole.labels is not None:
                assert torch.equal(part.labels, whole.labels[first : first + count])
            if whole.texts is not None:
                assert part.texts == whole.texts[first : first + count]

    def test_an_epoch_shows_every_sample_once(self, made: Task, monkeypatch) -> None:
        count, read = made.source.count("train"), []
        sample = made.source.read("train", 0, 0)
        monkeypatch.setattr(
            type(made.source), "read", lambda self, *place: read.append(place) or sample
        )
        self.batch(made, 0, 2 * count)
        epochs = [[index for _, index, _ in read[:count]], [i for _, i, _ in read[count:]]]
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(count))
        assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])
        # The draw is the position, so a second epoch is augmented anew.
        assert [draw for _, _, draw in read] == list(range(2 * count))

    def test_requests(self, made: Task) -> None:
        """A fixed, endless, balanced list."""
        found = made.request(0, 40)
        assert found.indices.tolist() == list(range(40)) and len(found) == 40
        part = made.request(13, 17)
        assert part.indices.tolist() == [13, 14, 15, 16]
        assert (found.labels is None) != (found.texts is None)
        if found.labels is not None:
            assert torch.equal(part.labels, found.labels[13:17])
            counts = torch.bincount(found.labels, minlength=len(made.source.classes))
            assert counts.max() - counts.min() <= 1
        else:
            assert part.texts == found.texts[13:17]
            assert set(found.texts) <= set(made.source.prompts())
        captions = made.captions(found)
        assert len(captions) == 40 and all(isinstance(caption, str) for caption in captions)
