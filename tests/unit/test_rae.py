"""Representation autoencoders on the embedded encoder: normalisation, output space, files."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nanogen.data.animals import Animals
from nanogen.encoders.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from nanogen.encoders.vision import VisionEncoder, VisionFeatures, open_encoder
from nanogen.errors import ConfigError
from nanogen.stage1.rae import Rae as TrainableRae
from nanogen.stage1.rae import noisy
from nanogen.tokenizers import statistics
from nanogen.tokenizers.rae import Rae, RaeConfig, as_grid, check_norm
from nanogen.tokenizers.rae_decoder import DecoderConfig, RaeDecoder
from nanogen.tokenizers.rae_files import About, open_rae, save_rae
from nanogen.tokenizers.statistics import Statistics
from nanogen.types import Batch

SHAPE = DecoderConfig(channels=64, grid=7, patch=4, width=16, depth=1, heads=2, hidden=16)
ABOUT = About("animals-vit", 28)


def decoder(config: DecoderConfig = SHAPE) -> RaeDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RaeDecoder(config)


def planted(channels: int = 64, grid: int = 7) -> Statistics:
    generator = torch.Generator().manual_seed(1)
    shape = (channels, grid, grid)
    return Statistics(
        torch.randn(shape, generator=generator), 0.5 + torch.rand(shape, generator=generator)
    )


def images(count: int = 3) -> Tensor:
    source = Animals().build()
    return torch.stack([source.read("held-out", 100 * i, 0).image for i in range(count)]) / 255


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_rae(tmp_path / "rae", decoder(), ABOUT, planted())


def test_latents_by_hand(folder: Path) -> None:
    tokenizer, found = RaeConfig(decoder=str(folder)).build(28), planted()
    encoder = open_encoder("animals-vit", 28)
    patches = encoder(images()).patches
    latents = tokenizer.encode(images())
    assert latents.shape == (3, 64, 7, 7)
    for row, column in ((0, 0), (2, 5), (6, 6)):
        wanted = (patches[:, 7 * row + column] - found.mean[:, row, column]) / (
            found.variance[:, row, column] + 1e-5
        ).sqrt()
        torch.testing.assert_close(latents[:, :, row, column], wanted, atol=1e-5, rtol=1e-5)
    spec = tokenizer.spec
    assert (spec.channels, spec.height, spec.width, spec.patch) == (64, 7, 7, 1)


def test_statistics_leave_the_round_trip_alone(folder: Path) -> None:
    """decode(encode(x)) is decoder(encoder(x)), whatever whitens in between."""
    whitened = RaeConfig(decoder=str(folder)).build(28)
    alone = decoder()(as_grid(open_encoder("animals-vit", 28)(images()).patches))
    torch.testing.assert_close(
        whitened.decode(whitened.encode(images())), alone, atol=1e-5, rtol=1e-5
    )


def test_measured_statistics_whiten() -> None:
    source = Animals(flip=False).build()
    encoder = open_encoder("animals-vit", 28)
    found = statistics.measure(
        lambda x: as_grid(encoder(x).patches),
        source,
        statistics.Images("train", 300),
        torch.device("cpu"),
    )
    assert found.power == pytest.approx(1, abs=1e-3)
    tokenizer = Rae(encoder, decoder(), found)
    numbers = [i * source.count("train") // 300 for i in range(300)]
    given = torch.stack([source.read("train", i, i).image for i in numbers]) / 255
    latents = tokenizer.encode(given)
    assert latents.mean(0).abs().max() < 1e-3
    assert (latents.std(0, unbiased=False) - 1).abs().max() < 0.02


class Fed(VisionEncoder):
    """Feeds on normalised pixels, as most do."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.width, self.grid, self.fingerprint = "fed", 48, 7, "fed"
        self.preprocess = Preprocess(28, IMAGENET_MEAN, IMAGENET_STD, "bicubic")

    def forward(self, images: Tensor) -> VisionFeatures:
        cut = nn.functional.unfold(self.preprocess(images), 4, stride=4)
        return VisionFeatures(cut.mT)


def test_output_space() -> None:
    """Of a decoder of normalised pixels: std and mean can be folded into its last layer."""
    first, found = decoder(replace(SHAPE, channels=48)), planted(48)
    folded = decoder(replace(SHAPE, channels=48))
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    with torch.no_grad():
        # The last layer's units are row, column, channel.
        weight, bias = folded.out_proj.weight, folded.out_proj.bias
        weight.copy_((weight.view(-1, 3, 16) * std[None, :, None]).view_as(weight))
        bias.copy_((bias.view(-1, 3) * std + mean).flatten())
    encoder = Fed()
    latents = Rae(encoder, first, found).encode(images())
    torch.testing.assert_close(
        Rae(encoder, first, found, "encoder").decode(latents),
        Rae(encoder, folded, found, "unit").decode(latents),
    )


def test_files_keep_what_they_hold(folder: Path) -> None:
    one, again = (RaeConfig(decoder=str(folder)).build(28) for _ in range(2))
    assert one.fingerprint == again.fingerprint
    assert torch.equal(one.decode(one.encode(images())), again.decode(again.encode(images())))
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "decoder.safetensors",
        "statistics.safetensors",
    }


def test_another_decoder_leaves_the_latents(folder: Path, tmp_path: Path) -> None:
    other = save_rae(tmp_path / "other", decoder(replace(SHAPE, hidden=20)), ABOUT, planted())
    one, two = RaeConfig(decoder=str(folder)).build(28), RaeConfig(decoder=str(other)).build(28)
    assert one.raw_fingerprint == two.raw_fingerprint and one.fingerprint != two.fingerprint
    shifted = Statistics(planted().mean + 1, planted().variance)
    third = save_rae(tmp_path / "third", decoder(), ABOUT, shifted)
    three = RaeConfig(decoder=str(third)).build(28)
    assert three.raw_fingerprint == one.raw_fingerprint and three.fingerprint != one.fingerprint


@pytest.mark.parametrize(
    "affine, factor, warned",
    [
        (False, 1.0, ""),
        (False, 2.0, "with an affine"),
        (True, 1.0, "without its affine"),
        (True, 2.0, ""),
    ],
)
def test_statistics_of_another_norm(affine: bool, factor: float, warned: str) -> None:
    """Their mean square tells which norm they were made with."""
    encoder = Fed()
    encoder.norm = nn.LayerNorm(48, elementwise_affine=affine)
    shape = (48, 7, 7)
    found = Statistics(torch.zeros(shape), torch.full(shape, factor))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_norm(encoder, found)
    assert [warned in str(w.message) for w in caught] == ([True] if warned else [])


def test_noise_of_training() -> None:
    """s n on what the encoder gives, before it is normalised: s is uniform, E s^2 = tau^2 / 3."""
    features, keys = torch.full((4000, 8, 4, 4), 3.0), torch.arange(4000)
    noise = noisy(features, 0.8, keys, seed=1) - features
    scale = noise.flatten(1).square().mean(1)
    assert scale.mean().item() == pytest.approx(0.8**2 / 3, rel=0.05)
    # A half-normal scale of the same power, as the paper describes it, would often exceed 0.8.
    assert scale.sqrt().max() < 0.8 * 1.3 and scale.sqrt().min() < 0.02
    whole = (noise / scale.sqrt()[:, None, None, None]).flatten()
    assert abs(whole.mean().item()) < 0.01 and whole.var().item() == pytest.approx(1, abs=0.01)
    # By the key of the sample, whatever is beside it.
    alone = noisy(features[7:9], 0.8, keys[7:9], seed=1) - features[7:9]
    assert torch.equal(alone, noise[7:9])


def test_noise_is_asked_for_and_comes_before_statistics() -> None:
    """Training decodes raw features; whoever looks on sees none of the noise."""
    encoder, batch = open_encoder("animals-vit", 28), Batch(images(), torch.arange(3))
    made = decoder()
    features = as_grid(encoder(images()).patches)
    noisily = TrainableRae(encoder, made, 0.8, seed=2)
    torch.testing.assert_close(
        noisily(batch).images, made(noisy(features, 0.8, batch.keys, 2)), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(noisily.train().raw(images()), features)
    assert torch.equal(TrainableRae(encoder, made, 0.0, seed=2)(batch).images, made(features))


def test_no_noise_and_no_training(folder: Path) -> None:
    tokenizer = RaeConfig(decoder=str(folder)).build(28)
    tokenizer.train()
    assert not any(module.training for module in tokenizer.modules())
    assert torch.equal(tokenizer.encode(images()), tokenizer.encode(images()))


@pytest.mark.parametrize(
    "fields, size, message",
    [
        ({}, 40, r"makes images of 28 px, not 40; .*\(task.data.size=28 in a run, --size 28"),
        ({"encoder": "dinov2-vit-b"}, 28, "was trained on animals-vit; leave the encoder out"),
        ({"decoder": ""}, 28, "tokenizer.decoder is not set"),
        ({"decoder": "nowhere"}, 28, "tokenizer.decoder=nowhere"),
        ({"statistics": "nowhere.safetensors"}, 28, "nowhere.safetensors"),
        (
            {"output_space": "encoder"},
            28,
            "no mean and deviation of pixels are known of animals-vit",
        ),
    ],
)
def test_refusals(folder: Path, fields, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RaeConfig(**{"decoder": str(folder), **fields}).build(size)


def test_the_encoder_that_a_decoder_was_trained_on(folder: Path, tmp_path: Path) -> None:
    """A decoder makes nothing of the tokens of other weights; older folders say none."""
    right = open_encoder("animals-vit", 28).fingerprint
    about = replace(ABOUT, encoder_fingerprint=right)
    good = save_rae(tmp_path / "good", decoder(), about, planted())
    assert json.loads((good / "config.json").read_text())["encoder_fingerprint"] == right
    assert RaeConfig(decoder=str(good)).build(28)
    about = replace(ABOUT, encoder_fingerprint="animals-vit-1-28/0123456789abcdef")
    other = save_rae(tmp_path / "other", decoder(), about, planted())
    with pytest.raises(ConfigError, match="other/decoder.safetensors was trained on other weights"):
        RaeConfig(decoder=str(other)).build(28)
    text = json.loads((folder / "config.json").read_text())
    del text["encoder_fingerprint"]
    (folder / "config.json").write_text(json.dumps(text))
    assert RaeConfig(decoder=str(folder)).build(28)


def test_training_says_what_it_saw(tmp_path: Path) -> None:
    encoder = open_encoder("animals-vit", 28)
    trained = TrainableRae(encoder, decoder(), 0.0, seed=2)
    trained.export(tmp_path / "tokenizer", Animals(flip=False).build(), 20, lambda: None)
    about = open_rae(str(tmp_path / "tokenizer")).about
    assert about == replace(ABOUT, encoder_fingerprint=encoder.fingerprint)


def test_folders_that_are_broken(folder: Path, tmp_path: Path) -> None:
    bare = save_rae(tmp_path / "bare", decoder(), ABOUT)
    with pytest.raises(ConfigError, match="no statistics beside .*; set tokenizer.statistics"):
        RaeConfig(decoder=str(bare)).build(28)
    narrow = save_rae(tmp_path / "narrow", decoder(replace(SHAPE, channels=48)), ABOUT, planted(48))
    with pytest.raises(ConfigError, match="decodes 48 channels, but animals-vit has 64"):
        RaeConfig(decoder=str(narrow)).build(28)
    (folder / "config.json").write_text(json.dumps({"encoder": "animals-vit"}))
    with pytest.raises(ConfigError, match="does not describe a decoder"):
        RaeConfig(decoder=str(folder)).build(28)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="neither config.json nor decoder.pt"):
        RaeConfig(decoder=str(tmp_path / "empty")).build(28)
