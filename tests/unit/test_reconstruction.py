"""Measuring reconstructions: pixels, a tokenizer that loses something, and planted features."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import yaml
from parts import DATA
from scipy import linalg
from typer.testing import CliRunner

from nanogen import config, registry
from nanogen.bench import record
from nanogen.cli import tokenizer_eval
from nanogen.cli.choose_tokenizer import chosen
from nanogen.data.animals import Animals
from nanogen.data.base import Sample
from nanogen.errors import ConfigError, MetricError
from nanogen.metrics import pairs
from nanogen.metrics.pairs import MeanOfPairs, PairContext, ReconstructionFrechet
from nanogen.metrics.similarity import ssim
from nanogen.reconstruction import Options, Subject, measure
from nanogen.stage1 import kinds
from nanogen.tokenizers.base import Autoencoder
from nanogen.tokenizers.embedded import AnimalsVae, folder_of
from nanogen.tokenizers.pixels import PixelsConfig
from nanogen.types import LatentSpec

ANIMALS = Animals().build()
SUBJECT = Subject("tiny", config_hash="abc")
CPU = PairContext(torch.device("cpu"))


class Halved(Autoencoder):
    """Loses every other pixel, and adds to what it gives back."""

    def __init__(self, size: int, offset: float = 0.0) -> None:
        super().__init__(LatentSpec(3, size // 2, size // 2, 1), f"halved-{size}")
        self.offset = offset

    def raw(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 2)

    def from_raw(self, raw: torch.Tensor) -> torch.Tensor:
        return raw.repeat_interleave(2, 2).repeat_interleave(2, 3) + self.offset


@dataclass(frozen=True)
class Ramp:
    """The 256 grey levels, one an image, in two splits."""

    size: int = 16
    classes: tuple[str, ...] = ()
    captioned: bool = False
    fingerprint: str = "ramp"
    variants: int = 1

    def count(self, split: str) -> int:
        return {"held-out": 100, "train": 156}.get(split, 0)

    def read(self, split: str, index: int, draw: int) -> Sample:
        level = index + (100 if split == "train" else 0)
        return Sample(torch.full((3, self.size, self.size), level, dtype=torch.uint8))

    def views(self, index: int) -> tuple[torch.Tensor, ...]:
        return (self.read("train", index, 0).image,)

    def prompts(self) -> tuple[str, ...]:
        return ()


def scores(tokenizer, source, split="held-out", **options):
    return {r.metric: r for r in measure(tokenizer, source, split, Options(**options), SUBJECT)}


def test_pixels_are_exact_with_rounding_and_not_with_truncation():
    pixels = PixelsConfig(patch=4).build(16)
    exact = scores(pixels, Ramp(), "all")
    assert exact["psnr"].value == 100 and exact["psnr"].standard_error == 0
    assert exact["ssim"].value == pytest.approx(1, abs=1e-12)
    assert exact["psnr"].n == 256 and exact["psnr"].quantisation == "round"
    truncated = scores(pixels, Ramp(), "all", quantise="truncate")["psnr"]
    # 63 levels are one too low, and each of those images has 20 log10(255) dB.
    low, share = 20 * math.log10(255), 63 / 256
    assert truncated.value == pytest.approx((1 - share) * 100 + share * low, abs=1e-9)
    error = (100 - low) * math.sqrt(share * (1 - share) / 255)
    assert truncated.standard_error == pytest.approx(error, rel=1e-9)
    assert truncated.quantisation == "truncate"


def test_a_lossy_tokenizer_by_hand():
    count, wanted = ANIMALS.count("held-out"), 50
    images = [ANIMALS.read("held-out", i * count // wanted, 0).image.numpy() for i in range(wanted)]
    values, likeness = [], []
    for image in images:
        small = image.reshape(3, 14, 2, 14, 2).mean((2, 4)) / 255
        again = (small.repeat(2, 1).repeat(2, 2) * 255).round().astype(np.uint8)
        error = ((image.astype(float) - again) ** 2).mean() / 255**2
        values.append(-10 * math.log10(max(error, 1e-10)))
        pair = (torch.from_numpy(x.copy())[None] for x in (image, again))
        likeness.append(ssim(*pair).item())
    found = scores(Halved(28), ANIMALS, samples=wanted)
    for name, expected in (("psnr", values), ("ssim", likeness)):
        one = found[name]
        # A mean of four levels can lie half way between two, where float32 and float64 part.
        assert one.value == pytest.approx(np.mean(expected), abs=2e-3)
        error = np.std(expected, ddof=1) / math.sqrt(wanted)
        assert one.standard_error == pytest.approx(error, abs=1e-3)
        assert one.n == wanted and one.facts["split_images"] == count
    assert found["psnr"].value < 30
    assert found["psnr"].facts["latent"] == [3, 14, 14]
    assert found["psnr"].facts["tokenizer"] == Halved(28).fingerprint
    assert found["psnr"].facts["reference_hash"] == ANIMALS.fingerprint


@pytest.mark.parametrize("batch", [1, 7, 300])
def test_the_batch_does_not_show(batch):
    names = ("psnr", "ssim", "rfd-animals")
    one = scores(Halved(28), ANIMALS, samples=300, metrics=names, batch=64)
    other = scores(Halved(28), ANIMALS, samples=300, metrics=names, batch=batch)
    for name in names:
        assert other[name].value == pytest.approx(one[name].value, rel=1e-6, abs=1e-9)
        assert other[name].facts == one[name].facts


def test_the_distance_on_animals():
    """Zero for exact reconstructions, and larger the more is lost."""
    names = {"metrics": ("rfd-animals",), "samples": 300}
    exact = scores(PixelsConfig(patch=4).build(28), ANIMALS, **names)["rfd-animals"]
    assert exact.value == pytest.approx(0, abs=1e-6) and exact.standard_error is None
    some = scores(Halved(28), ANIMALS, **names)["rfd-animals"].value
    more = scores(Halved(28, -0.4), ANIMALS, **names)["rfd-animals"].value
    assert 0.01 < some < more
    assert exact.facts["network"] == "animals-cnn" and exact.facts["reference"] == "the originals"


class Planted(ReconstructionFrechet):
    """Four pixels are the features: another network is one small class."""

    name, version, network = "planted", 1, "animals-cnn"

    def extracted(self, images):
        return images[:, 0, 0, :4].float()


def planted(originals: np.ndarray, others: np.ndarray) -> float:
    metric = Planted(CPU)
    for part in np.array_split(np.arange(len(originals)), 3):
        shown = [np.zeros((len(part), 3, 4, 4)), np.zeros((len(part), 3, 4, 4))]
        shown[0][:, 0, 0], shown[1][:, 0, 0] = originals[part], others[part]
        metric.update(*(torch.from_numpy(one) for one in shown))
    return metric.compute(metric.sums).value


def test_the_distance_of_gaussians():
    """In closed form: shifted, stretched, and in general by a matrix root."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)) * 20 + 100
    assert planted(x, x) == pytest.approx(0, abs=1e-3)
    shift = np.array([3.0, -4.0, 12.0, 0.0])
    assert planted(x, x + shift) == pytest.approx(169, rel=1e-4)
    mean, covariance = x.mean(0), np.cov(x.T)
    stretched = np.trace(covariance) * 0.25 + 0.25 * mean @ mean
    assert planted(x, 1.5 * x) == pytest.approx(stretched, rel=1e-4)
    y = rng.normal(size=(500, 4)) * 30 + 90
    root = linalg.sqrtm(covariance @ np.cov(y.T)).real
    expected = ((mean - y.mean(0)) ** 2).sum() + np.trace(covariance + np.cov(y.T) - 2 * root)
    assert planted(x, y) == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def unchanged(monkeypatch):
    for kind in registry.FOLDERS:
        registry.entries(kind)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def test_another_metric_is_one_class(unchanged):
    @registry.register("reconstruction", "worst", summary="a test")
    class Worst(MeanOfPairs):
        name, version, higher_is_better = "worst", 3, False

        def values(self, images, others):
            return (images.int() - others.int()).abs().amax((1, 2, 3))

    found = scores(Halved(16, 0.1), Ramp(), metrics=("worst",))["worst"]
    assert (found.value, found.version, found.n) == (pytest.approx(25.5, abs=0.5), 3, 100)


def test_lpips_is_measured_with_a_given_trunk(monkeypatch):
    """The whole distance is tested beside it; here, what it is given and where it is asked for."""

    class Stub(torch.nn.Module):
        fingerprint = "stub"

        def forward(self, images, others):
            assert images.dtype == torch.float32 and images.max() <= 1
            return (images - others).abs().mean((1, 2, 3))

    asked = []
    monkeypatch.setattr(
        pairs, "open_lpips", lambda path, field: asked.append((path, field)) or Stub()
    )
    found = scores(Halved(16, 0.1), Ramp(), metrics=("lpips",), trunk="vgg.pth")["lpips"]
    # The field of a training; a command names its own option.
    assert asked == [("vgg.pth", "evaluation.trunk")]
    scores(Halved(16), Ramp(), metrics=("lpips",), trunk="v", trunk_field="--lpips")
    assert asked[1:] == [("v", "--lpips")] and not found.higher_is_better
    assert found.value == pytest.approx(0.1, abs=0.002)
    assert found.facts["network_hash"] == "stub"


def test_one_image_has_no_standard_error():
    assert scores(Halved(16), Ramp(), samples=1)["psnr"].standard_error is None


def test_what_cannot_be_measured():
    pixels = PixelsConfig(patch=4).build(16)
    for options, message in (
        ({"samples": 101}, "choose 1 to 100"),
        ({"samples": 0}, "choose 1 to 100"),
        ({"metrics": ("rfd-animals",)}, "needs at least 256 images, not 100"),
    ):
        with pytest.raises(MetricError, match=message):
            scores(pixels, Ramp(), **options)
    with pytest.raises(MetricError, match="no images in its validation split"):
        scores(pixels, Ramp(), "validation")
    with pytest.raises(MetricError, match="unknown split 'test'"):
        scores(pixels, Ramp(), "test")
    with pytest.raises(MetricError, match="image 0 of the held-out split is not finite"):
        scores(Halved(16, math.nan), Ramp())
    with pytest.raises(ConfigError, match="unknown way to quantise 'floor'"):
        Options(quantise="floor")
    with pytest.raises(ConfigError, match="unknown metric 'psnrr'; did you mean psnr"):
        scores(pixels, Ramp(), metrics=("psnrr",))


@pytest.fixture
def evaluate(tmp_path):
    """Run `nanogen tokenizer eval ARGUMENTS`; its tables, and the records of its folder `out`."""
    app = typer.Typer()
    app.command()(tokenizer_eval.main)

    def run(*arguments: str, out: str = "out"):
        folder = tmp_path / out
        done = CliRunner().invoke(
            app, [*arguments, "--out", str(folder), "--json", "--device", "cpu"]
        )
        if done.exception:
            raise done.exception
        found = record.read(folder)
        return json.loads(done.stdout), {(r.metric, r.quantisation): r for r in found}

    return run


def test_the_command(evaluate):
    tables, records = evaluate("pixels", "patch=4", "--samples", "300")
    assert [row[0]["value"] for row in tables[0]["rows"]] == ["psnr", "ssim", "rfd-animals"]
    assert {metric for metric, _ in records} == {"psnr", "ssim", "rfd-animals"}
    one = records["psnr", "round"]
    assert one.value == 100 and one.n == 300 and "300 of 2,000" in tables[0]["title"]
    assert (one.run, one.task, one.device) == ("pixels", "reconstruction", "cpu")
    # The same again replaces its records; another quantisation stands beside them. For so few
    # images the distance means nothing and is not a default.
    evaluate("pixels", "patch=4", "--samples", "300")
    _, records = evaluate("pixels", "patch=4", "--samples", "8", "--quantise", "truncate")
    assert len(records) == 5 and records["psnr", "truncate"].value < 100


def test_the_command_on_a_preset_and_on_a_folder(evaluate, tmp_path):
    _, records = evaluate("scenes/pixels-v", "tokenizer.patch=10", "--samples", "4")
    assert records["psnr", "round"].facts["latent"] == [3, 40, 40]
    images = tmp_path / "images"
    images.mkdir()
    DATA["folder"](registry.get("data", "folder"), images)
    given = ("--data", "folder", "--path", str(images), "--size", "8", "--split", "all")
    _, records = evaluate("pixels", "patch=4", *given, out="other")
    assert records["psnr", "round"].n == records["psnr", "round"].facts["split_images"] == 60


def test_train_images_are_not_mirrored():
    mirrored, plain = Animals(flip=True).build(), Animals(flip=False).build()
    one, other = (scores(Halved(28), s, "train", samples=40) for s in (mirrored, plain))
    assert {k: r.value for k, r in one.items()} == {k: r.value for k, r in other.items()}


def test_the_command_on_a_training(evaluate, tmp_path):
    """A run folder, on its own data; 28 px fit latents of 4 px in tokens of one."""
    pytest.importorskip("diffusers")
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(folder_of("vae", 28), run / "tokenizer")
    (run / "run.yaml").write_text(yaml.safe_dump(config.dump(kinds.preset("animals/vae"))))
    tables, records = evaluate(str(run), "--samples", "4", "--metrics", "psnr, ssim")
    assert {metric for metric, _ in records} == {"psnr", "ssim"}
    one, exported = records["psnr", "round"], run / "tokenizer"
    assert one.run == str(run) and one.facts["latent"] == [4, 7, 7]
    assert one.facts["tokenizer"] == AnimalsVae().build(28).fingerprint
    about = f"Measured: tokenizer=vae tokenizer.model={exported}, {one.facts['tokenizer']}."
    assert about in tables[0]["notes"]
    _, again = evaluate(str(exported), "--samples", "4", "--metrics", "psnr", out="other")
    assert again["psnr", "round"].value == one.value
    _, again = evaluate("vae", f"model={exported}", "--samples", "4", out="third")
    assert again["psnr", "round"].value == one.value


def test_what_the_command_refuses(evaluate, tmp_path):
    for arguments, message in (
        (["pixel"], "unknown tokenizer or preset 'pixel'; did you mean pixels"),
        (["pixels", "pach=4"], "pach"),
        (["pixels", "patch=3", "--samples", "8"], "patch=3 does not divide images of 28 px"),
        (["pixels", "--metrics", ""], "--metrics '' names none"),
        (["pixels", "--metrics", "psnr,,ssim"], "--metrics 'psnr,,ssim'"),
        (["pixels", "--metrics", "psnr, sim"], "unknown metric 'sim'; did you mean ssim"),
        (["pixels", "patch=4", "--data", "folder"], "needs --path"),
        (["pixels", "patch=4", "--path", "here"], "reads no files"),
        (["pixels", "patch=4", "--lpips", str(tmp_path)], "--lpips="),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(*arguments)
    assert not Path("records").exists()


def test_the_choice_is_part_of_a_record_identity():
    hashes = {
        config.digest(chosen(*arguments))
        for arguments in (
            ("pixels", []),
            ("pixels", ["patch=4"]),
            ("pixels", [], "scenes"),
            ("pixels", [], None, None, 32),
        )
    }
    assert len(hashes) == 4
    same = chosen("pixels", ["tokenizer.patch=4"])
    assert config.digest(same) == config.digest(chosen("pixels", ["patch=4"]))
    assert chosen("animals/pixels-v", ["tokenizer.patch=7"]).tokenizer.patch == 7
