"""Statistics of one's own as the reference of a Fréchet distance on any network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from measuring import measured
from parts import Excerpt
from torch import Tensor

from nanogen.data.animals import Animals
from nanogen.encoders.animals_cnn import AnimalsCnn
from nanogen.errors import ConfigError, MetricError
from nanogen.fingerprint import digest_of_file
from nanogen.metrics import frechet
from nanogen.metrics.base import Context
from nanogen.metrics.fid import Fid
from nanogen.metrics.gaussian import Gaussian
from nanogen.metrics.harness import choose, fits
from nanogen.metrics.statistics_file import Statistics, place, statistics_of
from nanogen.types import Request

CPU = torch.device("cpu")
SOURCE = Excerpt(Animals().build(), {"train": 300})
CONTEXT = Context(SOURCE, CPU)
TITLE = "fd-animals[reference=mine]"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def images(start: int, stop: int) -> Tensor:
    return torch.stack([SOURCE.read("held-out", i, 0).image for i in range(start, stop)])


@pytest.fixture
def mine() -> Tensor:
    """Images of one's own, and their statistics in the store."""
    shown = images(0, 400)
    statistics_of(shown.split(64), "animals-cnn", CPU).save(place("mine"))
    return shown


def moments(shown: Tensor) -> tuple[np.ndarray, np.ndarray]:
    pool = AnimalsCnn()(shown)["pool"].double().numpy()
    return pool.mean(0), np.cov(pool, rowvar=False)


def test_a_distance_to_images_of_ones_own(mine: Tensor) -> None:
    shown = images(400, 700)
    metrics = choose([TITLE, "fd-animals"], CONTEXT)
    fits(metrics, "class_conditional", 300)
    request = Request(torch.arange(300), labels=torch.zeros(300).long())
    scores = measured(metrics, [(request, shown)], CONTEXT)
    (a, s), (b, r) = moments(shown), moments(mine)
    expected = ((a - b) ** 2).sum() + np.trace(s + r - 2 * scipy.linalg.sqrtm(s @ r).real)
    found = scores[TITLE].score
    assert found.value == pytest.approx(expected, rel=1e-3)
    assert found.facts["reference"] == "mine" and found.facts["reference_images"] == 400
    assert found.facts["reference_hash"] == digest_of_file(place("mine"))
    # The default stays the data of the run, whatever was made before.
    other = scores["fd-animals"].score
    assert other.facts["reference"] == "train split" and other.facts["reference_images"] == 300
    assert other.value != pytest.approx(found.value, rel=1e-3)


@pytest.mark.parametrize(
    "name", ["fid", "fid50k", "sfid", "fd-animals", "fd-dinov2_cls", "fd-siglip_cls"]
)
def test_an_unknown_reference_is_refused_before_anything_else(name: str, mine: Tensor) -> None:
    for samples in (3, 10**6):
        (metric,) = choose([f"{name}[reference=mime]"], CONTEXT)
        with pytest.raises(ConfigError, match="there is no reference 'mime' of ") as refused:
            metric.check(samples)
        # Statistics of another network are no choice.
        assert ("did you mean mine" in str(refused.value)) == (name == "fd-animals")


def test_published_statistics_are_of_inception_only(mine: Tensor) -> None:
    (metric,) = choose(["fd-animals[reference=jit-in256]"], CONTEXT)
    with pytest.raises(ConfigError, match=r"'jit-in256' of animals-cnn; known: data, mine"):
        metric.check(300)


def test_statistics_of_another_network_are_refused(mine: Tensor) -> None:
    wide = Gaussian.of(torch.randn(300, 128, generator=torch.Generator().manual_seed(0)))
    Statistics({"pool": wide}, "mae-l", "mae-l/0123").save(place("theirs"))
    (metric,) = choose(["fd-animals[reference=theirs]"], CONTEXT)
    with pytest.raises(MetricError, match="made with mae-l/0123, samples are seen by animals-cnn"):
        metric.check(300)
    with pytest.raises(MetricError, match="needs at least 256 samples, not 3"):
        choose([TITLE], CONTEXT)[0].check(3)


def test_data_without_training_images_are_no_reference() -> None:
    nothing = Context(Excerpt(SOURCE, {"train": 0}), CPU)
    with pytest.raises(MetricError, match="has 0; choose another reference"):
        choose(["fd-animals"], nothing)[0].check(300)


def test_who_takes_statistics_of_a_network() -> None:
    assert frechet.distances_on("animals-cnn") == ["fd-animals"]
    assert frechet.distances_on("dinov2-l") == ["fd-dinov2_cls"]
    assert frechet.distances_on(Fid.network) == ["fid", "fid50k", "sfid"]
    assert frechet.distances_on("scene-detector") == []
