"""DINOv2, with four registers unless told otherwise.

    dinov2-vit-b                     affine-free final norm: what RAE, REG and PixelGen use
    dinov2-vit-b[woreg,norm]         no registers, the norm's affine kept: what REPA-E aligns to
    dinov2mls-vit-l[layers=11.23]    mean over the normed tokens of several blocks (RAE v2)

Oquab et al. 2023 (arXiv 2304.07193), Darcet et al. 2023 (arXiv 2309.16588). The learned positions,
37 x 37, are resampled with antialiased bicubic. transformers does so for the models with registers;
its class for those without leaves the antialiasing out, so there they are overwritten first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nanogen.encoders.huggingface import (
    HuggingFaceEncoder,
    Reading,
    flags,
    full_name,
    layers_of,
    load_transformer,
    side_of,
    take_norm,
)
from nanogen.encoders.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from nanogen.encoders.vision import EncoderRow, Options
from nanogen.registry import register

EPSILON = 1e-5
"""of a final norm without affine, as it was published; the one with affine has 1e-6"""
NEEDS = "pip install 'nanogen[latents]', and the model"

SIZES = {
    "s": ("small", 384, 22_057_728),
    "b": ("base", 768, 86_582_784),
    "l": ("large", 1024, 304_371_712),
    "g": ("giant", 1536, 1_136_485_376),
}
"""size -> name on the hub, width, parameters with registers"""
LAYERS = {"s": (2, 5, 8, 11), "b": (2, 5, 8, 11), "l": (5, 11, 17, 23), "g": (10, 20, 30, 39)}
"""size -> the blocks that RAE v2 averages"""


def _rows(family: str) -> tuple[EncoderRow, ...]:
    return tuple(
        EncoderRow(
            name=f"{family}-vit-{size}",
            hub=f"facebook/dinov2-with-registers-{words}",
            licence="Apache-2.0",
            width=width,
            patch=14,
            side=224,
            parameters=parameters,
        )
        for size, (words, width, parameters) in SIZES.items()
    )


@register("encoder", "dinov2", summary="DINOv2: self-supervised, patch tokens", needs=NEEDS)
class Dinov2:
    rows = _rows("dinov2")
    options = ("norm", "woreg")

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> HuggingFaceEncoder:
        return _open(row, options, image_size, path)


@register("encoder", "dinov2mls", summary="DINOv2: mean over several blocks", needs=NEEDS)
class Dinov2Layers:
    rows = _rows("dinov2mls")
    options = ("layers", "norm", "woreg")

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> HuggingFaceEncoder:
        return _open(row, options, image_size, path, LAYERS[row.name[-1]])


def _open(
    row: EncoderRow,
    options: Options,
    image_size: int,
    path: str,
    layers: tuple[int, ...] = (),
) -> HuggingFaceEncoder:
    """With `layers`, the mean over them unless the option says others."""
    affine, bare = flags(row, options, "norm", "woreg")
    side = side_of(row, image_size)
    if bare:
        row = replace(row, hub=row.hub.replace("-with-registers", ""))
    network = load_transformer(row, "Dinov2Model" if bare else "Dinov2WithRegistersModel", path)
    if bare:
        resample_positions(network, side // row.patch)
    if layers:
        layers = layers_of(row, options, layers, network.config.num_hidden_layers)
    registers = 0 if bare else network.config.num_register_tokens
    norm = take_norm(network, "layernorm", affine=affine, epsilon=EPSILON)
    preprocess = Preprocess(side, IMAGENET_MEAN, IMAGENET_STD, "bicubic")
    reading = Reading(prefix=1 + registers, layers=layers)
    return HuggingFaceEncoder(full_name(row, options), network, norm, preprocess, reading)


@torch.no_grad()
def resample_positions(network: Any, grid: int) -> None:
    """Overwrite the learned positions of a network with those for `grid` x `grid` patches."""
    table: Tensor = network.embeddings.position_embeddings
    first, patches = table[:, :1], table[:, 1:]
    old = round(patches.shape[1] ** 0.5)
    if old == grid:
        return
    square = patches.unflatten(1, (old, old)).permute(0, 3, 1, 2)
    square = functional.interpolate(
        square, (grid, grid), mode="bicubic", align_corners=False, antialias=True
    )
    resampled = torch.cat([first, square.flatten(2).transpose(1, 2)], dim=1)
    network.embeddings.position_embeddings = torch.nn.Parameter(resampled)
