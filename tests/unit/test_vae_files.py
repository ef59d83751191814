"""Files of autoencoders that are broken, foreign or not what they say."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_vae import tiny_vae, write_vae

from nanogen.errors import ConfigError
from nanogen.tokenizers.vae_files import KINDS, Place, open_files

diffusers = pytest.importorskip("diffusers")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def refused(folder, match, **place):
    with pytest.raises(ConfigError, match=match) as problem:
        open_files(Place(str(folder), **place)).network()
    assert "\n" not in str(problem.value)


def write_config(folder, **fields):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_opening(tmp_path):
    files = open_files(Place(str(write_vae(tmp_path, "flux2"))))
    assert (files.name, files.channels, files.factor) == ("AutoencoderKLFlux2", 128, 16)
    network, expected = files.network(), tiny_vae("flux2").state_dict()
    assert type(network) is diffusers.AutoencoderKLFlux2
    assert {"bn.running_mean", "bn.running_var"} < set(expected)
    for name, value in network.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_config_is_that_of_the_file_not_of_the_class(tmp_path):
    folder = write_vae(tmp_path, "qwen")
    config = json.loads((folder / "config.json").read_text())
    del config["latents_mean"]
    (folder / "config.json").write_text(json.dumps(config))
    files = open_files(Place(str(folder)))
    assert "latents_mean" not in files.config
    assert files.network().config.latents_mean is not None


def test_weights_that_do_not_fit(tmp_path, capfd):
    folder = write_vae(tmp_path, "f8d4")
    whole = load_file(folder / WEIGHTS)

    def with_weights(weights):
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

    with_weights({k: v for k, v in whole.items() if k != "decoder.conv_in.bias"})
    refused(folder, "1 missing, such as decoder.conv_in.bias")
    with_weights({**whole, "loss.logvar": torch.zeros(1)})
    refused(folder, "1 unexpected, such as loss.logvar")
    with_weights({**whole, "quant_conv.bias": torch.zeros(3)})
    refused(folder, "holds no autoencoder that diffusers can load: ")
    (folder / WEIGHTS).write_bytes(b"not weights")
    refused(folder, "holds no autoencoder that diffusers can load")
    (folder / WEIGHTS).unlink()
    refused(folder, f"holds no autoencoder .*{WEIGHTS}")
    assert capfd.readouterr() == ("", ""), "one message is enough"


def test_a_counter_that_nothing_reads_may_be_missing(tmp_path):
    folder = write_vae(tmp_path, "flux2")
    weights = load_file(folder / WEIGHTS)
    del weights["bn.num_batches_tracked"]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    open_files(Place(str(folder))).network()
    del weights["bn.running_var"]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    refused(folder, "missing, such as bn.running_var")


def test_pickled_weights_are_refused(tmp_path):
    folder = write_vae(tmp_path, "f8d4")
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    refused(folder, "safetensors")


def test_configs_that_name_nothing_usable(tmp_path):
    refused(tmp_path / "none", "tokenizer.model=.*no such folder")
    refused(tmp_path, "holds no autoencoder that diffusers can load: .*config.json")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "holds no autoencoder .*not a valid JSON")
    (tmp_path / "config.json").write_text("[1]")
    refused(tmp_path, "config.json is no list of fields")
    refused(write_config(tmp_path), "names no class; add _class_name")
    refused(write_config(tmp_path, model_type="bert"), "a model of transformers")
    refused(
        write_config(tmp_path, _class_name="AutoencoderTiny"),
        "AutoencoderTiny, which is not supported: it only imitates .*supported: AutoencoderKL,",
    )
    refused(write_config(tmp_path, _class_name="Evil"), "of class Evil, which is not supported;")
    fields = {"latent_channels": 4, "block_out_channels": [8], "down_block_types": ["Nothing"]}
    refused(write_config(tmp_path, _class_name="AutoencoderKL", **fields), "holds no autoencoder")


def test_a_preset_wants_its_own_class(tmp_path):
    folder = write_vae(tmp_path, "f8d4")
    refused(folder, "is an AutoencoderKL, not an AutoencoderKLFlux2", network="AutoencoderKLFlux2")
    config = json.loads((folder / "config.json").read_text())
    del config["_class_name"]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "names no class")
    assert open_files(Place(str(folder), network="AutoencoderKL")).name == "AutoencoderKL"


def test_every_class_is_one_of_diffusers():
    assert all(hasattr(diffusers, name) for name in KINDS)
