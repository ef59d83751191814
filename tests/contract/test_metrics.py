"""What every metric promises: no score depends on batches or order; too little is refused."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pytest
import torch
from measuring import measured as scores_of
from parts import Excerpt, entries
from tiny_assets import tiny_assets
from torch import Tensor

from nanogen import registry
from nanogen.data.animals import Animals, AnimalsSource
from nanogen.data.base import Source
from nanogen.data.scenes import Scenes
from nanogen.errors import MetricError
from nanogen.metrics import harness
from nanogen.metrics.base import Context, Metric
from nanogen.registry import Entry
from nanogen.store import present
from nanogen.types import Request

every = pytest.mark.parametrize("entry", entries("metric"))
SOURCES = {"class_conditional": Animals, "text_to_image": Scenes, "any": Animals}
FEW = {"train": 600, "held-out": 300}
"""real images behind the references: enough to be defined, quick to read"""


@functools.cache
def source(kind: str) -> Source:
    data = SOURCES[kind]().build()
    return Excerpt(data, FEW) if isinstance(data, AnimalsSource) else data


@pytest.fixture(scope="module", autouse=True)
def assets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tiny stand-ins for everything that metrics need of others."""
    plain.cache_clear()
    with tiny_assets(tmp_path_factory.mktemp("assets")):
        yield
    plain.cache_clear()


def made(entry: Entry) -> Metric:
    """The metric, unless it needs something that has no stand-in."""
    metric = entry.target(context(entry.target.task))
    if not all(map(present, metric.assets)):
        pytest.skip(f"no tiny stand-in for what {entry.name} needs")
    return metric


def asked(entry: Entry, count: int) -> tuple[Request, Tensor]:
    """Samples for a metric: those of its kind of task, or for the prompts that it brings."""
    request, images = samples(entry.target.task, count)
    prompts = made(entry).prompts
    if not prompts:
        return request, images
    texts = registry.get("prompts", prompts)().texts
    return replace(request, texts=tuple(texts[i % len(texts)] for i in range(count))), images


@functools.cache
def samples(kind: str, count: int) -> tuple[Request, Tensor]:
    """Real held-out images in place of drawn ones, with their labels or texts."""
    data = source(kind)
    read = [data.read("held-out", i % data.count("held-out"), i) for i in range(count)]
    images = torch.stack([sample.image for sample in read])
    if kind == "text_to_image":
        return Request(torch.arange(count), texts=tuple(s.text or "" for s in read)), images
    return Request(torch.arange(count), labels=torch.tensor([s.label for s in read])), images


def context(kind: str, precision: Literal["fp32", "bf16"] = "fp32") -> Context:
    return Context(source(kind), torch.device("cpu"), precision=precision)


def measured(
    entry: Entry,
    order: Tensor,
    batch: int,
    dark: bool = False,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict:
    kind = entry.target.task
    request, images = asked(entry, len(order))
    if dark:
        images = images // 2

    def batches() -> Iterator[tuple[Request, Tensor]]:
        for rows in order.split(batch):
            yield (
                Request(
                    request.indices[rows],
                    None if request.labels is None else request.labels[rows],
                    None if request.texts is None else tuple(request.texts[i] for i in rows),
                ),
                images[rows],
            )

    chosen = harness.choose([entry.name], context(kind, precision))
    # What brings its prompts stands for all of them; here a few have to do.
    whole = made(entry).prompts and registry.get("prompts", chosen[0].prompts)().texts
    harness.fits(chosen, tasks_of(entry)[0], len(whole) if whole else len(order))
    return scores_of(chosen, list(batches()), context(kind, precision))


def tasks_of(entry: Entry) -> list[str]:
    kinds = ["class_conditional", "text_to_image"]
    return kinds if entry.target.task == "any" else [entry.target.task]


def count_of(entry: Entry) -> int:
    return max(entry.target.minimum, 24)


@functools.cache
def plain(name: str) -> dict:
    entry = next(p.values[0] for p in entries("metric") if p.values[0].name == name)
    return measured(entry, torch.arange(count_of(entry)), 64)


def assert_close(found: dict, expected: dict) -> None:
    """Scores that agree up to float32 features, which differ in the last bit by batch size."""
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        score, other = one.score, found[name].score
        assert found[name].version == one.version and other.n == score.n
        assert other.value == pytest.approx(score.value, rel=1e-4, abs=1e-6), name
        if score.standard_error is None:
            assert other.standard_error is None
        else:
            assert other.standard_error == pytest.approx(score.standard_error, rel=1e-3)


@every
def test_scores(entry: Entry) -> None:
    found = plain(entry.name)
    assert all(name == entry.name or name.startswith(f"{entry.name}/") for name in found)
    for name, one in found.items():
        score = one.score
        assert one.version == entry.target.version >= 1
        assert math.isfinite(score.value) and 0 < score.n <= count_of(entry), name
        assert score.standard_error is None or score.standard_error > 0
        for fact in score.facts.values():
            assert isinstance(fact, str | int | float)


@every
@pytest.mark.parametrize("batch", [17, 1000])
def test_any_batch_size(entry: Entry, batch: int) -> None:
    assert_close(measured(entry, torch.arange(count_of(entry)), batch), plain(entry.name))


@every
def test_precision_is_recorded_where_it_counts(entry: Entry) -> None:
    found = plain(entry.name)
    assert {one.precision for one in found.values()} == {
        "fp32" if entry.target.takes_precision else ""
    }
    if entry.target.takes_precision:
        assert found[entry.name].score.facts["precision"] == "fp32"
    else:
        assert measured(entry, torch.arange(count_of(entry)), 64, precision="bf16") == found


@every
def test_any_order(entry: Entry) -> None:
    order = torch.randperm(count_of(entry), generator=torch.Generator().manual_seed(0))
    assert_close(measured(entry, order, 64), plain(entry.name))


@every
def test_facts_that_other_images_change_are_results(entry: Entry) -> None:
    """All others are conditions, which a comparison lists where they differ."""
    found = measured(entry, torch.arange(count_of(entry)), 64, dark=True)
    for name, one in plain(entry.name).items():
        facts, others = one.score.facts, found[name].score.facts
        assert {fact for fact in facts if facts[fact] != others[fact]} <= set(entry.target.findings)


@every
def test_counts_are_exact(entry: Entry) -> None:
    """Sums of whole numbers are equal to the last bit whatever the batches."""
    kind = entry.target.task
    request, images = asked(entry, 24)
    found = []
    for batch in (24, 5):
        metric = entry.target(context(kind))
        networks = functools.partial(harness.load_encoder, device=torch.device("cpu"))
        for start in range(0, 24, batch):
            rows = request.rows(start, start + batch)
            metric.update(harness.Observation(images[start : start + batch], rows, networks))
        found.append((metric.sums, {n: torch.cat(parts) for n, parts in metric.rows.items()}))
    (sums, rows), (other_sums, other_rows) = found
    for name, value in sums.items():
        assert value.dtype == torch.float64 or not value.is_floating_point()
        if torch.equal(value, value.round()):
            assert torch.equal(other_sums[name], value)
        torch.testing.assert_close(other_sums[name], value, rtol=1e-4, atol=1e-3)
    for name, value in rows.items():
        assert len(value) == 24
        torch.testing.assert_close(other_rows[name], value, rtol=1e-3, atol=1e-4)


@every
def test_too_few_are_refused(entry: Entry) -> None:
    made(entry)
    if entry.target.minimum > 1:
        with pytest.raises(MetricError, match=f"at least {entry.target.minimum}"):
            measured(entry, torch.arange(entry.target.minimum - 1), 64)


@every
def test_nothing_is_refused(entry: Entry) -> None:
    kind = entry.target.task
    made(entry)
    with pytest.raises(MetricError, match="no samples"):
        scores_of([entry.target(context(kind))], [], context(kind))


@every
def test_another_task_is_refused(entry: Entry) -> None:
    for other in {"class_conditional", "text_to_image"} - set(tasks_of(entry)):
        with pytest.raises(MetricError, match=f"{entry.name} is for {entry.target.task}"):
            chosen = harness.choose([entry.name], context(entry.target.task))
            harness.fits(chosen, other, 10**6)


@every
def test_named_alike(entry: Entry) -> None:
    assert entry.target.name == entry.name
    # A Fréchet distance on a network that is not Inception's is not called FID.
    assert "fid" not in entry.name or entry.target.network == "inception-2015"
