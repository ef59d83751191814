"""FDr: the published constants, ratios and their mean, statistics of others, the printed tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import scipy.linalg
import tiny_fdr
import tiny_inception
import torch
from measuring import measured
from parts import Excerpt
from torch import Tensor

from nanogen import registry, store
from nanogen.bench import published
from nanogen.data.animals import Animals
from nanogen.data.base import Source
from nanogen.errors import ConfigError, MetricError
from nanogen.metrics import fdr
from nanogen.metrics.base import Context, Features, Metric, Observation
from nanogen.metrics.fdr import Fdr6, FrechetRatio
from nanogen.metrics.frechet import frechet_distance
from nanogen.metrics.gaussian import Gaussian
from nanogen.metrics.harness import choose, fits
from nanogen.metrics.spaces import SPACES
from nanogen.metrics.statistics_file import place, statistics_of
from nanogen.types import Request

CONSTANTS = {
    "inception": 1.68,
    "convnext": 56.87,
    "dinov2_cls": 14.19,
    "mae_cls": 0.04,
    "siglip_cls": 0.60,
    "clip_cls": 5.60,
}
"""as published, rounded: 0.04 has one digit and must keep it"""
WIDTH = 6
COUNT = 400


def features(key: str, count: int = COUNT, shift: float = 0.0) -> Tensor:
    """[count, WIDTH] float32, of another distribution in each space."""
    draw = numpy.random.RandomState(list(SPACES).index(key))
    mix = draw.randn(WIDTH, WIDTH) / 2
    return torch.from_numpy(draw.randn(count, WIDTH) @ mix + 0.3 + shift).float()


class Stub:
    fingerprint = "stub/1"


@pytest.fixture
def statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Gaussian]:
    """Train statistics of each space in a store of their own, by key."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fdr, "load_encoder", lambda name, device: Stub)
    found = {}
    for key, space in SPACES.items():
        moments = Gaussian.of(features(key, 3 * COUNT, shift=0.1))
        file = tmp_path / space.statistics.file
        numpy.savez(file, mu=moments.mean.numpy(), sigma=moments.covariance.numpy())
        store.prepare(space.statistics, file)
        found[key] = moments
    return found


def context(source: object = None) -> Context:
    return Context(source, torch.device("cpu"))  # ty: ignore[invalid-argument-type]


def seen(name: str, count: int = COUNT) -> Features:
    key = next(key for key, space in SPACES.items() if space.network == name)
    return {"pool": features(key, count)}


def totals(metric: Metric, batches: int = 3) -> Mapping[str, Tensor]:
    """The sums of a metric that saw the features in uneven batches."""
    images = torch.zeros(COUNT, 3, 2, 2, dtype=torch.uint8)
    for rows in torch.arange(COUNT).tensor_split([7, 200][: batches - 1]):
        networks = lambda name, rows=rows: lambda images: {"pool": seen(name)["pool"][rows]}  # noqa: E731
        metric.update(Observation(images[rows], Request(rows), networks))
    return metric.sums


def literal_distance(x: Tensor, reference: Gaussian) -> float:
    """The formula by a general matrix square root."""
    mean, covariance = x.double().mean(0).numpy(), numpy.cov(x.double().numpy(), rowvar=False)
    mu, sigma = reference.mean.numpy(), reference.covariance.numpy()
    root = scipy.linalg.sqrtm(covariance @ sigma).real
    return ((mean - mu) ** 2).sum() + numpy.trace(covariance + sigma - 2 * root)


def test_the_constants_are_the_published_ones() -> None:
    assert {key: space.constant for key, space in SPACES.items()} == CONSTANTS
    assert set(fdr.RATIOS) == set(CONSTANTS)
    for key, metric in fdr.RATIOS.items():
        assert registry.get("metric", f"fdr-{key}") is metric
        assert metric.spaces == (SPACES[key],)


def test_the_reference_files_are_the_published_ones() -> None:
    """Inception's is ADM's, not that of the FID column: a row would shift by up to 0.37 FID."""
    assert {key: space.statistics.file for key, space in SPACES.items()} == {
        "inception": "guided_diffusion_stats.npz",
        "convnext": "convnext_in256_t224_stats.npz",
        "dinov2_cls": "vit_large_patch14_dinov2_lvd142m_in256_t256_stats.npz",
        "mae_cls": "vit_large_patch16_224_mae_in256_t224_stats.npz",
        "siglip_cls": "vit_so400m_patch16_siglip_256_v2_webli_in256_t224_stats.npz",
        "clip_cls": "vit_large_patch14_clip_224_openai_in256_t256_stats.npz",
    }
    assert len({space.statistics.name for space in SPACES.values()}) == len(SPACES)


@pytest.mark.parametrize("key", SPACES)
def test_a_ratio_and_its_distance(key: str, statistics: Mapping[str, Gaussian]) -> None:
    metric = fdr.RATIOS[key](context())
    scores = metric.compute(totals(metric), {})
    expected = literal_distance(features(key), statistics[key])
    assert set(scores) == {f"fdr-{key}", f"fdr-{key}/distance"}
    assert scores[f"fdr-{key}/distance"].value == pytest.approx(expected, rel=1e-6)
    assert scores[f"fdr-{key}"].value == pytest.approx(expected / CONSTANTS[key], rel=1e-6)
    for score in scores.values():
        assert score.n == COUNT and score.standard_error is None and not score.higher_is_better
        assert score.facts["network"] == SPACES[key].network
        assert score.facts["network_hash"] == "stub/1"
        assert score.facts["reference"] == SPACES[key].statistics.file
        assert score.facts["reference_hash"] == store.find(SPACES[key].statistics).sha256


@pytest.mark.parametrize("key", SPACES)
def test_images_of_the_constant_score_one(
    key: str, statistics: Mapping[str, Gaussian], monkeypatch: pytest.MonkeyPatch
) -> None:
    distance = frechet_distance(Gaussian.of(features(key)), statistics[key])
    space = replace(SPACES[key], constant=distance)
    monkeypatch.setattr(fdr.RATIOS[key], "spaces", (space,))
    metric = fdr.RATIOS[key](context())
    assert metric.compute(totals(metric), {})[f"fdr-{key}"].value == pytest.approx(1, abs=1e-9)


def test_six_is_the_mean_of_six(statistics: Mapping[str, Gaussian]) -> None:
    metric = Fdr6(context())
    scores = metric.compute(totals(metric), {})
    expected = {key: literal_distance(features(key), statistics[key]) for key in SPACES}
    ratios = {key: distance / CONSTANTS[key] for key, distance in expected.items()}
    assert set(scores) == {"fdr6", *(f"fdr6/{key}" for key in SPACES)}
    assert scores["fdr6"].value == pytest.approx(sum(ratios.values()) / 6, rel=1e-6)
    for key, ratio in ratios.items():
        assert scores[f"fdr6/{key}"].value == pytest.approx(ratio, rel=1e-6)
        hash_of = store.find(SPACES[key].statistics).sha256
        assert scores["fdr6"].facts[f"reference_hash/{key}"] == hash_of


def test_six_without_one_is_no_number() -> None:
    ratios = dict.fromkeys(SPACES, 1.0)
    assert fdr.fdr6(ratios) == 1
    del ratios["clip_cls"]
    with pytest.raises(MetricError, match="clip_cls is missing"):
        fdr.fdr6(ratios)


@pytest.mark.parametrize("missing", ["siglip2-so400m", "fdr-mae-statistics"])
def test_six_is_refused_before_anything_is_drawn_where_one_asset_is_missing(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for asset in Fdr6.assets:
        if asset.name != missing:
            file = tmp_path / asset.file
            file.write_bytes(b"")
            store.prepare(replace(asset, sha256=""), file)
    monkeypatch.setattr(store, "_agrees", lambda asset, manifest: True)
    with pytest.raises(ConfigError, match=f"run: nanogen prepare {missing}"):
        Fdr6(context()).check(50_000)


def test_statistics_of_another_network_are_refused_before_anything_is_drawn(
    statistics: Mapping[str, Gaussian], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fdr.RATIOS["mae_cls"], "assets", ())
    with pytest.raises(MetricError, match="fdr-mae-statistics has 6 features, mae-l has 1024"):
        fdr.RATIOS["mae_cls"](context()).check(50_000)


def test_fewer_samples_than_twice_the_features_are_refused() -> None:
    with pytest.raises(MetricError, match="fdr-siglip_cls needs at least 2304 samples, not 2303"):
        fdr.RATIOS["siglip_cls"](context()).check(2303)
    assert Fdr6.minimum == 4096


def test_uneven_batches_make_no_difference(statistics: Mapping[str, Gaussian]) -> None:
    one, three = fdr.RATIOS["mae_cls"](context()), fdr.RATIOS["mae_cls"](context())
    expected = one.compute(totals(one, 1), {})["fdr-mae_cls"].value
    found = three.compute(totals(three, 3), {})["fdr-mae_cls"].value
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("protocol", published.PROTOCOLS)
def test_printed_tables_fit_the_constant_of_inception(protocol: str) -> None:
    """Two reference files, one constant: 1.68 FDr and FID differ by at most 0.38 in any row."""
    rows = [m.imagenet[protocol] for m in published.methods() if m.imagenet]
    assert len(rows) == 26
    gaps = [CONSTANTS["inception"] * row["fdr_inception"] - row["fid"] for row in rows]
    assert max(map(abs, gaps)) <= 0.38
    assert abs(sum(gaps) / len(gaps)) < 0.05


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """All six networks and their statistics, tiny; animals in place of ImageNet."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(store, "_agrees", lambda asset, manifest: True)
        tiny_inception.shrink(patch)
        tiny_fdr.shrink(patch)
        files = tiny_inception.prepare_tiny(folder) | tiny_fdr.prepare_tiny(folder)
        for asset in (*Fdr6.assets,):
            store.prepare(asset, files[asset.name])
        yield Excerpt(Animals().build(), {"train": 80, "held-out": 2 * tiny_inception.POOL})
    fdr.load_encoder.cache_clear()


def batches(source: Source, size: int) -> list[tuple[Request, Tensor]]:
    read = [source.read("held-out", i, i) for i in range(source.count("held-out"))]
    images = torch.stack([sample.image for sample in read])
    return [
        (Request(rows, labels=torch.zeros(len(rows)).long()), images[rows])
        for rows in torch.arange(len(images)).split(size)
    ]


@pytest.mark.slow
def test_all_at_once_from_images(tiny: Source) -> None:
    """Six, one of them alone, and the plain distance: each network is run once a batch."""
    names = ("fdr6", "fdr-clip_cls", "fd-clip_cls")
    metrics = choose(names, context(tiny))
    fits(metrics, "class_conditional", tiny.count("held-out"))
    scores = measured(metrics, batches(tiny, 100), context(tiny))
    assert scores["fdr6/clip_cls"].score.value == scores["fdr-clip_cls"].score.value
    parts = [scores[f"fdr6/{key}"].score.value for key in SPACES]
    assert scores["fdr6"].score.value == pytest.approx(sum(parts) / 6)
    plain = scores["fd-clip_cls"].score
    assert plain.facts["reference"] == "train split" and plain.facts["reference_images"] == 80
    assert plain.value != scores["fdr-clip_cls/distance"].score.value


@pytest.mark.slow
def test_a_distance_to_statistics_of_ones_own(tiny: Source) -> None:
    """Of the same images, so that the distance is none; in whatever task they were drawn."""
    shown = batches(tiny, 100)
    for network in ("clip-l", "inception-2015"):
        made = statistics_of((images for _, images in shown), network, torch.device("cpu"))
        made.save(place(f"own-{network}"))
    (metric,) = choose(["fd-clip_cls[reference=own-clip-l]"], context(tiny))
    fits([metric], "text_to_image", tiny.count("held-out"))
    found = measured([metric], shown, context(tiny))[metric.title].score
    assert found.value == pytest.approx(0, abs=1e-4)
    assert found.facts["reference"] == "own-clip-l"
    assert found.facts["reference_images"] == tiny.count("held-out")
    (other,) = choose(["fd-clip_cls[reference=own-inception-2015]"], context(tiny))
    with pytest.raises(MetricError, match="made with inception-2015/.*, samples are seen by clip"):
        other.check(tiny.count("held-out"))


def test_classes_of_the_family_say_what_they_are() -> None:
    for metric in (*fdr.RATIOS.values(), Fdr6):
        assert issubclass(metric, FrechetRatio)
    assert "fd-inception" not in {entry.name for entry in registry.entries("metric")}
