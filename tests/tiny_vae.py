"""Autoencoders of diffusers as their repositories hold them: at full size, or tiny and random.

    folder = write_vae(tmp_path / "vae", "f8d4")              # config.json and safetensors
    folder = tiny_folder("flux2")                             # as the registered one's
    network = full_vae("f16d32")                              # on the meta device: only shapes

The tiny ones have the block types and the factor of the full ones, in few channels.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"

LDM = {
    "down_block_types": [DOWN] * 4,
    "up_block_types": [UP] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
QWEN = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
}

FULL: dict[str, tuple[str, dict[str, Any]]] = {
    "f8d4": ("AutoencoderKL", {**LDM, "latent_channels": 4}),
    "f8d16": ("AutoencoderKL", {**LDM, **NO_QUANT, "latent_channels": 16}),
    # The f16 autoencoder of latent diffusion: multipliers 1, 1, 2, 2, 4 and attention at 16 x 16.
    "f16d32": (
        "AutoencoderKL",
        {
            **LDM,
            "down_block_types": [DOWN] * 4 + ["AttnDownEncoderBlock2D"],
            "up_block_types": ["AttnUpDecoderBlock2D"] + [UP] * 4,
            "block_out_channels": [128, 128, 256, 256, 512],
            "latent_channels": 32,
        },
    ),
    "flux2": ("AutoencoderKLFlux2", {**LDM, "latent_channels": 32}),
    "qwen": ("AutoencoderKLQwenImage", QWEN),
    "wan": ("AutoencoderKLWan", QWEN),
}
"""kind -> class of diffusers, and its fields"""


KIND_OF = {
    "vae": "f8d4",
    "sdvae-ema": "f8d4",
    "sdvae-mse": "f8d4",
    "sdxl-vae": "f8d4",
    "sd3.5": "f8d16",
    "flux": "f8d16",
    "flux2": "flux2",
    "qwen-vae": "qwen",
    "vavae": "f16d32",
    "e2e-vavae": "f16d32",
    "e2e-flux": "f8d16",
    "e2e-sd3.5": "f8d16",
    "e2e-qwen-vae": "qwen",
    "e2e-sdvae-mse": "f8d4",
    "e2e-invae": "f16d32",
}
"""registered tokenizer -> kind"""
CHANNELS = {"f8d4": 4, "f8d16": 16, "f16d32": 32, "flux2": 32, "qwen": 16, "wan": 16}
"""kind -> channels before packing"""


def full_vae(kind: str) -> nn.Module:
    """The autoencoder at its published size, on the meta device."""
    name, fields = FULL[kind]
    with torch.device("meta"):
        return _class(name)(**fields)


def tiny_vae(kind: str, seed: int = 0, **fields: Any) -> nn.Module:
    """The same blocks in few channels, with random weights; `fields` replace those of its class.

    FLUX.2's batch statistics are random too: at their initial 0 and 1 they would do nothing.
    """
    name, full = FULL[kind]
    small = {**full, **_small(full), **fields}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _class(name)(**small).eval()
        if kind == "flux2":
            network.bn.running_mean.normal_()
            network.bn.running_var.uniform_(0.5, 2)
    return network


def write_vae(folder: Path, kind: str, seed: int = 0, **fields: Any) -> Path:
    """`tiny_vae` in `folder` as `save_pretrained` writes it: config.json and safetensors."""
    tiny_vae(kind, seed, **fields).save_pretrained(folder, safe_serialization=True)
    return folder


@cache
def tiny_folder(tokenizer: str) -> Path:
    """Tiny files for a registered tokenizer, with the fields that its own have; gone at exit."""
    kind = KIND_OF[tokenizer]
    return write_vae(Path(_scratch().name) / tokenizer, kind, **published_fields(tokenizer))


def published_fields(tokenizer: str) -> dict[str, Any]:
    """Normalisation as the config.json of a registered tokenizer states it; vectors are made up."""
    if tokenizer in ("sd3.5", "flux"):
        shift, scale = {"sd3.5": (0.0609, 1.5305), "flux": (0.1159, 0.3611)}[tokenizer]
        return {"shift_factor": shift, "scaling_factor": scale}
    if tokenizer == "vavae" or tokenizer.startswith("e2e-"):
        count = CHANNELS[KIND_OF[tokenizer]]
        mean = torch.linspace(-1, 1, count).tolist()
        return {"latents_mean": mean, "latents_std": torch.linspace(0.5, 3, count).tolist()}
    return {}


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tiny-vae-")


def moments(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posterior, [B, C, h, w], from the network's own layers and
    none of diffusers' `encode`; images in [0, 1].
    """
    inputs = 2 * images - 1
    video = isinstance(network.encoder.conv_in, nn.Conv3d)
    hidden = network.encoder(inputs[:, :, None] if video else inputs)
    if network.quant_conv is not None:
        hidden = network.quant_conv(hidden)
    hidden = hidden[:, :, 0] if video else hidden
    mean, log_variance = hidden.chunk(2, 1)
    return mean, log_variance.clamp(-30, 20).mul(0.5).exp()


def _small(full: dict[str, Any]) -> dict[str, Any]:
    if "base_dim" in full:
        return {"base_dim": 4, "num_res_blocks": 1}
    channels = [8] * len(full["block_out_channels"])
    return {"block_out_channels": channels, "layers_per_block": 1, "norm_num_groups": 4}


def _class(name: str) -> type:
    return getattr(pytest.importorskip("diffusers"), name)
