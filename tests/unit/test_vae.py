"""Autoencoders of diffusers as tokenizers, on tiny random ones in the real format."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from parts import images
from tiny_vae import CHANNELS, moments, tiny_vae, write_vae

from nanogen import rng
from nanogen.errors import ConfigError
from nanogen.tokenizers.vae import VaeConfig
from nanogen.tokenizers.vae_presets import QwenVae

diffusers = pytest.importorskip("diffusers")

SHAPES = {
    "f8d4": (4, 8, 8),
    "f8d16": (16, 8, 8),
    "f16d32": (32, 4, 4),
    "flux2": (128, 4, 4),
    "qwen": (16, 8, 8),
    "wan": (16, 8, 8),
}
"""C, h, w at 64 px"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny autoencoder of each kind, with vectors in its config where the class has them."""
    root = tmp_path_factory.mktemp("vae")
    for kind in SHAPES:
        write_vae(root / kind, kind, **({} if kind == "flux2" else vectors(kind)))
    return root


def vectors(kind):
    count = CHANNELS[kind]
    return {
        "latents_mean": torch.linspace(-1, 2, count).tolist(),
        "latents_std": torch.linspace(0.5, 3, count).tolist(),
    }


def build(folder, size=64, **fields):
    return VaeConfig(model=str(folder), **fields).build(size)


def edit(folder, **fields):
    """Change fields of a config.json; `...` removes one."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return folder


def copied(folder, target):
    shutil.copytree(folder, target)
    return target


def packed(latents):
    """2 x 2 latents into channels, one by one: c * 4 + dy * 2 + dx."""
    count, channels, height, width = latents.shape
    out = torch.empty(count, channels * 4, height // 2, width // 2)
    for c in range(channels):
        for dy in range(2):
            for dx in range(2):
                out[:, c * 4 + dy * 2 + dx] = latents[:, c, dy::2, dx::2]
    return out


def column(values):
    return torch.tensor(values)[None, :, None, None]


@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_encoding_and_decoding_by_hand(folders, kind):
    vae, network, given = build(folders / kind), tiny_vae(kind), images(2, 64)
    mean, _ = moments(network, given)
    if kind == "flux2":
        raw = packed(mean)
        shift = network.bn.running_mean[:, None, None]
        scale = 1 / (network.bn.running_var[:, None, None] + 1e-5).sqrt()
    else:
        raw, known = mean, vectors(kind)
        shift, scale = column(known["latents_mean"]), 1 / column(known["latents_std"])
    assert (vae.raw(given) - raw).abs().max() < 1e-6
    latents = vae.encode(given)
    assert latents.shape[1:] == SHAPES[kind]
    assert (latents - (raw - shift) * scale).abs().max() < 1e-5

    hidden = mean[:, :, None] if kind in ("qwen", "wan") else mean
    if network.post_quant_conv is not None:
        hidden = network.post_quant_conv(hidden)
    expected = network.decoder(hidden)
    expected = (expected[:, :, 0] if expected.ndim == 5 else expected).add(1).div(2).clamp(0, 1)
    found = vae.decode(latents)
    assert found.shape == (2, 3, 64, 64) and found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_latents_are_about_standard_where_the_vectors_are_those_measured(tmp_path):
    given = images(64, 64)
    with torch.no_grad():
        mean, _ = moments(tiny_vae("f8d4"), given)
    measured = {
        "latents_mean": mean.mean((0, 2, 3)).tolist(),
        "latents_std": mean.std((0, 2, 3)).tolist(),
    }
    latents = build(write_vae(tmp_path, "f8d4", **measured)).encode(given)
    assert latents.mean((0, 2, 3)).abs().max() < 0.05
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.05


def numbers(folder, **fields):
    vae = build(folder, **fields)
    return vae.shift.squeeze().tolist(), vae.scale.squeeze().tolist()


def test_what_normalises(tmp_path):
    folder = write_vae(tmp_path, "f8d4", shift_factor=0.25, scaling_factor=0.5, **vectors("f8d4"))
    expected = vectors("f8d4")
    shift, scale = numbers(folder)
    assert shift == pytest.approx(expected["latents_mean"])
    assert scale == pytest.approx([1 / x for x in expected["latents_std"]])
    # Shift and scale are decided separately.
    assert numbers(edit(folder, latents_std=None)) == (pytest.approx(shift), 0.5)
    assert numbers(edit(folder, latents_mean=...)) == (0.25, 0.5)
    assert numbers(folder, scale=2.0) == (0.25, 2)
    assert numbers(edit(folder, shift_factor=None)) == (0, 0.5)
    assert numbers(edit(folder, shift_factor=...)) == (0, 0.5)
    for value in (None, ...):
        edit(folder, scaling_factor=value)
        with pytest.raises(ConfigError, match="no latents_std and no scaling_factor"):
            build(folder)
    assert numbers(folder, shift=1.0, scale=2.0) == (1, 2)


@pytest.mark.parametrize("kind", ["qwen", "wan"])
def test_defaults_of_a_class_are_never_taken(tmp_path, kind):
    """A config without vectors would silently be given those of the base model."""
    folder = edit(write_vae(tmp_path, kind), latents_mean=...)
    with pytest.raises(ConfigError, match="no latents_mean, .*that of another model"):
        build(folder)
    edit(folder, latents_std=None)
    with pytest.raises(ConfigError, match="no latents_"):
        build(folder)
    assert numbers(folder, shift=0.5, scale=2.0) == (0.5, 2)


@pytest.mark.parametrize(
    "field, value, match",
    [
        ("latents_mean", [0.0] * 3, "latents_mean .*not a list of 4 numbers"),
        ("latents_std", [1.0, 1.0, 0.0, 1.0], "latents_std .*4 numbers above 0"),
        ("latents_mean", "0", "latents_mean .*not a list"),
        ("scaling_factor", 0, "scaling_factor=0.*above 0"),
        ("shift_factor", "a", "shift_factor='a'.*finite"),
        ("latent_channels", "4", "latent_channels='4'"),
        ("latent_channels", True, "latent_channels=True"),
        ("scaling_factor", True, "scaling_factor=True.*above 0"),
        ("latents_std", [1.0, True, 1.0, 1.0], "latents_std .*4 numbers above 0"),
        ("block_out_channels", 3, "no list 'block_out_channels'"),
    ],
)
def test_a_config_that_makes_no_sense(tmp_path, field, value, match):
    with pytest.raises(ConfigError, match=match):
        build(edit(write_vae(tmp_path, "f8d4"), **{field: value}))


@torch.no_grad()
def test_packed_latents_are_whitened_by_the_batch_statistics(folders):
    given, network = images(2, 64), tiny_vae("flux2")
    raw = packed(moments(network, given)[0])
    assert (build(folders / "flux2").raw(given) - raw).abs().max() < 1e-6
    # The network's own layer adds the eps of its config, as the pipeline of diffusers does.
    theirs = build(folders / "flux2", eps=1e-4).encode(given)
    torch.testing.assert_close(theirs, network.bn(raw), atol=1e-5, rtol=1e-5)
    ours = build(folders / "flux2").encode(given)
    assert 1e-6 < (ours - theirs).abs().max() < 1e-2
    for name, value in (("shift", 0.5), ("scale", 2.0)):
        with pytest.raises(ConfigError, match=f"tokenizer.{name}=.* no effect"):
            build(folders / "flux2", **{name: value})
    with pytest.raises(ConfigError, match=r"tokenizer.eps=.* no effect on AutoencoderKL"):
        build(folders / "f8d4", eps=1e-4)


@pytest.mark.parametrize("kind", ["f8d4", "flux2", "qwen"])
@torch.no_grad()
def test_drawing_from_the_posterior(folders, kind):
    vae, given = build(folders / kind, posterior="sample"), images(2, 64)
    raw = vae.raw(given)
    mean, deviation = moments(tiny_vae(kind), given)
    if kind == "flux2":
        mean, deviation = packed(mean), packed(deviation)
    assert raw.shape == (2, 2 * SHAPES[kind][0], *SHAPES[kind][1:])
    assert (raw - torch.cat([mean, deviation], 1)).abs().max() < 1e-5
    keys = torch.tensor([7, 2**40])
    noise = rng.normal(0, "posterior", keys, SHAPES[kind])
    found = vae.latents(raw, keys)
    torch.testing.assert_close(found, (mean + deviation * noise - vae.shift) * vae.scale)
    assert torch.equal(vae.latents(raw[1:], keys[1:]), found[1:]), "a row follows from its key"
    assert not torch.equal(vae.latents(raw, keys + 1), found)
    with pytest.raises(ConfigError, match="key of its sample"):
        vae.latents(raw)


@torch.no_grad()
def test_draws_have_the_moments_of_the_posterior(folders):
    vae, given = build(folders / "qwen", posterior="sample"), images(1, 64)
    raw = vae.raw(given).expand(4000, -1, -1, -1)
    drawn = vae.latents(raw, torch.arange(4000)) / vae.scale + vae.shift
    mean, deviation = raw[0].chunk(2)
    assert (drawn.mean(0) - mean).abs().max() < 0.1
    assert (drawn.std(0) / deviation - 1).abs().max() < 0.06


def test_decoding_has_gradients_except_where_it_clamps(folders):
    vae = build(folders / "f8d4")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    vae.decode(latents).sum().backward()
    assert latents.grad.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in vae.parameters())


def test_sizes(folders):
    for kind, size, latent, patch in (
        ("f8d4", 256, (4, 32, 32), 2),
        ("f8d4", 512, (4, 64, 64), 2),
        ("f16d32", 512, (32, 32, 32), 1),
        ("flux2", 512, (128, 32, 32), 1),
    ):
        spec = build(folders / kind, size).spec
        assert (spec.channels, spec.height, spec.width, spec.patch) == (*latent, patch)
    # Nine latents a side have no half: the largest patch that divides them, of 16 px at most.
    assert build(folders / "f8d4", 72).spec.patch == 1
    assert build(folders / "f8d4", 72).spec.height == 9
    with pytest.raises(ConfigError, match="images of 72 px .* multiple of 16 px .*such as"):
        build(folders / "f8d4", 72, patch=2)
    with pytest.raises(ConfigError, match="images of 76 px .* multiple of 8 px .*such as"):
        build(folders / "f8d4", 76)
    with pytest.raises(ConfigError, match=r"images of 8 px .*such as 16"):
        build(folders / "f16d32", 8)
    with pytest.raises(ConfigError, match=r"\(32, 64\) px .* built for \(8, 8\)"):
        build(folders / "f8d4").raw(torch.zeros(1, 3, 32, 64))


def test_fields_out_of_range():
    for fields, match in (
        ({"posterior": "mean"}, "choose mode or sample"),
        ({"patch": 0}, "at least 1"),
        ({"shift": float("inf")}, "finite"),
        ({"scale": 0.0}, "above 0"),
        ({"eps": -1.0}, r"\[0, 1\)"),
    ):
        with pytest.raises(ConfigError, match=match):
            VaeConfig(**fields)
    with pytest.raises(ConfigError, match="tokenizer.model is not set"):
        VaeConfig().build(64)


def test_fingerprints(folders, tmp_path):
    one, same = build(folders / "f8d4"), build(folders / "f8d4")
    assert one.fingerprint == same.fingerprint and one.raw_fingerprint == same.raw_fingerprint
    scaled = build(folders / "f8d4", scale=2.0)
    assert scaled.raw_fingerprint == one.raw_fingerprint
    assert scaled.fingerprint != one.fingerprint
    assert build(folders / "f8d4", posterior="sample").raw_fingerprint != one.raw_fingerprint
    assert build(folders / "f8d4", 128).raw_fingerprint != one.raw_fingerprint
    # A tuned decoder leaves a cache of latents valid; a tuned encoder does not.
    for part, stays in (("decoder", True), ("encoder", False)):
        network = diffusers.AutoencoderKL.from_pretrained(folders / "f8d4")
        with torch.no_grad():
            getattr(network, part).conv_in.weight[0, 0, 0, 0] += 1
        network.save_pretrained(tmp_path / part)
        other = build(tmp_path / part)
        assert (other.raw_fingerprint == one.raw_fingerprint) is stays
        assert other.fingerprint != one.fingerprint


def test_half_precision_files_become_float32(tmp_path):
    tiny_vae("f8d4").to(torch.bfloat16).save_pretrained(tmp_path)
    vae = build(tmp_path)
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    assert vae.encode(images(1, 64)).dtype == torch.float32


def test_the_folder_may_be_the_model_or_the_autoencoder_in_it(tmp_path):
    write_vae(tmp_path / "vae", "f8d4")
    inner = QwenVae(model=str(write_vae(tmp_path / "qwen" / "vae", "qwen", **vectors("qwen"))))
    outer = QwenVae(model=str(tmp_path / "qwen"))
    assert inner.build(64).fingerprint == outer.build(64).fingerprint
    assert build(tmp_path / "vae").fingerprint == build(tmp_path, subfolder="vae").fingerprint
    with pytest.raises(ConfigError, match="tokenizer.model=.* holds no folder 'vea'"):
        build(tmp_path, subfolder="vea")
    with pytest.raises(ConfigError, match="holds no folder 'vea'"):
        QwenVae(model=str(tmp_path / "qwen" / "vae"), subfolder="vea").build(64)
    with pytest.raises(ConfigError, match="holds no autoencoder"):
        build(tmp_path)


def test_attention_of_older_files(tmp_path):
    """Files from before diffusers 0.18 name the four layers of attention otherwise."""
    from safetensors.torch import load_file, save_file

    folder = write_vae(tmp_path, "f8d4")
    expected = build(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, weight in load_file(file).items():
        for new, old in names.items():
            name = name.replace(f".{new}.", f".{old}.")
        weights[name] = weight
    assert any(".query." in name for name in weights)
    save_file(weights, file, {"format": "pt"})
    given = images(1, 64)
    assert torch.equal(build(folder).encode(given), expected.encode(given))
