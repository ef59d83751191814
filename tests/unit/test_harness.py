"""The evaluation harness: scores depend on samples, not on batches, order or who drew them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nanogen.errors import ConfigError, MetricError
from nanogen.metrics import harness
from nanogen.metrics.base import Context, Metric, Observation, Score
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


@pytest.mark.parametrize("batch", [1, 7, 40])
@pytest.mark.parametrize("backwards", [False, True])
def test_scores_do_not_depend_on_batches_or_their_order(batch, backwards):
    request, images = samples(40)
    cut = [(request.rows(i, i + batch), images[i : i + batch]) for i in range(0, 40, batch)]
    scores = harness.measure([Brightness(CONTEXT)], cut[::-1] if backwards else cut, CONTEXT)
    assert {name: (score.value, score.n, version) for name, (score, version) in scores.items()} == {
        "brightness": (19.5, 40, 3),
        "brightness/first": (0.5, 2, 3),
    }


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


def test_choose_refuses_what_does_not_fit():
    for name, kind, count, error, message in (
        ("fid", "class_conditional", 999, ConfigError, "unknown metric 'fid'"),
        ("scene-eval", "class_conditional", 999, MetricError, "is for text_to_image tasks"),
        ("accuracy-animals", "text_to_image", 999, MetricError, "is for class_conditional tasks"),
        ("fd-animals", "class_conditional", 255, MetricError, "at least 256 samples, not 255"),
    ):
        with pytest.raises(error, match=message):
            harness.choose([name], kind, count, CONTEXT)
    chosen = harness.choose(["fd-animals", "is-animals"], "class_conditional", 256, CONTEXT)
    assert [metric.name for metric in chosen] == ["fd-animals", "is-animals"]


class Numbers:
    """Stands for a sampler: each image is the index of its sample."""

    sampling = SimpleNamespace(batch=5)

    def stream(self, request):
        for start in range(0, len(request), self.sampling.batch):
            rows = request.rows(start, start + self.sampling.batch)
            yield rows, rows.indices


TASK = SimpleNamespace(request=lambda start, stop: Request(torch.arange(start, stop)))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_processes_share_the_samples_and_check_equally_often(monkeypatch, world):
    """21 samples in batches of 5: shares of 10 and 11 are two and three batches."""
    monkeypatch.setattr(harness.dist, "world", lambda: world)
    drawn, checks = [], []
    for rank in range(world):
        monkeypatch.setattr(harness.dist, "rank", lambda rank=rank: rank)
        calls: list[int] = []
        check = functools.partial(calls.append, rank)
        for _, indices in harness.drawn(Numbers(), TASK, 21, check):  # type: ignore[arg-type]
            drawn += indices.tolist()
        checks.append(len(calls))
    assert drawn == list(range(21))
    assert len(set(checks)) == 1


def test_a_check_that_raises_ends_the_drawing():
    found = []

    def check() -> None:
        if len(found) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for _, indices in harness.drawn(Numbers(), TASK, 50, check):  # type: ignore[arg-type]
            found.append(indices)
    assert len(found) == 2
