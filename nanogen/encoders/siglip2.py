"""The image tower of SigLIP 2, for images of 256 px.

    siglip2-vit-b                        the final norm's affine kept
    siglip2-vit-b[strip]                 the affine removed, as the first RAE does
    siglip2-vit-b[imagenet]              ImageNet's constants in place of 0.5, as RAE v2 does
    siglip2mls-vit-l[layers=5.11.17.23]  mean over normed blocks, plus the mean token of the last

Tschannen et al. 2025 (arXiv 2502.14786). The released configs ask for a norm without affine, but
only flip a flag of a norm that is already made, which changes nothing; so the default keeps it.
Which of the two a published file of statistics was made with shows in the statistics: without
affine, variance plus squared mean is one on average over channels, at every place.
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
from nanogen.encoders.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from nanogen.encoders.vision import EncoderRow, Options
from nanogen.registry import register

UNUSED = ("text_model.", "logit_scale", "logit_bias")
"""the tower of texts, and what compares it with that of images"""
NEEDS = "pip install 'nanogen[latents]', and the model"

SIZES = {
    "b": ("base", 768, 85_843_200),
    "l": ("large", 1024, 303_361_024),
    "so400m": ("so400m", 1152, 412_649_712),
    "g": ("giant-opt", 1536, 1_134_838_272),
}
"""size -> name on the hub, width, parameters without the head that pools"""
LAYERS = {
    "b": (2, 5, 8, 11),
    "l": (5, 11, 17, 23),
    "so400m": (5, 12, 19, 26),
    "g": (10, 20, 30, 39),
}
"""size -> the blocks that RAE v2 averages"""


def _rows(family: str) -> tuple[EncoderRow, ...]:
    return tuple(
        EncoderRow(
            name=f"{family}-vit-{size}",
            hub=f"google/siglip2-{words}-patch16-256",
            licence="Apache-2.0",
            width=width,
            patch=16,
            side=256,
            parameters=parameters,
        )
        for size, (words, width, parameters) in SIZES.items()
    )


@register("encoder", "siglip2", summary="SigLIP 2: contrastive with text", needs=NEEDS)
class Siglip2:
    rows = _rows("siglip2")
    options = ("imagenet", "strip")

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> HuggingFaceEncoder:
        return _open(row, options, image_size, path, several=False)


@register("encoder", "siglip2mls", summary="SigLIP 2: several blocks and a mean", needs=NEEDS)
class Siglip2Layers:
    rows = _rows("siglip2mls")
    options = ("imagenet", "layers", "strip")

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> HuggingFaceEncoder:
        return _open(row, options, image_size, path, several=True)


def _open(
    row: EncoderRow, options: Options, image_size: int, path: str, *, several: bool
) -> HuggingFaceEncoder:
    strip, imagenet = flags(row, options, "strip", "imagenet")
    side = side_of(row, image_size, fixed=True)
    network = load_transformer(row, "SiglipVisionModel", path, UNUSED)
    # Its pooled vector is no feature, and would be made of tokens that were not normed.
    network.use_head = False
    del network.head
    layers: tuple[int, ...] = ()
    if several:
        published = LAYERS[row.name.rpartition("-")[2]]
        layers = layers_of(row, options, published, network.config.num_hidden_layers)
    norm = take_norm(network, "post_layernorm", affine=not strip)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else (HALF, HALF)
    preprocess = Preprocess(side, mean, std, "bicubic")
    reading = Reading(prefix=0, class_token=False, layers=layers, pooled=several)
    return HuggingFaceEncoder(full_name(row, options), network, norm, preprocess, reading)
