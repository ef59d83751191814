"""Web-SSL: DINOv2's method on two billion images of the web, at up to seven billion parameters.

    webssl-vit-dino1b_full2b_224     facebook/webssl-dino1b-full2b-224, with underscores

Fan et al. 2025 (arXiv 2504.01017). The final norm keeps its affine, and the positions are resampled
as transformers does, without antialiasing: both as published.
"""

from __future__ import annotations

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

WIDTHS = {"300m": 1024, "1b": 1536, "2b": 2688, "3b": 3072, "5b": 3584, "7b": 4096}
PARAMETERS = {
    "300m": 303_654_144,
    "1b": 1_134_769_664,
    "2b": 2_084_234_880,
    "3b": 2_948_314_112,
    "5b": 4_938_335_232,
    "7b": 6_450_166_784,
}
"""at a side of 224 px; larger sides have more positions"""
MODELS = (
    "dino300m_full2b_224",
    "dino1b_full2b_224",
    "dino2b_full2b_224",
    "dino2b_light2b_224",
    "dino2b_heavy2b_224",
    "dino3b_full2b_224",
    "dino3b_light2b_224",
    "dino3b_heavy2b_224",
    "dino5b_full2b_224",
    "dino7b_full8b_224",
)


def _row(model: str) -> EncoderRow:
    size = model.partition("_")[0].removeprefix("dino")
    return EncoderRow(
        name=f"webssl-vit-{model}",
        hub=f"facebook/webssl-{model.replace('_', '-')}",
        licence="CC-BY-NC-4.0",
        width=WIDTHS[size],
        patch=14,
        side=224,
        parameters=PARAMETERS[size],
    )


@register(
    "encoder",
    "webssl",
    summary="Web-SSL: DINOv2's method on images of the web",
    needs="pip install 'nanogen[latents]', and the model",
)
class WebSsl:
    rows = tuple(map(_row, MODELS))
    options: tuple[str, ...] = ()

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> HuggingFaceEncoder:
        side = side_of(row, image_size)
        network = load_transformer(row, "Dinov2Model", path)
        norm = take_norm(network, "layernorm", affine=True)
        preprocess = Preprocess(side, IMAGENET_MEAN, IMAGENET_STD, "bicubic")
        name = full_name(row, options)
        return HuggingFaceEncoder(name, network, norm, preprocess, Reading(prefix=1))
