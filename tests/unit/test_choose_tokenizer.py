"""Which tokenizer and which images `nanogen tokenizer eval`, `stats` and `cache` are about."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tiny_rae import tiny_folder
from tiny_vae import write_vae

from nanogen import config
from nanogen.cli import cache
from nanogen.cli.choose_tokenizer import chosen, described, measured, raw_latents
from nanogen.data.animals import Animals
from nanogen.data.base import as_stored
from nanogen.data.scenes import Scenes
from nanogen.errors import ConfigError
from nanogen.stage1 import kinds
from nanogen.tokenizers import statistics
from nanogen.tokenizers.rae import RaeConfig
from nanogen.tokenizers.statistics import Images
from nanogen.tokenizers.vae import VaeConfig


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    pytest.importorskip("diffusers")
    return write_vae(tmp_path / "exported", "f8d4")


def trained(folder: Path, preset: str, exported: Path | None) -> Path:
    """A folder as `nanogen tokenizer train` leaves it, with a tokenizer where it has ended."""
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config.dump(kinds.preset(preset))))
    if exported is not None:
        shutil.copytree(exported, folder / "tokenizer")
    return folder


def test_train_images_are_seen_as_they_are_stored() -> None:
    """Whatever the data mirror by default: half of the draws of a training are mirror images."""
    mirrored, plain = Animals(flip=True).build(), Animals(flip=False).build()
    cpu, some = torch.device("cpu"), Images("train", 60, 16)
    one, other = (statistics.measure(lambda x: x, s, some, cpu) for s in (mirrored, plain))
    assert torch.equal(one.mean, other.mean) and torch.equal(one.variance, other.variance)
    drawn = [mirrored.read("train", i, i).image for i in range(20)]
    stored = [as_stored(mirrored, "train", i) for i in range(20)]
    assert not torch.equal(torch.stack(drawn), torch.stack(stored))
    assert all(torch.equal(x, plain.read("train", i, i).image) for i, x in enumerate(stored))
    # Without an end there is nothing stored: a drawn image, the same each time.
    scenes = Scenes().build()
    assert torch.equal(as_stored(scenes, "train", 3), scenes.read("train", 3, 3).image)
    assert torch.equal(as_stored(mirrored, "held-out", 3), mirrored.read("held-out", 3, 3).image)


def test_the_data_of_a_measurement_do_not_mirror() -> None:
    assert measured("pixels", []).data.flip is False
    assert chosen("pixels", []).data.flip is True, "a cache stores both"
    assert not hasattr(measured("pixels", [], "scenes").data, "flip")
    assert measured("animals/pixels-v", []).data.flip is False
    assert raw_latents("animals-vit", [])[0].fingerprint == Animals(flip=False).build().fingerprint


def test_pixels_need_no_patch() -> None:
    assert chosen("pixels", []).tokenizer.build(28).spec.patch == 1
    assert chosen("pixels", ["patch=7"]).tokenizer.patch == 7
    assert chosen("pixels", ["tokenizer.patch=7"]).tokenizer.patch == 7


def test_an_exported_folder(vae: Path) -> None:
    found = chosen(str(vae), ["posterior=sample"])
    assert found.tokenizer == VaeConfig(model=str(vae), posterior="sample")
    assert described(found.tokenizer) == (
        f"tokenizer=vae tokenizer.model={vae} tokenizer.posterior=sample"
    )
    folder = tiny_folder(64)
    found = chosen(str(folder), ["tokenizer.output_space=unit"], "scenes", None, 64)
    assert found.tokenizer == RaeConfig(decoder=str(folder), output_space="unit")
    assert found.data == Scenes(size=64)


def test_the_folder_of_a_training(vae: Path, tmp_path: Path) -> None:
    """Its tokenizer, on its own data unless others are named."""
    run = trained(tmp_path / "runs" / "vae", "scenes/vae", vae)
    found = chosen(str(run), [])
    assert found.tokenizer == VaeConfig(model=str(run / "tokenizer"))
    assert found.data == kinds.preset("scenes/vae").data
    assert chosen(str(run), [], "animals").data == Animals()
    end_to_end = trained(tmp_path / "runs" / "e2e", "animals/vae-e2e", vae)
    assert chosen(str(end_to_end), []).data == kinds.preset("animals/vae-e2e").task.data


def test_presets_come_before_folders(vae: Path, tmp_path: Path, monkeypatch) -> None:
    trained(tmp_path / "animals" / "pixels-v", "animals/vae", vae)
    monkeypatch.chdir(tmp_path)
    assert described(chosen("animals/pixels-v", []).tokenizer).startswith("tokenizer=pixels")
    assert described(chosen("./animals/pixels-v", []).tokenizer) == (
        "tokenizer=vae tokenizer.model=animals/pixels-v/tokenizer"
    )


@pytest.mark.parametrize("text", [None, "{", "[]", '{"model_type": "bert"}'])
def test_folders_without_a_tokenizer(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=f"{tmp_path} holds no tokenizer.*; give"):
        chosen(str(tmp_path), [])


def test_a_training_that_has_not_ended(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "animals/vae", None)
    with pytest.raises(ConfigError, match="holds no tokenizer yet.*nanogen tokenizer train"):
        chosen(str(run), [])


def test_encoders_are_suggested() -> None:
    with pytest.raises(ConfigError, match="'dinov2-vit-q'; did you mean dinov2-vit-"):
        raw_latents("dinov2-vit-q", [])
    with pytest.raises(ConfigError, match="28 px.*add --data folder --path IMAGES --size 256"):
        raw_latents("dinov2-vit-b", [])
    with pytest.raises(ConfigError, match="nearest that loads"):
        raw_latents("eupe-vit-b16", [])


def test_a_cache_of_a_folder(vae: Path, tmp_path: Path, capsys) -> None:
    run = trained(tmp_path / "run", "scenes/vae", vae)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 9, 9)).save(images / f"{number}.png")
    cache.main(
        str(run), [], data="folder", path=images, size=32, out=tmp_path / "cache", device="cpu"
    )
    assert "machine.cache=" in capsys.readouterr().out
    tree = json.loads((tmp_path / "cache" / "latents" / "manifest.json").read_text())
    assert tree["plan"]["described"]["model"] == str(run / "tokenizer")
