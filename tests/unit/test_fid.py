"""FID and the other metrics on its network: references, refusals, caches, and torch-fidelity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_inception
import torch
from measuring import measured
from parts import Excerpt
from tiny_inception import POOL, SPATIAL
from torch import Tensor

from nanogen.bench import assets
from nanogen.data.animals import Animals
from nanogen.encoders.inception import Inception2015
from nanogen.errors import ConfigError, DataError, MetricError
from nanogen.metrics import feature_cache, frechet, reference, statistics_file
from nanogen.metrics import kid as module_kid
from nanogen.metrics.base import Context, Score
from nanogen.metrics.fid import Fid, Fid50k, SpatialFid
from nanogen.metrics.frechet import frechet_distance
from nanogen.metrics.gaussian import Gaussian
from nanogen.metrics.harness import choose, fits
from nanogen.metrics.inception_score import IsOnInception, inception_score, score_of_adm
from nanogen.metrics.kid import Kid, kid
from nanogen.metrics.mind import Mind
from nanogen.metrics.pairs import PairContext, Rfid
from nanogen.metrics.precision_recall import PrOnInception, precision_recall
from nanogen.metrics.reference import cached_features, cached_gaussian, load_encoder, with_spectrum
from nanogen.store import find, prepare
from nanogen.types import Request

CPU = torch.device("cpu")
COUNT = 2 * POOL
IMAGES = tiny_inception.images(COUNT, seed=7)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Tiny files in place of the store's; nothing computed outlives the test."""
    monkeypatch.setattr(reference, "_kept", {})
    yield tiny_inception.stand_in(monkeypatch, tmp_path)
    load_encoder.cache_clear()


def context(train: int = 60) -> Context:
    return Context(Excerpt(Animals().build(), {"train": train, "held-out": 30}), CPU, batch=25)


def score(
    name: str, order: Tensor | None = None, batch: int = 50, train: int = 60
) -> Mapping[str, Score]:
    places = torch.arange(COUNT) if order is None else order
    chosen = choose([name], context(train))
    fits(chosen, "class_conditional", len(places))
    batches = [(Request(part), IMAGES[part]) for part in places.split(batch)]
    return {n: found.score for n, found in measured(chosen, batches, context()).items()}


def features(name: str) -> Tensor:
    return Inception2015()(IMAGES)[name].double()


def moments(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return x.numpy().mean(0), np.cov(x.numpy(), rowvar=False)


def literal(x: Tensor, mean: np.ndarray, covariance: np.ndarray) -> float:
    """The distance by the eigenvalues of the product, which is not symmetric."""
    mu, sigma = moments(x)
    roots = np.sqrt(np.linalg.eigvals(sigma @ covariance).astype(complex)).real
    return ((mu - mean) ** 2).sum() + np.trace(sigma + covariance) - 2 * roots.sum()


def test_fid_against_the_default_reference(files):
    found = score("fid")["fid"]
    expected = literal(features("pool"), np.zeros(POOL), np.eye(POOL))
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.n == COUNT and found.standard_error is None and not found.higher_is_better
    assert found.facts["reference"] == "jit-in256"
    assert found.facts["reference_file"] == "jit_in256_stats.npz"
    assert found.facts["reference_hash"] == find(statistics_file.JIT_IN256).sha256
    assert found.facts["network_hash"] == Inception2015().fingerprint


def test_fid_and_sfid_against_the_reference_batch_of_adm(files):
    found = score("fid[reference=adm-in256]")["fid[reference=adm-in256]"]
    expected = literal(features("pool"), np.ones(POOL), np.eye(POOL))
    assert found.value == pytest.approx(expected, rel=1e-6)
    expected = literal(features("spatial"), np.zeros(SPATIAL), np.eye(SPATIAL))
    assert score("sfid")["sfid"].value == pytest.approx(expected, rel=1e-6)
    with pytest.raises(DataError, match="not of spatial"):
        score("sfid[reference=jit-in256]")


def test_fid_against_training_images_as_they_are_stored(files):
    name = "fid[reference=data]"
    found = score(name, train=COUNT)[name]
    source = context(COUNT).source
    images = torch.stack([source.views(i)[0] for i in range(COUNT)])
    real = Inception2015()(images)["pool"].double()
    gaussian = frechet_distance(Gaussian.of(features("pool")), Gaussian.of(real))
    assert found.value == pytest.approx(gaussian, rel=1e-6)
    assert found.facts["reference_images"] == COUNT
    assert found.facts["reference_hash"] == source.fingerprint
    with pytest.raises(MetricError, match=f"needs {COUNT} real images to compare with.* has 255"):
        score(name, train=COUNT - 1)


def test_a_reference_of_ones_own(files):
    made = statistics_file.statistics_of([IMAGES[:70], IMAGES[70:]], "inception-2015", CPU)
    made.save(statistics_file.place("mine"))
    for name in ("fid[reference=mine]", "sfid[reference=mine]"):
        found = score(name)[name]
        assert found.value == pytest.approx(0, abs=1e-4)
        assert found.facts["reference_images"] == COUNT
    few = statistics_file.statistics_of([IMAGES[:3]], "inception-2015", CPU)
    few.save(statistics_file.place("few"))
    with pytest.raises(MetricError, match="real images to compare with, twice .* has 3"):
        score("fid[reference=few]")
    replace(made, network_hash="inception-2015/other").save(statistics_file.place("old"))
    with pytest.raises(MetricError, match="made with inception-2015/other"):
        score("fid[reference=old]")
    with pytest.raises(
        ConfigError, match="no reference 'minee' of inception-2015; did you mean mine"
    ):
        score("fid[reference=minee]")


def test_a_reference_of_other_features_is_refused(files):
    np.savez(files["jit-in256"], mu=np.zeros(5), sigma=np.eye(5))
    prepare(statistics_file.JIT_IN256, files["jit-in256"])
    with pytest.raises(MetricError, match=f"its reference has 5 features, samples have {POOL}"):
        score("fid")


def test_published_numbers_of_samples():
    """The stand-ins of these tests replace them: what a user gets is this."""
    known = {Fid: 4096, Fid50k: 50_000, SpatialFid: 4046, Rfid: 4096, Kid: 1000}
    known |= {IsOnInception: 1000, PrOnInception: 1000, Mind: 1000}
    assert {metric: metric.minimum for metric in known} == known
    assert (Kid.real_images, Kid.least_real_images, Kid.size) == (50_000, 1000, 1000)
    assert (PrOnInception.real_images, PrOnInception.least_real_images) == (10_000, 1000)
    assert (module_kid.SUBSETS, module_kid.SEED) == (100, 2020)


def test_fid50k_is_of_exactly_50000_samples():
    (metric,) = choose(["fid50k"], context())
    assert metric.minimum == 50_000
    with pytest.raises(MetricError, match="at least 50000 samples, not 49999"):
        metric.check(49_999)
    with pytest.raises(MetricError, match="exactly 50000 samples, not 50001"):
        metric.check(50_001)


def test_what_is_missing_is_said_before_anything_is_drawn(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("fid50k", "sfid", "is", "kid", "pr"):
        (metric,) = choose([name], context())
        with pytest.raises(ConfigError, match=r"inception-2015 .*nanogen prepare"):
            metric.check(50_000)
    with pytest.raises(ConfigError, match="nanogen prepare inception-2015"):
        Rfid(PairContext(CPU))


def test_too_few_training_images_are_refused(files, monkeypatch):
    for name, source in (("kid", context(20)), ("pr", context(20)), ("fid[reference=data]", None)):
        (metric,) = choose([name], source or context(0))
        with pytest.raises(MetricError, match="training images|real images"):
            metric.check(COUNT)


def test_an_evaluation_needs_the_assets_of_its_options_only():
    assert [a.name for a in choose(["fid"], context())[0].assets] == ["inception-2015", "jit-in256"]
    (chosen,) = choose(["fid[reference=data]"], context())
    assert [a.name for a in chosen.assets] == ["inception-2015"]
    assert [a.name for a in assets.needed("pr[reference=adm-in256]")] == [
        "inception-2015",
        "adm-in256",
    ]
    assert {"inception-2015", "jit-in256", "adm-in256"} <= set(assets.known())


def test_order_and_batches_change_nothing(files):
    shuffled = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    for name in ("fid", "sfid", "is", "kid", "pr"):
        plain, other = score(name), score(name, shuffled, 23)
        for part, found in plain.items():
            assert other[part].value == pytest.approx(found.value, rel=1e-4), part


@pytest.mark.parametrize("variant", ["fidelity", "reference", "adm"])
def test_inception_score_by_each_variant(files, variant):
    title = "is" if variant == "fidelity" else f"is[variant={variant}]"
    found = score(title)[title]
    logits = features("logits").float()
    expected = {
        "fidelity": inception_score(logits).mean,
        "reference": 5.0,
        "adm": inception_score(logits, splits=1, seed=None).mean,
    }
    if variant == "reference":
        order = np.random.RandomState(0).permutation(COUNT)
        p = logits.softmax(1).numpy()[order]
        parts = [p[i * 25 : (i + 1) * 25] for i in range(10)]
        values = [
            np.exp((q * (np.log(q + 1e-10) - np.log(q.mean(0) + 1e-10))).sum(1).mean())
            for q in parts
        ]
        expected["reference"] = float(np.mean(values))
    assert found.value == pytest.approx(expected[variant], rel=1e-5)
    assert found.facts["splits"] == (1 if variant == "adm" else 10)
    assert (found.standard_error is None) == (variant == "adm")
    if variant != "adm":  # of a mean of ten: s / sqrt(10), s with 9 degrees of freedom
        spread = np.sqrt(10 / 9) * found.facts["deviation_of_splits"]
        assert found.standard_error == pytest.approx(spread / np.sqrt(10))


def test_adms_score_is_of_parts_of_5000_in_order():
    logits = torch.from_numpy(np.random.RandomState(0).randn(5100, 6))
    whole, rest = (inception_score(part, 1, None).mean for part in logits.split(5000))
    assert score_of_adm(logits).mean == pytest.approx((whole + rest) / 2, rel=1e-12)


def test_kid_and_coverage_against_both_references(files):
    generated = features("pool")
    with np.load(files["adm-in256"]) as archive:
        images = torch.from_numpy(archive["arr_0"]).permute(0, 3, 1, 2)
    real = Inception2015()(images)["pool"].double()
    name = "kid[reference=adm-in256]"
    found = score(name)[name]
    assert found.value == pytest.approx(kid(generated, real, size=24).mean, rel=1e-5)
    assert found.facts["reference_images"] == len(real) and found.facts["subset_size"] == 24
    name = "pr[reference=adm-in256]"
    found = score(name)
    expected = precision_recall(generated, real)
    assert found[f"{name}/precision"].value == expected.precision
    assert found[f"{name}/recall"].value == expected.recall
    data = score("pr")["pr/precision"]
    assert data.facts["reference_images"] == 60 and "train split" in data.facts["reference"]


def test_rfid_is_the_distance_of_reconstructions_from_originals(files):
    metric = Rfid(PairContext(CPU))
    others = (IMAGES.float() * 0.9 + 10).to(torch.uint8)
    for start in range(0, COUNT, 60):
        metric.update(IMAGES[start : start + 60], others[start : start + 60])
    found = metric.compute(metric.sums)
    network = Inception2015()
    expected = literal(network(others)["pool"].double(), *moments(features("pool")))
    assert found.value == pytest.approx(expected, rel=1e-5) and found.n == COUNT
    same = Rfid(PairContext(CPU))
    same.update(IMAGES, IMAGES)
    assert same.compute(same.sums).value == pytest.approx(0, abs=1e-5)


class Counted:
    """Fails where features are computed once more."""

    def __init__(self, encoder) -> None:
        self.encoder, self.images = encoder, 0
        self.fingerprint = encoder.fingerprint

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        self.images += len(images)
        return self.encoder(images)


@pytest.fixture
def counted(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(reference, "_kept", {})
    encoder = Counted(load_encoder("animals-cnn", CPU))
    monkeypatch.setattr(reference, "load_encoder", lambda name, device: encoder)
    return encoder


def test_real_features_are_computed_once_for_ever(counted, monkeypatch):
    first = cached_features(context(), "animals-cnn", "pool", "train", 40)
    assert counted.images == 40 and first.shape == (40, 128) and first.dtype == torch.float32
    again = cached_features(context(), "animals-cnn", "pool", "train", 40)
    assert counted.images == 40 and torch.equal(first, again)
    gaussian = cached_gaussian(context(), "animals-cnn", "pool", "train")
    assert counted.images == 100 and gaussian.n == 60
    monkeypatch.setattr(reference, "_kept", {})
    monkeypatch.setattr(torch.linalg, "eigh", None)
    later = cached_gaussian(context(), "animals-cnn", "pool", "train")
    assert counted.images == 100
    assert torch.equal(later.covariance, gaussian.covariance)
    assert torch.equal(later.root, gaussian.root)


def test_everything_that_decides_features_is_part_of_the_key(counted):
    def drawn(source: Context, feature: str = "pool", split: str = "train", most: int = 9) -> int:
        before = counted.images
        cached_features(source, "animals-cnn", feature, split, most)
        return counted.images - before

    assert drawn(context()) == 9 and drawn(context()) == 0
    assert drawn(context(), feature="logits") == 9
    assert drawn(context(), split="held-out") == 9
    assert drawn(context(), most=10) == 10
    assert drawn(context(59)) == 9  # other data
    counted.fingerprint = "another"
    assert drawn(context()) == 9


def test_a_damaged_cache_is_made_anew_and_a_read_only_one_is_a_warning(counted, monkeypatch):
    cached_features(context(), "animals-cnn", "pool", "train", 9)
    (file,) = feature_cache.folder().iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert len(cached_features(context(), "animals-cnn", "pool", "train", 9)) == 9
    assert counted.images == 18

    def refused(path: Path) -> Path:
        raise OSError("read-only file system")

    monkeypatch.setattr(feature_cache, "writable_folder", refused)
    with pytest.warns(UserWarning, match="is not kept and will be computed again: read-only"):
        cached_features(context(), "animals-cnn", "pool", "train", 8)


def test_even_spacing_in_the_order_of_the_data(counted):
    found = cached_features(context(), "animals-cnn", "pool", "train", 7)
    source = context().source
    images = torch.stack([source.views(i * 60 // 7)[0] for i in range(7)])
    torch.testing.assert_close(found, counted.encoder(images)["pool"], rtol=1e-5, atol=1e-5)


def test_a_spectrum_is_known_by_its_covariance(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x = torch.from_numpy(np.random.RandomState(0).randn(50, 6))
    gaussian = Gaussian.of(x)
    kept = with_spectrum(gaussian)
    torch.testing.assert_close(kept.root @ kept.root, gaussian.covariance)
    torch.testing.assert_close(kept.spectrum.values, torch.linalg.eigvalsh(gaussian.covariance))
    other = with_spectrum(Gaussian.of(2 * x))
    torch.testing.assert_close(other.root, 2 * kept.root)


def test_formulas_of_torch_fidelity():
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    isc = pytest.importorskip("torch_fidelity.metric_isc")
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    draw = np.random.RandomState(11)
    mix = torch.from_numpy(draw.randn(32, 32)) / 5
    x, y = torch.from_numpy(draw.randn(900, 32)) @ mix, torch.from_numpy(draw.randn(800, 32))
    both = [fid.fid_features_to_statistics(side) for side in (x, y)]
    expected = fid.fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"]
    found = frechet_distance(Gaussian.of(x), Gaussian.of(y))
    assert found == pytest.approx(expected, rel=1e-9)
    expected = isc.isc_features_to_metric(x * 3)
    found = inception_score(x * 3)
    assert found.mean == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert found.deviation == pytest.approx(expected["inception_score_std"], rel=1e-9)
    expected = prc.prc_features_to_metric(
        x, y, prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=True, verbose=False
    )
    found = precision_recall(x, y)
    assert found.precision == pytest.approx(expected["precision"], rel=1e-6)
    assert found.recall == pytest.approx(expected["recall"], rel=1e-6)


def test_bias_of_a_sample_is_what_the_facts_say():
    """Two samples of 2,000 from the same Gaussian: their distance is within a fifth of that."""
    draw = np.random.RandomState(5)
    pairs = [(draw.randn(2000, 16), draw.randn(2000, 16)) for _ in range(20)]
    fitted = [[Gaussian.of(torch.from_numpy(side)) for side in pair] for pair in pairs]
    found = [frechet_distance(*pair) for pair in fitted]
    expected = frechet.expected_distance(fitted[0][1], 2000)
    assert np.mean(found) == pytest.approx(expected, rel=0.1)
    assert found[0] == pytest.approx(expected, rel=0.2)


def test_golden_file_names_what_it_came_from():
    golden = Path(__file__).parents[1] / "golden" / "inception_features.json"
    assert json.loads(golden.read_text())["torch_fidelity"] == "0.4.0"
