"""The published representation autoencoders: tiny files where the hub has large ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parts import images
from tiny_encoders import full_encoder, open_tiny, tiny_folder
from tiny_rae import made_up, write_published, write_rae

from nanogen import registry
from nanogen.encoders.vision import VisionEncoder, find
from nanogen.errors import ConfigError
from nanogen.model import parameter_count
from nanogen.tokenizers import rae
from nanogen.tokenizers.rae import Rae, RaeConfig, as_grid
from nanogen.tokenizers.rae_decoder import SIZES, DecoderConfig, RaeDecoder
from nanogen.tokenizers.rae_files import REPOSITORY

ENCODERS = (
    "dinov2-vit-b",
    "dinov3-vit-b16",
    "siglip2-vit-b",
    "pe-vit-l",
    "langpe-vit-l",
    "spatialpe-vit-l",
)
FILES = Path(REPOSITORY) / "pretrained_models" / "stage1"
quiet = pytest.mark.filterwarnings("ignore:the statistics")
"""SigLIP2's norm has an affine, and the made-up statistics are of one that has none"""


def target(encoder: str) -> type:
    return registry.get("tokenizer", f"rae-{encoder}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the repository's name stands in for it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rae, "open_encoder", lambda name, size, path: open_tiny(name, size))


@quiet
@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_from_the_hub(hub: Path, tiny_ones: None, name: str) -> None:
    """Features, normalised by the published table, and the published decoder with its positions."""
    encoder = open_tiny(name, 256)
    decoder, given = write_published(hub, name, encoder), images(2, 256)
    tokenizer = target(name)().build(256)
    features, found = as_grid(encoder(given).patches), made_up(encoder.width, 16)
    latents = tokenizer.encode(given)
    wanted = (features - found.mean) / (found.variance + 1e-5).sqrt()
    assert latents.shape == (2, encoder.width, 16, 16) and tokenizer.spec.patch == 1
    torch.testing.assert_close(latents, wanted, atol=1e-4, rtol=1e-4)
    again = tokenizer.decode(latents)
    assert again.shape == (2, 3, 256, 256)
    torch.testing.assert_close(again, decoder(features), atol=1e-4, rtol=1e-4)
    assert torch.equal(tokenizer.train().encode(given), latents)


@quiet
@pytest.mark.parametrize("name", ["dinov2-vit-b", "siglip2-vit-b"])
def test_every_file_can_be_local(hub: Path, name: str) -> None:
    """With the encoder's real loading code; options that a preset's encoder is given count."""
    write_published(hub, name, open_tiny(name, 256))
    fields = {
        "encoder_path": str(tiny_folder(name)),
        "decoder": str(FILES / "decoders" / name),
        "statistics": str(FILES / "stats" / name / "stats.pt"),
    }
    one = target(name)(**fields).build(256)
    option = "norm" if name == "dinov2-vit-b" else "strip"
    two = target(name)(**fields, encoder=f"{name}[{option}]").build(256)
    assert isinstance(one, Rae) and one.encoder.name == name
    assert two.encoder.name == f"{name}[{option}]" and two.raw_fingerprint != one.raw_fingerprint
    general = RaeConfig(encoder=name, **fields).build(256)
    assert general.fingerprint == one.fingerprint


@pytest.mark.parametrize("name", ENCODERS)
def test_facts(name: str) -> None:
    facts, row = target(name).facts, find(name)
    shape = DecoderConfig(channels=row.width, grid=16, patch=16, **SIZES["XL"])
    with torch.device("meta"):
        decoder = RaeDecoder(shape)
    assert facts.latent == (row.width, 16, 16)
    assert facts.parameters == row.parameters + parameter_count(decoder)
    assert (facts.status == "gated") == row.gated
    entry = registry.entry_of(target(name))
    assert ("accept" in entry.needs) == row.gated and row.licence in entry.licence


def test_a_row_counts_the_parameters_of_its_network() -> None:
    """What the facts add up is counted on the meta device."""
    dinov2 = full_encoder("dinov2-vit-b")
    unread = dinov2.embeddings.mask_token.numel() + parameter_count(dinov2.layernorm)
    assert 0 <= parameter_count(dinov2) - find("dinov2-vit-b").parameters <= unread


def test_a_gated_encoder_is_refused_before_the_decoder_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gated(name: str, size: int, path: str) -> VisionEncoder:
        raise ConfigError("accept its terms")

    monkeypatch.setattr(rae, "open_encoder", gated)
    monkeypatch.setattr(rae, "open_rae", lambda *_: pytest.fail("fetched"))
    with pytest.raises(ConfigError, match="accept its terms"):
        target("dinov3-vit-b16")().build(256)


def test_files_of_another_encoder_are_refused(hub: Path, tiny_ones: None) -> None:
    name = "dinov2-vit-b"
    own = write_rae(hub / "own", "pe-vit-l", open_tiny("pe-vit-l", 256), 256)
    with pytest.raises(ConfigError, match="was trained on pe-vit-l; use tokenizer=rae"):
        target(name)(decoder=str(own)).build(256)
    with pytest.raises(ConfigError, match="is that of dinov2-vit-b; use tokenizer=rae for others"):
        target(name)(encoder="pe-vit-l", decoder=str(own)).build(256)
    write_published(hub, name, open_tiny(name, 256))
    with pytest.raises(ConfigError, match="makes images of 256 px, not 512"):
        target(name)().build(512)
    decoder = str(FILES / "decoders" / name / "decoder.pt")
    with pytest.raises(ConfigError, match="no statistics beside .*decoder.pt"):
        target(name)(decoder=decoder).build(256)
    with pytest.raises(ConfigError, match="tokenizer.encoder is not set, and .*decoder.pt"):
        RaeConfig(decoder=decoder).build(256)


@pytest.mark.parametrize(("name", "warned"), [("siglip2-vit-b", True), ("dinov2-vit-b", False)])
def test_statistics_tell_the_norm(
    hub: Path, tiny_ones: None, recwarn: pytest.WarningsRecorder, name: str, warned: bool
) -> None:
    """SigLIP2 keeps its affine here; statistics of one that was stripped of it are noticed."""
    write_published(hub, name, open_tiny(name, 256))
    target(name)().build(256)
    found = [str(one.message) for one in recwarn if "final norm" in str(one.message)]
    assert bool(found) == warned
    assert not warned or "choose its option norm or strip" in found[0]
