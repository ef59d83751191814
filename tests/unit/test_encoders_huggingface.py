"""Loading vision encoders through transformers: what is refused, and with which advice."""

from __future__ import annotations

import json
import sys

import pytest
import safetensors.torch
import torch
from parts import images
from tiny_encoders import FIXTURES, full_encoder, tiny_folder, without, write_encoder

from nanogen.encoders.huggingface import take_norm
from nanogen.encoders.vision import families, open_encoder, parse
from nanogen.errors import ConfigError, MissingExtra

ROWS = [row for name, family in families().items() if name in FIXTURES for row in family.rows]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_facts_of_a_row_are_those_of_the_network_at_full_size(row):
    """Parameters without the token of masked patches and without heads that pool; width, patch."""
    network = full_encoder(row.name)
    count = sum(
        weight.numel()
        for name, weight in network.named_parameters()
        if not name.endswith("mask_token") and "head." not in name.split("encoder.")[0]
    )
    assert count == row.parameters
    config = network.config
    if row.name.startswith("convnextv2"):
        assert config.hidden_sizes[-1] == row.width
        assert config.patch_size * 2 ** (len(config.depths) - 1) == row.patch
    else:
        assert (config.hidden_size, config.patch_size) == (row.width, row.patch)


MISSING = {
    "dinov2-vit-b": "encoder.layer.0.norm1.weight",
    "siglip2-vit-b": "vision_model.post_layernorm.bias",
    "clip-vit-l": "vision_model.encoder.layers.1.layer_norm1.bias",
    "mae-vit-b": "vit.embeddings.cls_token",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_weight_is_refused(tmp_path, name):
    """Left alone, transformers would draw it at random and only warn."""
    folder = without(tiny_folder(name), tmp_path / "less", MISSING[name])
    with pytest.raises(ConfigError, match="1 missing, such as ") as refused:
        open_encoder(name, 256, str(folder))
    assert MISSING[name].rpartition("layer")[2].split(".", 1)[-1] in str(refused.value)


def test_a_missing_mask_token_is_no_loss(tmp_path):
    folder = without(tiny_folder("dinov2-vit-b"), tmp_path / "less", "embeddings.mask_token")
    given = images(1, 256)
    less = open_encoder("dinov2-vit-b", 256, str(folder))
    more = open_encoder("dinov2-vit-b", 256, str(tiny_folder("dinov2-vit-b")))
    assert torch.equal(less(given).patches, more(given).patches)
    assert less.fingerprint == more.fingerprint


def changed(folder, target, **fields):
    """A copy of a folder whose config says something else."""
    target.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | fields))
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return target


def test_an_unknown_weight_is_refused(tmp_path):
    folder = changed(tiny_folder("webssl-vit-dino1b_full2b_224"), tmp_path / "more")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["embeddings.surprise"] = torch.ones(2)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="1 unknown, such as embeddings.surprise"):
        open_encoder("webssl-vit-dino1b_full2b_224", 256, str(folder))


def test_a_config_of_another_size_is_refused(tmp_path):
    folder = changed(tiny_folder("dinov2-vit-b"), tmp_path / "wide", hidden_size=48)
    message = f"weights of {folder} do not fit Dinov2WithRegistersModel: [0-9]+ misshapen, such as"
    with pytest.raises(ConfigError, match=message):
        open_encoder("dinov2-vit-b", 256, str(folder))


def test_the_folder_of_another_family_is_refused():
    with pytest.raises(ConfigError, match="do not fit Dinov2WithRegistersModel"):
        open_encoder("dinov2-vit-b", 256, str(tiny_folder("dinov3-vit-b16")))


def test_another_patch_is_refused():
    with pytest.raises(ConfigError, match="has patches of 16 px and mae-vit-h of 14 px"):
        open_encoder("mae-vit-h", 256, str(tiny_folder("mae-vit-b")))


def test_pickled_weights_are_not_read(tmp_path):
    folder = tiny_folder("dinov2-vit-b")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        open_encoder("dinov2-vit-b", 256, str(tmp_path))


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"transformers.*nanogen\[latents\]"):
        open_encoder("dinov2-vit-b", 256, str(tiny_folder("dinov2-vit-b")))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("dinov2-vit-b", 384, "256 px or a multiple, not 384; resize them to 512 px"),
        ("dinov3-vit-b16", 64, "256 px or a multiple, not 64; resize them to 256 px"),
        ("siglip2-vit-b", 512, "256 px only, not 512"),
        ("clip-vit-l", 512, "256 px only, not 512"),
        ("dinov2-vit-b[norm=1]", 256, "norm takes no value"),
        ("dinov2-vit-b[norm,norm]", 256, "has the option 'norm' twice"),
        ("dinov2-vit-b[nrm]", 256, "did you mean norm?"),
        ("dinov2-vit-x", 256, "did you mean dinov2-vit-s or "),
        ("dinov2 vit b", 256, "is not a name"),
        ("eupe-vit-b16", 256, "timm"),
    ],
)
def test_what_cannot_be_meant(name, size, message):
    with pytest.raises(ConfigError) as refused:
        open_encoder(name, size)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("layers", ["", "2.1", "1.1", "-1.2", "a", "2.12", "1,5"])
def test_layers_that_are_none(layers):
    folder = tiny_folder("dinov2mls-vit-b")
    with pytest.raises(ConfigError, match="layers=|no option"):
        open_encoder(f"dinov2mls-vit-b[layers={layers}]", 256, str(folder))


def test_layers_that_nobody_published():
    folder = tiny_folder("dinov3mls-vit-7b16")
    with pytest.raises(ConfigError, match=r"no published layers; .*\[layers=5.11\]"):
        open_encoder("dinov3mls-vit-7b16", 256, str(folder))
    assert open_encoder("dinov3mls-vit-7b16[layers=5.11]", 256, str(folder)).grid == 16


def test_the_name_is_the_same_in_any_order():
    folder = str(tiny_folder("dinov2-vit-b[woreg]"))
    one, other = (
        open_encoder(f"dinov2-vit-b[{options}]", 256, folder)
        for options in ("norm,woreg", "woreg,norm")
    )
    assert one.name == other.name == "dinov2-vit-b[norm,woreg]"
    assert one.fingerprint == other.fingerprint
    assert parse(one.name) == ("dinov2-vit-b", {"norm": "", "woreg": ""})


def test_whatever_changes_features_changes_the_fingerprint(tmp_path):
    folder = str(tiny_folder("dinov2mls-vit-b"))
    other = str(write_encoder(tmp_path / "other", "dinov2mls-vit-b", seed=1))
    seen = [
        open_encoder("dinov2mls-vit-b", 256, folder),
        open_encoder("dinov2mls-vit-b", 512, folder),
        open_encoder("dinov2mls-vit-b", 256, other),
        open_encoder("dinov2mls-vit-b[norm]", 256, folder),
        open_encoder("dinov2mls-vit-b[layers=2.5]", 256, folder),
        open_encoder("dinov2-vit-b", 256, folder),
    ]
    assert len({encoder.fingerprint for encoder in seen}) == len(seen)


def test_a_norm_without_affine_has_no_weights():
    """Turning the flag of a norm that is made changes nothing; its weights must go."""
    owner = torch.nn.Module()
    owner.norm = torch.nn.LayerNorm(8, eps=1e-6)
    torch.nn.init.uniform_(owner.norm.weight)
    given = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    affine = owner.norm(given)
    owner.norm.elementwise_affine = False
    assert torch.equal(owner.norm(given), affine)
    plain = take_norm(owner, "norm", affine=False)
    assert torch.equal(owner.norm(given), given) and not plain.state_dict()
    expected = (given - given.mean(1, keepdim=True)) / given.var(1, keepdim=True, correction=0).add(
        1e-6
    ).sqrt()
    torch.testing.assert_close(plain(given), expected)
