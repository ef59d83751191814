"""DINOv3: rotary positions, four registers.

    dinov3-vit-b16                        affine-free final norm, as RAE uses it
    dinov3-vit-b16[norm]                  the norm's affine kept
    dinov3mls-vit-l16[layers=5.11.17.23]  mean over normed blocks, plus the mean token of the last

Siméoni et al. 2025 (arXiv 2508.10104). In train mode the network rescales its positions at random,
so that features would be random too; encoders here are in eval mode for ever. The repositories are
gated.
"""

from __future__ import annotations

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
NEEDS = "pip install 'nanogen[latents]', and the model, after accepting its terms"

SIZES = {
    "s16": (384, 21_596_160),
    "s16plus": (384, 28_692_480),
    "b16": (768, 85_659_648),
    "l16": (1024, 303_128_576),
    "h16plus": (1280, 840_591_360),
    "7b16": (4096, 6_716_030_976),
}
"""size -> width, parameters"""
LAYERS = {
    "s16": (2, 5, 8, 11),
    "s16plus": (2, 5, 8, 11),
    "b16": (2, 5, 8, 11),
    "l16": (5, 11, 17, 23),
    "h16plus": (8, 16, 24, 31),
    "7b16": (),
}
"""size -> the blocks that RAE v2 averages; none were published for the largest"""


def _rows(family: str) -> tuple[EncoderRow, ...]:
    return tuple(
        EncoderRow(
            name=f"{family}-vit-{size}",
            hub=f"facebook/dinov3-vit{size}-pretrain-lvd1689m",
            licence="DINOv3",
            width=width,
            patch=16,
            side=256,
            parameters=parameters,
            gated=True,
        )
        for size, (width, parameters) in SIZES.items()
    )


@register("encoder", "dinov3", summary="DINOv3: self-supervised, patch tokens", needs=NEEDS)
class Dinov3:
    rows = _rows("dinov3")
    options = ("norm",)

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> HuggingFaceEncoder:
        return _open(row, options, image_size, path, several=False)


@register("encoder", "dinov3mls", summary="DINOv3: several blocks and a mean", needs=NEEDS)
class Dinov3Layers:
    rows = _rows("dinov3mls")
    options = ("layers", "norm")

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> HuggingFaceEncoder:
        return _open(row, options, image_size, path, several=True)


def _open(
    row: EncoderRow, options: Options, image_size: int, path: str, *, several: bool
) -> HuggingFaceEncoder:
    (affine,) = flags(row, options, "norm")
    side = side_of(row, image_size)
    network = load_transformer(row, "DINOv3ViTModel", path)
    config = network.config
    layers: tuple[int, ...] = ()
    if several:
        published = LAYERS[row.name.rpartition("-")[2]]
        layers = layers_of(row, options, published, config.num_hidden_layers)
    norm = take_norm(network, "norm", affine=affine, epsilon=EPSILON)
    preprocess = Preprocess(
        side, IMAGENET_MEAN, IMAGENET_STD, "bilinear", antialias=True, resize_first=True
    )
    reading = Reading(prefix=1 + config.num_register_tokens, layers=layers, pooled=several)
    return HuggingFaceEncoder(full_name(row, options), network, norm, preprocess, reading)
