"""Masked autoencoders, with nothing masked and the tokens in order.

    mae-vit-b        affine-free final norm

He et al. 2021 (arXiv 2111.06377). The network sorts patches by a noise and keeps the first. Here it
keeps all, and the noise ascends, in float32: in bfloat16 only 256 whole numbers are apart.
The huge model has patches of 14 px, so it is fed 224 px to give 16 x 16 tokens like the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanogen.encoders.huggingface import (
    HuggingFaceEncoder,
    Reading,
    full_name,
    load_transformer,
    side_of,
    take_norm,
)
from nanogen.encoders.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from nanogen.encoders.vision import EncoderRow, Options
from nanogen.registry import register

UNUSED = ("decoder.",)
NEEDS = "pip install 'nanogen[latents]', and the model"


class MaeEncoder(HuggingFaceEncoder):
    """Hands the network the noise that leaves every patch where it is."""

    def run(self, fed: Tensor, hidden: bool) -> Any:
        order = torch.arange(self.grid**2, dtype=torch.float32, device=fed.device)
        return self.network(
            pixel_values=fed,
            noise=order.expand(len(fed), -1),
            interpolate_pos_encoding=True,
            output_hidden_states=hidden,
        )


def _row(size: str, words: str, width: int, patch: int, parameters: int) -> EncoderRow:
    return EncoderRow(
        name=f"mae-vit-{size}",
        hub=f"facebook/vit-mae-{words}",
        # The authors' own; the copies on the hub say Apache-2.0.
        licence="CC-BY-NC-4.0",
        width=width,
        patch=patch,
        side=16 * patch,
        parameters=parameters,
    )


@register("encoder", "mae", summary="masked autoencoder", needs=NEEDS)
class Mae:
    rows = (
        _row("b", "base", 768, 16, 85_798_656),
        _row("l", "large", 1024, 16, 303_301_632),
        _row("h", "huge", 1280, 14, 630_764_800),
    )
    options: tuple[str, ...] = ()

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> MaeEncoder:
        side = side_of(row, image_size)
        network = load_transformer(row, "ViTMAEModel", path, UNUSED)
        network.config.mask_ratio = 0.0
        norm = take_norm(network, "layernorm", affine=False)
        preprocess = Preprocess(side, IMAGENET_MEAN, IMAGENET_STD, "bicubic")
        name = full_name(row, options)
        return MaeEncoder(name, network, norm, preprocess, Reading(prefix=1))
