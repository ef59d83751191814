"""The evaluation harness: scores depend on samples, not on batches, order or who drew them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from measuring import measured
from parts import StandIn
from torch import Tensor

from nanogen import dist
from nanogen.errors import ConfigError, MetricError
from nanogen.metrics import harness
from nanogen.metrics.base import Context, Metric, Observation, Option, Score
from nanogen.metrics.blocks import Kept, Share, Tallies, blocks
from nanogen.metrics.harness import Scores, Work
from nanogen.metrics.names import Name, listed, parse
from nanogen.types import Request

CONTEXT = Context(source=None, device=torch.device("cpu"))  # type: ignore[arg-type]


class Brightness(Metric):
    """The mean grey level, and that of the first two samples: by sums, and by rows."""

    name, version, task = "brightness", 3, "any"

    def update(self, seen: Observation) -> None:
        grey = seen.images.double().mean((1, 2, 3))
        self.add("total", grey.sum())
        self.add("count", torch.tensor(len(grey)))
        self.rows.setdefault("grey", []).append(grey)

    def compute(self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Score]:
        n = int(sums["count"])
        mean, first = (sums["total"] / n).item(), rows["grey"][:2].mean().item()
        return {
            self.name: Score(mean, None, n, higher_is_better=True),
            f"{self.name}/first": Score(first, None, 2, higher_is_better=True),
        }


def samples(count: int) -> tuple[Request, Tensor]:
    """Sample i is grey of level i."""
    levels = torch.arange(count, dtype=torch.uint8)
    request = Request(torch.arange(count), labels=torch.arange(count) % 10)
    return request, levels[:, None, None, None].expand(count, 3, 4, 4)


def read(start: int, stop: int, batch: int = 5) -> Iterator[tuple[Request, Tensor]]:
    request, images = samples(40)
    for first in range(start, stop, batch):
        last = min(first + batch, stop)
        yield request.rows(first, last), images[first:last]


EXPECTED = {"brightness": (19.5, 40, 3), "brightness/first": (0.5, 2, 3)}


def values(scores: Scores) -> dict[str, tuple[float, int, int]]:
    return {name: (one.score.value, one.score.n, one.version) for name, one in scores.items()}


@pytest.mark.parametrize("batch", [1, 7, 40])
@pytest.mark.parametrize("backwards", [False, True])
def test_scores_do_not_depend_on_batches_or_their_order(batch, backwards):
    request, images = samples(40)
    cut = [(request.rows(i, i + batch), images[i : i + batch]) for i in range(0, 40, batch)]
    scores = measured([Brightness(CONTEXT)], cut[::-1] if backwards else cut, CONTEXT)
    assert values(scores) == EXPECTED


def test_features_are_computed_once_for_all_metrics():
    request, images = samples(4)
    calls = []

    def networks(name):
        calls.append(name)
        return lambda images: {"mean": images.double().mean((1, 2, 3))}

    seen = Observation(images, request, networks)
    assert seen.features("one") is seen.features("one")
    seen.features("two")
    assert calls == ["one", "two"]


def test_choose_and_fits_refuse_what_does_not_fit():
    for names, error, message in (
        (("fd-animal",), ConfigError, "unknown metric 'fd-animal'; did you mean fd-animals"),
        (("fd-animals", "fd-animals"), ConfigError, "named twice"),
        (("fd-animals[size=3]",), ConfigError, "has no option 'size'"),
        (("fd-animals[]",), ConfigError, "is not a name"),
    ):
        with pytest.raises(error, match=message):
            harness.choose(names, CONTEXT)
    for name, kind, count, message in (
        ("scene-eval", "class_conditional", 999, "is for text_to_image tasks"),
        ("accuracy-animals", "text_to_image", 999, "is for class_conditional tasks"),
        ("fd-animals", "class_conditional", 255, "at least 256 samples, not 255"),
    ):
        with pytest.raises(MetricError, match=message):
            harness.fits(harness.choose([name], CONTEXT), kind, count)
    data = replace(CONTEXT, source=StandIn(28))
    chosen = harness.choose(["fd-animals", "is-animals"], data)
    assert [metric.name for metric in chosen] == ["fd-animals", "is-animals"]
    harness.fits(chosen, "class_conditional", 256)


@pytest.mark.parametrize(("samples", "batch"), [(1, 5), (39, 5), (400, 100), (50_000, 100), (7, 1)])
def test_blocks_hold_every_sample_once_and_are_few(samples, batch):
    found = blocks(samples, batch)
    assert [i for block in found for i in range(block.start, block.stop)] == list(range(samples))
    assert len(found) <= 64
    assert all(block.start % batch == 0 for block in found)


@pytest.mark.parametrize("world", [1, 2, 3, 8, 9])
def test_processes_share_the_blocks_and_check_equally_often(monkeypatch, world):
    """40 samples in blocks of 5, of which nine processes leave one without any."""
    monkeypatch.setattr(dist, "world", lambda: world)
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(Share, "total", lambda self: Tallies())
    drawn: list[int] = []
    checks = []
    for rank in range(world):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        calls: list[int] = []

        def reading(start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
            drawn.extend(range(start, stop))
            return read(start, stop)

        work = Work(40, 5, reading, check=functools.partial(calls.append, 1))
        with pytest.raises(MetricError, match="no samples"):
            harness.measure([Brightness(CONTEXT)], work, CONTEXT)
        checks.append(len(calls))
    assert drawn == list(range(40))
    assert len(set(checks)) == 1


def test_a_check_that_raises_ends_the_work_and_what_is_kept_is_not_read_again(tmp_path):
    """Three blocks are kept before the interrupt; the rest is measured by the next try."""
    left, starts = [3], []

    def check() -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1

    def reading(start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
        starts.append(start)
        return read(start, stop)

    kept = Kept(tmp_path / "blocks")
    with pytest.raises(KeyboardInterrupt):
        harness.measure([Brightness(CONTEXT)], Work(40, 5, reading, kept, check), CONTEXT)
    assert starts[:3] == [0, 5, 10] and kept.has(2) and not kept.has(3)
    starts.clear()
    scores = harness.measure([Brightness(CONTEXT)], Work(40, 5, reading, kept), CONTEXT)
    assert starts == [15, 20, 25, 30, 35]
    assert values(scores) == EXPECTED
    kept.clear()
    assert not (tmp_path / "blocks").exists()


def test_samples_that_cannot_be_read_are_counted():
    """Samples 3 and 17 are broken: 38 are left, and too few for a metric are refused."""

    def reading(start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
        for request, images in read(start, stop, 1):
            if int(request.indices[0]) not in (3, 17):
                yield request, images

    work = Work(40, 5, reading)
    scores = harness.measure([Brightness(CONTEXT)], work, CONTEXT)
    assert scores["brightness"].skipped == 2
    assert scores["brightness"].score.n == 38
    assert scores["brightness"].score.value == pytest.approx((780 - 20) / 38)
    Needy = type("Needy", (Brightness,), {"minimum": 39})
    with pytest.raises(MetricError, match="at least 39 samples, not 38"):
        harness.measure([Needy(CONTEXT)], work, CONTEXT)


def test_options_stand_in_the_names_of_scores():
    options = {"tint": Option("which", "red", ("red", "blue")), "k": Option("how many", "3")}
    Tinted = type("Tinted", (Brightness,), {"options": options})
    assert Tinted(CONTEXT).title == "brightness"
    assert Tinted(CONTEXT, {"tint": "red"}).title == "brightness"
    scores = harness.measure([Tinted(CONTEXT, {"k": "5"})], Work(40, 5, read), CONTEXT)
    assert set(scores) == {"brightness[k=5]", "brightness[k=5]/first"}


def test_models_are_freed_whatever_happens():
    closed = []
    Closing = type("Closing", (Brightness,), {"close": lambda self: closed.append(self)})
    harness.measure([Closing(CONTEXT)], Work(40, 5, read), CONTEXT)

    def broken(start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        harness.measure([Closing(CONTEXT)], Work(40, 5, broken), CONTEXT)
    assert len(closed) == 2


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("fid", ("fid",)),
        ("fid, is", ("fid", "is")),
        ("fid[reference=data,n=3],is", ("fid[reference=data,n=3]", "is")),
    ],
)
def test_names_in_a_list(text, names):
    assert listed(text) == names
    with pytest.raises(ConfigError, match="empty name"):
        listed(text + ",")


def test_parts_of_a_name():
    assert parse("a-b.1[x=1,y=z.2]") == Name("a-b.1", {"x": "1", "y": "z.2"})
    for wrong in ("", "a[", "a[x]", "a[x=]", "a[x=1]b", "a b", "a[x=1,x=2]"):
        with pytest.raises(ConfigError):
            parse(wrong)
