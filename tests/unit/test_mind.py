"""MIND: golden values, its theory, an independent sliced distance, and what its name says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import tiny_fdr
import tiny_inception
import torch
from measuring import measured
from parts import Excerpt
from torch import Tensor

from nanogen import store
from nanogen.data.animals import Animals
from nanogen.data.base import Source
from nanogen.errors import ConfigError, MetricError
from nanogen.metrics.base import Context
from nanogen.metrics.harness import choose, fits
from nanogen.metrics.image_array import ImageArray
from nanogen.metrics.mind import VALIDATION, Mind, mind
from nanogen.metrics.reference import load_encoder
from nanogen.metrics.spaces import SPACES
from nanogen.types import Request

GOLDEN, GOLDEN_UNEQUAL = 17.729453460630097, 18.38477304166054
"""in float64, of 256 features with 256 and with 300"""


def normal(seed: int, n: int, d: int) -> Tensor:
    return torch.from_numpy(numpy.random.RandomState(seed).randn(n, d)).float()


def golden_sets(n: int = 256) -> tuple[Tensor, Tensor]:
    a = numpy.random.RandomState(6).randn(256, 16).astype("float32")
    b = (numpy.random.RandomState(7).randn(n, 16) * 1.5 + 0.3).astype("float32")
    return torch.from_numpy(a), torch.from_numpy(b)


def literal(x: Tensor, y: Tensor, projections: int = 1000, seed: int = 2020) -> float:
    """Equal sets, one direction at a time."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(projections, x.shape[1], generator=draw).double().numpy()
    total = 0.0
    for direction in directions:
        u = direction / math.sqrt((direction**2).sum())
        a, b = numpy.sort(x.double().numpy() @ u), numpy.sort(y.double().numpy() @ u)
        total += ((a - b) ** 2).mean()
    return 3 * x.shape[1] * total / projections


def test_golden_values() -> None:
    assert mind(*golden_sets()) == pytest.approx(GOLDEN, rel=1e-7)
    assert mind(*golden_sets()) == pytest.approx(17.729453, rel=1e-5)
    assert mind(*golden_sets(300)) == pytest.approx(GOLDEN_UNEQUAL, rel=1e-7)
    assert mind(*golden_sets(300)) == pytest.approx(18.384772, rel=1e-5)


def test_it_is_three_d_times_the_mean_of_one_dimensional_distances() -> None:
    x, y = golden_sets()
    assert mind(x, y, 50, seed=3) == pytest.approx(literal(x, y, 50, seed=3), rel=1e-12)


def test_of_the_larger_set_the_generator_draws_first() -> None:
    """The directions come after the permutation, whichever set is longer."""
    x, y = golden_sets(300)
    draw = torch.Generator().manual_seed(2020)
    fewer = y[torch.randperm(300, generator=draw)[:256]]
    directions = torch.randn(1000, 16, generator=draw).double()
    directions /= directions.norm(dim=1, keepdim=True)
    a, b = ((features.double() @ directions.T).sort(0).values for features in (x, fewer))
    expected = 48 * (a - b).square().mean().item()
    assert mind(x, y) == pytest.approx(expected, rel=1e-12)
    assert mind(y, x) == pytest.approx(expected, rel=1e-12)


def test_a_shift_has_three_times_its_squared_length() -> None:
    """The mean over seeds of an unbiased value with relative deviation sqrt(2 / M)."""
    x = normal(0, 100, 64)
    shift = torch.linspace(-1, 1, 64)
    shift /= shift.norm()
    values = [mind(x, x + shift, seed=seed) for seed in range(20)]
    for value in values:
        assert value == pytest.approx(3, rel=4 * math.sqrt(2 / 1000))
    assert numpy.mean(values) == pytest.approx(3, rel=0.02)
    assert mind(x, x + shift) == pytest.approx(3, rel=0.06)


@pytest.mark.slow
def test_a_scale_has_three_times_its_frechet_distance_and_the_floor_of_n() -> None:
    x, y = normal(1, 20_000, 64), 1.1 * normal(2, 20_000, 64)
    assert mind(x, y) == pytest.approx(2.02, abs=0.06)


@pytest.mark.parametrize("at_once", [1, 7, 333, 1000, 5000])
def test_chunks_of_directions_change_nothing(at_once: int) -> None:
    assert mind(*golden_sets(), at_once=at_once) == pytest.approx(GOLDEN, rel=1e-12)


def test_rows_are_projected_in_parts_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanogen.metrics.mind.ROWS", 17)
    assert mind(*golden_sets()) == pytest.approx(GOLDEN, rel=1e-12)


def test_it_is_a_sliced_wasserstein_distance() -> None:
    """scipy's distance of two samples, squared by way of sorted values; POT's gave 17.72945342."""
    x, y = golden_sets()
    assert mind(x, y) == pytest.approx(17.729453416693776, rel=1e-6)
    ot = pytest.importorskip("ot")
    draw = torch.Generator().manual_seed(2020)
    directions = torch.randn(1000, 16, generator=draw)
    directions /= directions.norm(dim=1, keepdim=True)
    distance = ot.sliced_wasserstein_distance(
        x.numpy(), y.numpy(), projections=directions.T.numpy()
    )
    assert mind(x, y) == pytest.approx(48 * distance**2, rel=1e-6)


def test_the_order_of_rows_does_not_show() -> None:
    x, y = golden_sets()
    order = torch.randperm(256, generator=torch.Generator().manual_seed(1))
    assert mind(x, x[order]) == pytest.approx(0, abs=1e-20)
    assert mind(x[order], y) == pytest.approx(GOLDEN, rel=1e-12)
    assert mind(y, x) == pytest.approx(GOLDEN, rel=1e-12)


def test_sets_that_cannot_be_compared() -> None:
    with pytest.raises(MetricError, match="one width"):
        mind(normal(0, 4, 3), normal(0, 4, 2))
    with pytest.raises(MetricError, match="one width"):
        mind(normal(0, 0, 3), normal(0, 4, 3))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A tiny CLIP and Inception, 40 reference images, and a data set of few animals."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(store, "_agrees", lambda asset, manifest: True)
        tiny_inception.shrink(patch)
        tiny_fdr.shrink(patch)
        files = tiny_inception.prepare_tiny(folder) | tiny_fdr.prepare_tiny(folder)
        for asset in (SPACES["inception"].weights, SPACES["clip_cls"].weights, VALIDATION):
            store.prepare(asset, files[asset.name])
        yield Excerpt(Animals().build(), {"train": 10, "held-out": 30})
    load_encoder.cache_clear()


def context(source: object = None, batch: int = 256) -> Context:
    return Context(source, torch.device("cpu"), batch)  # ty: ignore[invalid-argument-type]


def samples(count: int = 50) -> Tensor:
    return tiny_fdr.images(count, 32, 32).flip(0)


def pairs(images: Tensor, size: int = 20) -> list[tuple[Request, Tensor]]:
    rows = torch.arange(len(images)).split(size)
    return [(Request(r, labels=torch.zeros(len(r)).long()), images[r]) for r in rows]


def test_the_name_says_directions_seed_and_n(tiny: Source) -> None:
    name = "mind[network=clip_cls,projections=100,seed=7]"
    (metric,) = metrics = choose([name], context(tiny))
    fits(metrics, "class_conditional", 50)
    assert isinstance(metric, Mind)
    ((title, found),) = measured(metrics, pairs(samples()), context(tiny)).items()
    assert title == f"{name}/m100-seed7-n40"
    assert found.score.n == 50 and not found.score.higher_is_better
    assert found.score.standard_error is None
    facts = found.score.facts
    assert facts["compared"] == 40 and facts["reference_images"] == 40
    assert facts["reference"] == "imagenet-256-val.npz"
    assert facts["reference_hash"] == store.find(VALIDATION).sha256
    assert str(facts["network_hash"]).startswith("clip-l/")

    network = load_encoder("clip-l", torch.device("cpu"))
    reference = torch.stack([image for image in tiny_fdr.images(40)])
    expected = mind(network(samples())["pool"], network(reference)["pool"], 100, 7)
    assert found.score.value == pytest.approx(expected, rel=1e-4)


def test_against_the_held_out_images_of_the_run(tiny: Source) -> None:
    metrics = choose(["mind[reference=data]"], context(tiny))
    fits(metrics, "class_conditional", 24)
    images = torch.stack([tiny.read("held-out", i, i).image for i in range(30)])
    same = measured(metrics, pairs(images), context(tiny))
    ((title, found),) = same.items()
    assert title == "mind[reference=data]/m1000-seed2020-n30"
    assert found.score.value == pytest.approx(0, abs=1e-6)
    assert found.score.facts["reference"] == "held-out split"
    assert found.score.facts["reference_hash"] == tiny.fingerprint


def test_features_of_the_reference_are_computed_once(
    tiny: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Mind(context(tiny), {"network": "clip_cls"}).reference
    monkeypatch.setattr(ImageArray, "read", lambda *args: pytest.fail("images are read again"))
    assert torch.equal(Mind(context(tiny, 3), {"network": "clip_cls"}).reference, first)
    assert first.shape == (40, tiny_fdr.WIDTH)


def test_options_that_are_no_numbers() -> None:
    for option, word in (("projections", "0"), ("projections", "many"), ("seed", "1.5")):
        with pytest.raises(ConfigError, match=f"{option}={word}; write a whole number"):
            Mind(context(), {option: word})
    with pytest.raises(ConfigError, match="network=dino"):
        choose(["mind[network=dino]"], context())


def test_what_it_lacks_is_said_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Source
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="needs dinov2-l .*imagenet-256-val"):
        Mind(context(tiny), {"network": "dinov2_cls"}).check(5000)
    assert Mind(context(), {"reference": "data"}).assets == (SPACES["inception"].weights,)


def test_data_without_a_held_out_split(tiny: Source) -> None:
    source = Excerpt(tiny, {"held-out": 0})
    with pytest.raises(MetricError, match="no held-out split; leave reference=data out"):
        Mind(context(source), {"reference": "data"}).check(5000)


def test_images_of_an_array_are_read_from_their_place(tmp_path: Path) -> None:
    pixels = numpy.random.RandomState(0).randint(0, 256, (5, 8, 8, 3)).astype("uint8")
    numpy.savez(tmp_path / "real.npz", arr_0=pixels)
    source = ImageArray(tmp_path / "real.npz", "hash", "held-out")
    assert (source.size, source.count("held-out"), source.count("train")) == (8, 5, 0)
    for index in (4, 0, 2):
        found = source.read("held-out", index, 0).image
        assert torch.equal(found, torch.from_numpy(pixels[index].transpose(2, 0, 1)))
