"""The Perception Encoder against numpy, its files in every wrapping, and its sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy_pe
import pytest
import torch
from parts import images
from safetensors.torch import load_file, save_file

from nanogen.encoders import weights
from nanogen.encoders.perception import PerceptionCore, PerceptionLang, PerceptionSpatial
from nanogen.encoders.perception_transformer import PerceptionTransformer, Shape, rotation_angles
from nanogen.encoders.vision import open_encoder, rows
from nanogen.errors import ConfigError
from nanogen.model import parameter_count

TINY = Shape(width=16, depth=2, heads=2, hidden=24, patch=2)
FAMILIES = (PerceptionCore, PerceptionSpatial, PerceptionLang)
GOLDEN = Path(__file__).parents[1] / "golden" / "perception.safetensors"
UNUSED = {"attn_pool.probe": torch.ones(1, 1, 16), "proj": torch.ones(16, 8)}


def random_weights(shape: Shape, side: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, none of them at a value where a mistake would not show."""
    generator = torch.Generator().manual_seed(seed)
    state = PerceptionTransformer(shape, side).state_dict()
    return {
        name: torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.ndim > 1 else 0.5)
        + float(name.endswith((".gamma", "weight")) and tensor.ndim == 1)
        for name, tensor in state.items()
    }


@pytest.fixture
def tiny(monkeypatch):
    """Open a named encoder whose sizes are small: `tiny(name, shape, file)`."""

    def opened(name, shape, path, image_size=256):
        plain = name.partition("[")[0]
        for family in FAMILIES:
            if plain in family.shapes:
                monkeypatch.setitem(family.shapes, plain, shape)
        return open_encoder(name, image_size, str(path))

    return opened


CASES = {
    "pe-vit-b": (TINY, 14),
    "pe-vit-l[norm]": (replace(TINY, final_norm=True), 24),
    "pe-vit-g": (replace(TINY, class_token=False), 32),
    "spatialpe-vit-g": (replace(TINY, class_token=False, layer_scale=True), 32),
    "spatialpe-vit-l": (TINY, 16),
    "langpe-vit-l": (replace(TINY, layer_scale=True), 32),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_numpy(tmp_path, tiny, name):
    """Class token or none, layer scale or none, final norm or none, positions larger and smaller
    than the grid and of its size.
    """
    shape, side = CASES[name]
    tensors = random_weights(shape, side)
    save_file(tensors, tmp_path / "model.safetensors")
    encoder = tiny(name, shape, tmp_path / "model.safetensors")
    given = images(1, 256, seed=1)
    seen = encoder(given)
    # 256 px to 32, without a filter: the middle two of every eight pixels.
    rows = (given[0, :, 3::8] + given[0, :, 4::8]) / 2
    small = (rows[..., 3::8] + rows[..., 4::8]) / 2
    arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    expected = numpy_pe.encode(arrays, small.double().numpy() * 2 - 1, shape.patch, shape.heads)
    found = seen.patches[0].double().numpy()
    assert found.shape == (256, 16) and encoder.grid == 16 and encoder.width == 16
    if shape.class_token:
        np.testing.assert_allclose(seen.cls[0].double().numpy(), expected[0], atol=1e-4)
        expected = expected[1:]
    else:
        assert seen.cls is None
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected).max() > 1


@pytest.mark.parametrize("name", ["core", "lang", "giant"])
def test_equals_recorded_tokens(name):
    """Those of timm 1.0.31 on the same random weights, which agrees with the original code where
    the positions have the size of the grid.
    """
    recorded = load_file(GOLDEN)
    prefix = f"{name}.weights."
    tensors = {n.removeprefix(prefix): t for n, t in recorded.items() if n.startswith(prefix)}
    shape = replace(
        TINY,
        class_token=name != "giant",
        layer_scale=name != "core",
        final_norm=name == "core",
    )
    network = PerceptionTransformer(shape, 4)
    weights.fill(network, tensors, where=str(GOLDEN))
    found = network(recorded[f"{name}.images"])
    torch.testing.assert_close(found, recorded[f"{name}.tokens"], atol=1e-4, rtol=1e-5)


def wrapped(tensors, how):
    """The same tensors as the files that are found in the world hold them."""
    match how:
        case "plain":
            return tensors
        case "unused":
            return tensors | UNUSED
        case "clip":
            text = {
                "transformer.resblocks.0.ln_1.weight": torch.ones(3),
                "logit_scale": torch.ones(()),
            }
            return {f"visual.{n}": t for n, t in (tensors | UNUSED).items()} | text
        case "parallel":
            return {"state_dict": {f"module.visual.{n}": t for n, t in tensors.items()}}
        case "nested":
            return {"epoch": 3, "weights": {f"module.{n}": t for n, t in tensors.items()}}


@pytest.mark.parametrize("how", ["plain", "unused", "clip", "parallel", "nested"])
@pytest.mark.parametrize("archive", [True, False])
def test_every_wrapping_of_a_file(tmp_path, tiny, how, archive):
    tensors = random_weights(TINY, 16)
    file = tmp_path / "PE-Core-B16-224.pt"
    torch.save(wrapped(tensors, how), file, _use_new_zipfile_serialization=archive)
    encoder = tiny("pe-vit-b", TINY, tmp_path)  # the folder that holds the file of the hub
    state = encoder.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


def test_half_precision_is_read_as_float32(tmp_path, tiny):
    tensors = {n: t.bfloat16() for n, t in random_weights(TINY, 16).items()}
    save_file(tensors, tmp_path / "PE-Core-B16-224.safetensors")
    encoder = tiny("pe-vit-b", TINY, tmp_path)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def broken(tensors, how):
    match how:
        case "missing":
            del tensors["transformer.resblocks.1.mlp.c_fc.bias"]
        case "unexpected":
            tensors["transformer.resblocks.1.ls_1.gamma"] = torch.ones(16)
        case "shape":
            tensors["conv1.weight"] = torch.ones(16, 3, 4, 4)
        case "positions":
            tensors["positional_embedding"] = torch.ones(256, 16)
        case "no positions":
            del tensors["positional_embedding"]
    return tensors


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"lacks transformer.resblocks.1.mlp.c_fc.bias"),
        ("unexpected", r"unknown transformer.resblocks.1.ls_1.gamma"),
        ("shape", r"conv1.weight is \[16, 3, 4, 4\], not \[16, 3, 2, 2\]"),
        ("positions", r"no square grid"),
        ("no positions", r"no positional_embedding"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, tiny, how, message):
    file = tmp_path / "model.pt"
    torch.save(broken(random_weights(TINY, 16), how), file)
    with pytest.raises(ConfigError, match=message) as caught:
        tiny("spatialpe-vit-b", TINY, file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_final_norm_is_unused_in_core_and_unknown_elsewhere(tmp_path, tiny):
    file = tmp_path / "model.pt"
    torch.save(random_weights(replace(TINY, final_norm=True), 16), file)
    plain, normed = tiny("pe-vit-b", TINY, file), tiny("pe-vit-b[norm]", TINY, file)
    given = images(2, 256)
    norm = normed.network.ln_post
    assert torch.equal(norm(plain(given).patches), normed(given).patches)
    assert torch.equal(norm(plain(given).cls), normed(given).cls)
    assert plain.fingerprint != normed.fingerprint
    with pytest.raises(ConfigError, match="unknown ln_post"):
        tiny("spatialpe-vit-b", TINY, file)
    with pytest.raises(ConfigError, match="no option 'norm'"):
        tiny("spatialpe-vit-b[norm]", TINY, file)
    with pytest.raises(ConfigError, match="norm takes no value"):
        tiny("pe-vit-b[norm=2]", TINY, file)


def test_code_in_a_file_is_not_run(tmp_path, tiny):
    file = tmp_path / "model.pt"
    torch.save({"state_dict": Shape, "run": print}, file)
    with pytest.raises(ConfigError, match="not a readable file of weights"):
        tiny("pe-vit-b", TINY, file)
    file.write_bytes(b"<html>")
    with pytest.raises(ConfigError, match="not a readable file of weights"):
        tiny("pe-vit-b", TINY, file)
    with pytest.raises(ConfigError, match="neither a file of weights nor a folder"):
        tiny("pe-vit-b", TINY, tmp_path / "nowhere")


def test_larger_images_and_sizes_that_do_not_fit(tmp_path, tiny):
    file = tmp_path / "model.pt"
    torch.save(random_weights(TINY, 14), file)
    large = tiny("pe-vit-b", TINY, file, 512)
    assert large(images(1, 512)).patches.shape == (1, 1024, 16) and large.side == 64
    for size in (128, 384):
        with pytest.raises(ConfigError, match=str(size)):
            tiny("pe-vit-b", TINY, file, size)


def test_frozen_and_differentiable_in_the_images(tmp_path, tiny):
    file = tmp_path / "model.pt"
    torch.save(random_weights(TINY, 14), file)
    encoder = tiny("pe-vit-b", TINY, file)
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(weight.requires_grad for weight in encoder.parameters())
    given = images(1, 256).requires_grad_()
    encoder(given).patches.square().sum().backward()
    assert given.grad.abs().sum() > 0
    again = tiny("pe-vit-b", TINY, file)
    assert again.fingerprint == encoder.fingerprint != tiny("pe-vit-b", TINY, file, 512).fingerprint
    torch.save(random_weights(TINY, 14, seed=1), file)
    assert tiny("pe-vit-b", TINY, file).fingerprint != encoder.fingerprint


NATIVE = {"T16-384": 24, "S16-384": 24, "B16-224": 14, "L14-336": 24, "G14-448": 32}
NATIVE |= {"B16-512": 32, "L14-448": 32}
"""positions a side, by the end of a model's name"""


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_the_rows(family):
    """Counted by hand from the sizes, and on the meta device."""
    for row in family.rows:
        s, side = family.shapes[row.name], NATIVE[row.hub[-7:]]
        attention, mlp = 4 * s.width**2 + 4 * s.width, 2 * s.width * s.hidden + s.hidden + s.width
        block = attention + mlp + 4 * s.width + 2 * s.width * s.layer_scale
        outside = 3 * s.patch**2 * s.width + s.class_token * s.width + 2 * s.width
        positions = (side**2 + s.class_token) * s.width
        with torch.device("meta"):
            built = parameter_count(PerceptionTransformer(s, side))
        assert row.parameters == built == s.depth * block + outside + positions
        assert row.width == s.width and row in rows() and row.side == 16 * s.patch
    assert {row.name for row in family.rows} == set(family.shapes)


def test_rotations_at_known_places():
    angles = rotation_angles(3, 8, class_token=True)
    assert angles.shape == (10, 8) and not angles[0].any()
    # Row 1, column 2: counted from 1 beside a class token; frequencies 1 and 1/100.
    expected = torch.tensor([3.0, 3.0, 0.03, 0.03, 2.0, 2.0, 0.02, 0.02])
    torch.testing.assert_close(angles[1 + 3 + 2], expected)
    torch.testing.assert_close(
        rotation_angles(3, 8, class_token=False)[5],
        expected - torch.tensor([1.0, 1, 0.01, 0.01] * 2),
    )


def test_from_the_hub(tmp_path, tiny, monkeypatch):
    """The file that is asked for, and one line where it cannot be had."""
    import huggingface_hub

    asked = []
    torch.save(random_weights(TINY, 14), tmp_path / "model.pt")

    def download(repository, name, **how):
        asked.append((repository, name))
        return str(tmp_path / "model.pt")

    monkeypatch.setattr(
        weights.hub, "locate", lambda model, *a, **k: weights.hub.Source(model, "", False)
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    tiny("langpe-vit-l", TINY, "")
    assert asked == [("facebook/PE-Lang-L14-448", "PE-Lang-L14-448.pt")]

    def refuse(*a, **k):
        raise OSError("no route\nat all")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ConfigError, match="cannot load 'facebook/PE-Lang-L14-448': no route"):
        tiny("langpe-vit-l", TINY, "")
