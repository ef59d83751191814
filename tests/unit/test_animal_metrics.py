"""The metric classes on a stand-in network and data set: sums, references, facts and refusals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import pytest
import torch
from torch import Tensor

from nanogen import registry
from nanogen.data.base import Sample
from nanogen.errors import MetricError
from nanogen.metrics.base import Context, Metric, Observation, Score
from nanogen.metrics.class_accuracy import AccuracyAnimals, proportion_error
from nanogen.metrics.frechet import FdAnimals, Gaussian, frechet_distance
from nanogen.metrics.inception_score import IsAnimals
from nanogen.metrics.precision_recall import PrAnimals
from nanogen.metrics.reference import load_encoder
from nanogen.types import Request

CLASSES = 3


class Stub:
    """Four "features" and three "logits" read off the first pixels."""

    fingerprint = "stub-1"
    classes = ("bear", "bird", "cat")

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        flat = images.flatten(1).float()
        return {"pool": flat[:, :4] / 255, "logits": flat[:, 4 : 4 + CLASSES]}


class Noise:
    """Random images; the label is written into the pixels that the stub reads, right in 4 of 5."""

    size, classes, captioned, fingerprint = 2, ("bear", "bird", "cat"), False, "noise-1"

    def count(self, split: str) -> int:
        return {"train": 40, "held-out": 25}.get(split, 0)

    def read(self, split: str, index: int, draw: int) -> Sample:
        image = numpy.random.RandomState(index + 1000 * len(split)).randint(0, 200, (3, 2, 2))
        seen = (index + (index % 5 == 0)) % CLASSES
        image.reshape(-1)[4 + seen] = 255
        return Sample(torch.from_numpy(image).to(torch.uint8), index % CLASSES)

    def prompts(self) -> tuple[str, ...]:
        return ()


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    entry = registry.Entry("network", "animals-cnn", Stub, "", "", "")
    monkeypatch.setattr(registry, "get", lambda kind, name: entry.target)
    load_encoder.cache_clear()
    yield Context(Noise(), torch.device("cpu"), batch=7)
    load_encoder.cache_clear()


def samples(n: int) -> tuple[Tensor, Request]:
    images = torch.from_numpy(numpy.random.RandomState(3).randint(0, 256, (n, 3, 2, 2)))
    return images.to(torch.uint8), Request(torch.arange(n), labels=torch.arange(n) % CLASSES)


def scores(metric: Metric, n: int, batch: int) -> dict[str, Score]:
    images, request = samples(n)
    for start in range(0, n, batch):
        stop = start + batch
        part = Observation(images[start:stop], request.rows(start, stop), lambda name: Stub())
        metric.update(part)
    return metric.compute(metric.sums, {k: torch.cat(v) for k, v in metric.rows.items()})


def test_frechet_is_the_distance_to_all_training_images(context: Context) -> None:
    real = torch.stack([Noise().read("train", i, i).image for i in range(40)])
    expected = frechet_distance(
        Gaussian.of(Stub()(samples(60)[0])["pool"]), Gaussian.of(Stub()(real)["pool"])
    )
    score = scores(FdAnimals(context), 60, 60)["fd-animals"]
    assert score.value == pytest.approx(expected, rel=1e-9)
    assert score.n == 60 and score.standard_error is None and not score.higher_is_better
    assert score.facts["reference_images"] == 40
    assert score.facts["reference_hash"] == "noise-1"
    assert score.facts["network_hash"] == "stub-1"


@pytest.mark.parametrize("metric", [FdAnimals, IsAnimals, PrAnimals, AccuracyAnimals])
def test_batches_do_not_matter(metric: type[Metric], context: Context) -> None:
    whole, pieces = scores(metric(context), 60, 60), scores(metric(context), 60, 7)
    for name, score in whole.items():
        assert pieces[name].value == pytest.approx(score.value, rel=1e-9)


def test_precision_and_recall_are_parts_of_one_metric(context: Context) -> None:
    found = scores(PrAnimals(context), 60, 60)
    assert set(found) == {"pr-animals/precision", "pr-animals/recall"}
    assert found["pr-animals/precision"].facts["reference_images"] == 40


def test_the_reference_is_evenly_spaced_where_it_is_a_subset(context: Context) -> None:
    class Ten(PrAnimals):
        real_images = 10

    real = torch.stack([Noise().read("train", i, i).image for i in range(0, 40, 4)])
    assert torch.equal(Ten(context).reference, Stub()(real)["pool"])


def test_accuracy_counts_requested_classes_and_states_that_of_real_images(context: Context) -> None:
    images, request = samples(60)
    right = (Stub()(images)["logits"].argmax(1) == request.labels).double()
    score = scores(AccuracyAnimals(context), 60, 7)["accuracy-animals"]
    assert score.value == pytest.approx(right.mean().item())
    assert score.standard_error == pytest.approx(proportion_error(score.value, 60))
    assert score.facts["real"] == pytest.approx(0.8)
    by_class = [right[request.labels == c].mean().item() for c in range(CLASSES)]
    assert score.facts["worst_class"] == Noise.classes[int(numpy.argmin(by_class))]
    assert score.facts["worst_class_accuracy"] == pytest.approx(min(by_class))


def test_accuracy_needs_classes(context: Context) -> None:
    images, request = samples(5)
    by_text = Request(request.indices, texts=("a cat",) * 5)
    with pytest.raises(MetricError, match="known classes"):
        AccuracyAnimals(context).update(Observation(images, by_text, lambda name: Stub()))


def test_accuracy_refuses_other_classes(context: Context) -> None:
    class Others(Noise):
        classes, fingerprint = ("apple", "pear", "plum"), "others-1"

    metric = AccuracyAnimals(Context(Others(), context.device))
    with pytest.raises(MetricError, match="knows the classes bear, bird, cat"):
        metric.check(60)
    beyond = Request(torch.arange(2), labels=torch.tensor([0, CLASSES]))
    with pytest.raises(MetricError, match=f"samples are of class {CLASSES}; leave this metric out"):
        AccuracyAnimals(context).check_request(beyond)


def test_the_error_of_a_share() -> None:
    assert proportion_error(0.5, 10_000) == pytest.approx(0.005, rel=1e-3)
    assert proportion_error(1.0, 100) > 0.01
