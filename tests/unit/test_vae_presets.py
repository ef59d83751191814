"""The named autoencoders: their facts, and how each is normalised."""

from __future__ import annotations

import json
import time
import warnings

import pytest
import torch
from parts import images
from tiny_vae import FULL, KIND_OF, full_vae, moments, published_fields, tiny_folder, tiny_vae
from tiny_vae import write_vae as write

from nanogen import config, registry
from nanogen.errors import ConfigError
from nanogen.hub import Source
from nanogen.model import parameter_count
from nanogen.tokenizers.vae import VaeFields
from nanogen.tokenizers.vae_files import Files

pytest.importorskip("diffusers")

PRESETS = [name for name in KIND_OF if name != "vae"]
GATED = {"sd3.5", "flux", "flux2"}
TUNED = [n for n in PRESETS if n == "vavae" or n.startswith("e2e-")]
QWEN_MEAN = """-0.7571 -0.7089 -0.9113 0.1075 -0.1745 0.9653 -0.1517 1.5508 0.4134 -0.0715 0.5517
-0.3632 -0.1922 -0.9497 0.2503 -0.2921"""
QWEN_STD = """2.8184 1.4541 2.3275 2.6558 1.2196 1.7708 2.6052 2.0743 3.2687 2.1526 2.8652 1.5579
1.6382 1.1253 2.8251 1.916"""


def preset(name):
    return registry.get("tokenizer", name)


def edit(folder, **fields):
    file = folder / "config.json"
    old = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in {**old, **fields}.items() if v is not ...}))
    return folder


def test_all_fourteen_are_there():
    found = [e for e in registry.entries("tokenizer") if issubclass(e.target, VaeFields)]
    assert {e.name for e in found} == {*PRESETS, "vae"} and len(PRESETS) == 14
    for entry in found:
        facts = entry.target.facts
        assert entry.licence == facts.licence and entry.needs.startswith("pip install")
        assert (facts.status == "gated") is (entry.name in GATED)
        if entry.name in GATED:
            assert f"https://huggingface.co/{facts.hub}" in entry.needs
    hubs = [e.target.facts.hub for e in found]
    assert len(set(hubs)) == 15


@pytest.mark.parametrize("name", PRESETS)
def test_facts_are_those_of_the_published_size(name):
    kind = KIND_OF[name]
    cls, fields = FULL[kind]
    facts = preset(name).facts
    assert facts.parameters == parameter_count(full_vae(kind))
    files = Files(Source("", "", True), cls, fields)
    assert facts.latent == (files.channels, 256 // files.factor, 256 // files.factor)
    assert preset(name)().patch * files.factor == 16, "256 tokens of an image of 256 px"


@pytest.mark.parametrize("name", PRESETS)
def test_a_dump_holds_every_field(name):
    one = preset(name)(posterior="sample", model="somewhere")
    again = config.from_tree(preset(name), json.loads(json.dumps(config.dump(one))))
    assert again == one


@pytest.mark.parametrize(
    "name, shift, scale",
    [
        ("sdvae-ema", 0.0, 0.18215),
        ("sdvae-mse", 0.0, 0.18215),
        ("sdxl-vae", 0.0, 0.13025),
        ("sd3.5", 0.0609, 1.5305),
        ("flux", 0.1159, 0.3611),
    ],
)
@torch.no_grad()
def test_those_with_two_numbers(name, shift, scale):
    given = images(2, 64)
    mean, _ = moments(tiny_vae(KIND_OF[name], **published_fields(name)), given)
    found = preset(name)(model=str(tiny_folder(name))).build(64).encode(given)
    assert (found - (mean - shift) * scale).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["sdvae-ema", "sdvae-mse", "sdxl-vae"])
def test_a_preset_gives_way_to_vectors_and_not_to_numbers(name, tmp_path):
    scale = 0.13025 if name == "sdxl-vae" else 0.18215
    folder = write(tmp_path, "f8d4", scaling_factor=0.5, shift_factor=0.25)
    assert preset(name)(model=str(folder)).build(64).scale.item() == pytest.approx(scale)
    # The config of the published SD-VAE is older than these fields.
    edit(folder, scaling_factor=..., shift_factor=..., latents_mean=...)
    vae = preset(name)(model=str(folder)).build(64)
    assert (vae.shift.item(), vae.scale.item()) == (0, pytest.approx(scale))
    edit(folder, latents_mean=[1.0] * 4, latents_std=[2.0] * 4)
    vae = preset(name)(model=str(folder)).build(64)
    assert (vae.shift.unique().item(), vae.scale.unique().item()) == (1, 0.5)


@pytest.mark.parametrize("name", ["sd3.5", "flux"])
def test_a_null_shift_is_none(name, tmp_path):
    folder = write(tmp_path, "f8d16", scaling_factor=0.5, shift_factor=None)
    vae = preset(name)(model=str(folder)).build(64)
    assert (vae.shift.item(), vae.scale.item()) == (0, 0.5)


@pytest.mark.parametrize("name", TUNED)
def test_tuned_ones_must_say_how_they_are_normalised(name, tmp_path):
    folder = write(tmp_path, KIND_OF[name], **published_fields(name))
    expected = published_fields(name)
    with warnings.catch_warnings(action="error"):
        vae = preset(name)(model=str(folder)).build(64)
    assert vae.shift.flatten().tolist() == pytest.approx(expected["latents_mean"])
    assert (1 / vae.scale).flatten().tolist() == pytest.approx(expected["latents_std"])

    edit(folder, latents_std=..., shift_factor=0.5, scaling_factor=0.25)
    if KIND_OF[name] == "qwen":  # half of the vectors is worth nothing
        edit(folder, latents_mean=None)
    else:
        edit(folder, latents_mean=...)
    with pytest.warns(
        UserWarning,
        match="no latents_mean and latents_std: its shift_factor and scaling_factor are",
    ):
        vae = preset(name)(model=str(folder)).build(64)
    assert (vae.shift.item(), vae.scale.item()) == (0.5, 0.25)
    for field in ("shift_factor", "scaling_factor"):
        edit(folder, shift_factor=0.5, scaling_factor=0.25)
        for value in (None, ...):
            with pytest.raises(
                ConfigError, match=f"has neither latents_.* nor {field};.*needs its own"
            ):
                preset(name)(model=str(edit(folder, **{field: value}))).build(64)


@pytest.mark.parametrize("given, other", [("mean", "std"), ("std", "mean")])
def test_each_half_of_the_vectors_counts(given, other, tmp_path):
    """What is there is used; only of what is missing a number stands in, with a warning."""
    folder = write(tmp_path, KIND_OF["vavae"], **published_fields("vavae"))
    edit(folder, **{f"latents_{other}": ...}, shift_factor=0.5, scaling_factor=0.25)
    number = {"mean": "shift_factor", "std": "scaling_factor"}[other]
    with pytest.warns(UserWarning, match=f"has no latents_{other}: its {number} is used") as caught:
        vae = preset("vavae")(model=str(folder)).build(64)
    message = str(caught[0].message)
    assert f"latents_{given}" not in message and "end to end" not in message
    expected = published_fields("vavae")
    if given == "mean":
        assert vae.shift.flatten().tolist() == pytest.approx(expected["latents_mean"])
        assert vae.scale.item() == 0.25
    else:
        assert vae.shift.item() == 0.5
        assert (1 / vae.scale).flatten().tolist() == pytest.approx(expected["latents_std"])
    edit(folder, **{number: ...})
    with pytest.raises(ConfigError, match=f"neither latents_{other} nor {number};"):
        preset("vavae")(model=str(folder)).build(64)


def test_qwen(tmp_path):
    folder = write(tmp_path, "qwen")
    vae = preset("qwen-vae")(model=str(folder)).build(64)
    mean, std = ([float(x) for x in text.split()] for text in (QWEN_MEAN, QWEN_STD))
    assert vae.shift.flatten().tolist() == pytest.approx(mean)
    assert (1 / vae.scale).flatten().tolist() == pytest.approx(std)
    with pytest.raises(ConfigError, match="no latents_std"):
        preset("qwen-vae")(model=str(edit(folder, latents_std=...))).build(64)


def test_flux2_epsilon(tmp_path):
    folder, given = write(tmp_path, "flux2"), images(2, 64)
    default = preset("flux2")(model=str(folder)).build(64)
    variance = tiny_vae("flux2").bn.running_var
    assert torch.equal(default.scale.flatten(), (variance + 1e-5).rsqrt())
    other = preset("flux2")(model=str(folder), eps=1e-4).build(64)
    assert torch.equal(other.raw(given), default.raw(given))
    assert not torch.equal(other.encode(given), default.encode(given))
    assert other.raw_fingerprint == default.raw_fingerprint
    assert other.fingerprint != default.fingerprint
    with pytest.raises(ConfigError, match=r"tokenizer.eps=1.0"):
        preset("flux2")(eps=1.0)


def test_another_class_in_the_place_of_a_preset():
    with pytest.raises(ConfigError, match="is an AutoencoderKL, not an AutoencoderKLQwenImage"):
        preset("qwen-vae")(model=str(tiny_folder("sdvae-mse"))).build(64)


@pytest.mark.parametrize("name", sorted(GATED))
def test_gated_ones_fail_at_once_with_the_page(name, monkeypatch):
    import huggingface_hub

    def silent(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", silent)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    started = time.monotonic()
    page = f"https://huggingface.co/{preset(name).facts.hub}"
    with pytest.raises(ConfigError, match=f"{page} and log in with: hf auth login; or set tok"):
        preset(name)().build(256)
    assert time.monotonic() - started < 1
    with pytest.raises(ConfigError) as problem:
        preset(name)(model="some/copy").build(256)
    assert "gated" not in str(problem.value)
