"""Probing an unknown autoencoder."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from parts import images
from PIL import Image
from tiny_vae import moments, tiny_vae, write_vae
from typer import Typer
from typer.testing import CliRunner

from nanogen import config, registry
from nanogen.cli import tokenizer_probe
from nanogen.errors import ConfigError, DataError
from nanogen.tokenizers.probe import embedded_images, folder_images, probe

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def given():
    return images(6, 64)


def test_measured_numbers(tmp_path, given):
    folder = write_vae(tmp_path, "f8d4", scaling_factor=0.5, shift_factor=0.25)
    found = probe(str(folder), given)
    with torch.no_grad():
        network = tiny_vae("f8d4")
        raw = moments(network, given)[0]
        decoded = network.decode(raw).sample.add(1).div(2).clamp(0, 1)
    raw = raw.double()
    torch.testing.assert_close(found.raw.mean, raw.mean((0, 2, 3)))
    torch.testing.assert_close(found.raw.std, raw.std((0, 2, 3), correction=0))
    torch.testing.assert_close(found.latents.mean, (raw.mean((0, 2, 3)) - 0.25) * 0.5)
    torch.testing.assert_close(found.latents.std, raw.std((0, 2, 3), correction=0) * 0.5)
    errors = (decoded - given).square().flatten(1).mean(1).tolist()
    psnr = sum(-10 * math.log10(error) for error in errors) / len(errors)
    assert found.psnr == pytest.approx(psnr, abs=1e-3)
    assert (found.statistics.shift.origin, found.statistics.scale.origin) == (
        "shift_factor",
        "scaling_factor",
    )
    assert found.line == f"tokenizer=vae tokenizer.model={folder}"


def test_a_warning_where_latents_are_not_standard(tmp_path, given):
    [warning] = probe(str(write_vae(tmp_path / "raw", "f8d4")), given).warnings
    assert "normalised latents are not about 0 and 1: mean" in warning
    with torch.no_grad():
        raw = moments(tiny_vae("f8d4"), given)[0]
    measured = {
        "latents_mean": raw.mean((0, 2, 3)).tolist(),
        "latents_std": raw.std((0, 2, 3)).tolist(),
    }
    right = write_vae(tmp_path / "right", "f8d4", **measured)
    assert probe(str(right), given).warnings == ()
    # Each of these leaves all other numbers as they should be.
    wrong = {
        "moved": {**measured, "latents_mean": [m - 1 for m in measured["latents_mean"]]},
        "wide": {**measured, "latents_std": [s / 3 for s in measured["latents_std"]]},
        "apart": {
            **measured,
            "latents_mean": [
                m + sign * 2 * s
                for m, s, sign in zip(*measured.values(), (1, -1, 1, -1), strict=True)
            ],
        },
    }
    for name, fields in wrong.items():
        assert probe(str(write_vae(tmp_path / name, "f8d4", **fields)), given).warnings, name


def test_numbers_for_a_config_that_says_nothing(tmp_path, given):
    folder = write_vae(tmp_path / "with space", "qwen", latents_mean=None, latents_std=None)
    found = probe(str(folder), given)
    assert found.statistics is None and found.latents is None
    assert "no latents_mean" in found.warnings[0]
    # The line it suggests does what it says.
    import shlex

    fields = dict(part.split("=", 1) for part in shlex.split(found.line))
    assert fields.pop("tokenizer") == "vae"
    arguments = [f"{key.removeprefix('tokenizer.')}={value}" for key, value in fields.items()]
    made = config.override(registry.get("tokenizer", "vae")(), arguments).build(64)
    latents = made.encode(given)
    assert latents.mean().item() == pytest.approx(0, abs=0.02)
    assert latents.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", ["f8d4", "flux2", "qwen"])
def test_the_class_is_found_where_the_config_names_none(tmp_path, given, kind):
    folder = write_vae(tmp_path, kind)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    expected = fields.pop("_class_name")
    file.write_text(json.dumps(fields))
    found = probe(str(folder), given[:2])
    assert found.files.name == expected
    assert f'add "_class_name": "{expected}"' in found.warnings[0]


def test_the_folder_of_a_pipeline(tmp_path, given):
    write_vae(tmp_path / "vae", "f8d4")
    found = probe(str(tmp_path), given[:1])
    assert found.line.endswith(f"tokenizer.model={tmp_path} tokenizer.subfolder=vae")


def test_refusals(tmp_path, given):
    def refused(match, size=64, **fields):
        with pytest.raises(ConfigError, match=match) as problem:
            probe(str(tmp_path), images(1, size), **fields)
        assert "\n" not in str(problem.value)

    refused("holds no autoencoder that diffusers can load: .*config.json")
    refused("holds no folder 'vae'; correct", subfolder="vae")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderDC"}')
    refused("AutoencoderDC, which is not supported: it has no posterior")
    (tmp_path / "config.json").write_text("{}")
    refused("names no class")
    write_vae(tmp_path, "f8d4")
    refused("multiple of 8 px; choose one with --size", size=36)
    write_vae(tmp_path, "f8d4", in_channels=1)
    refused("loads, but no image goes through it.*; give another folder, or get the files anew")
    network = tiny_vae("f8d4")
    network.quant_conv.bias.data[0] = float("nan")
    network.save_pretrained(tmp_path)
    refused("are not finite.*; give another folder, or get the files anew")


def test_images(tmp_path):
    scenes = embedded_images(3, 256)
    assert scenes.shape == (3, 3, 256, 256) and scenes.min() >= 0 and scenes.max() <= 1
    assert torch.equal(scenes, embedded_images(3, 256))
    assert not torch.equal(scenes[0], scenes[1])
    with pytest.raises(DataError, match="no images in"):
        folder_images(tmp_path, 3, 32)
    with pytest.raises(DataError, match="--images .*/none: there is no such folder; give"):
        folder_images(tmp_path / "none", 3, 32)
    for level in (10, 20, 30):
        grey = np.full((40, 50, 3), level, np.uint8)
        Image.fromarray(grey).save(tmp_path / f"{level}.png")
    found = folder_images(tmp_path, 2, 32)
    assert found.shape == (2, 3, 32, 32)
    assert (found * 255).mean((1, 2, 3)).tolist() == pytest.approx([10, 20])
    (tmp_path / "10.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="10.png"):
        folder_images(tmp_path, 2, 32)


def run(*arguments):
    app = Typer()
    app.command()(tokenizer_probe.main)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command(tmp_path):
    folder = write_vae(tmp_path, "flux2")
    done = run(folder, "--size", 64, "--count", 2)
    assert done.exit_code == 0, done.output
    for text in ("AutoencoderKLFlux2", "128 x 4 x 4", "4-D", "bn.running_var + 1e-05", "use it"):
        assert text in done.output
    done = run(folder, "--size", 64, "--count", 2, "--json")
    latents, facts = json.loads(done.output)
    assert len(latents["rows"]) == 128
    rows = {what["value"]: found["value"] for what, found in facts["rows"]}
    assert rows["use it with"] == f"tokenizer=vae tokenizer.model={folder}"
    assert rows["latents_mean in config.json"] == "absent"
    assert isinstance(run(tmp_path / "none").exception, ConfigError)


def test_registered_names(monkeypatch, given):
    """A name of ours means the files that it stands for."""
    asked = []

    def opened(model, subfolder, file, **more):
        asked.append((model, subfolder))
        raise ConfigError("enough")

    monkeypatch.setattr("nanogen.hub.locate", opened)
    for name in ("sdvae-mse", "qwen-vae"):
        with pytest.raises(ConfigError, match="enough"):
            probe(name, given)
    assert asked[0] == ("stabilityai/sd-vae-ft-mse", "") and ("Qwen/Qwen-Image", "vae") in asked
    for name in ("animals-rae", "pixels", "vae"):
        with pytest.raises(ConfigError, match=f"{name!r} is a tokenizer of ours.* folder"):
            probe(name, given)
    with pytest.raises(ConfigError, match="no model is named; give a folder, or a name on the hub"):
        probe("", given)
