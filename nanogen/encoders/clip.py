"""The image tower of OpenAI's CLIP, for images of 256 px.

    clip-vit-l       tokens of the last block, before the final norm

Radford et al. 2021 (arXiv 2103.00020). The final norm is for the class token only, so patches are
read before it (as RAE v2 does), and so is `cls`.
"""

from __future__ import annotations

from torch import nn

from nanogen.encoders.huggingface import (
    HuggingFaceEncoder,
    Reading,
    full_name,
    load_transformer,
    side_of,
    take_norm,
)
from nanogen.encoders.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from nanogen.encoders.vision import EncoderRow, Options
from nanogen.registry import register

UNUSED = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    # Numbers 0, 1, 2, ... that old files hold beside the weights.
    "vision_model.embeddings.position_ids",
    "embeddings.position_ids",
)


@register(
    "encoder",
    "clip",
    summary="CLIP: contrastive with text",
    needs="pip install 'nanogen[latents]', and the model",
)
class Clip:
    rows = (
        EncoderRow(
            name="clip-vit-l",
            hub="openai/clip-vit-large-patch14",
            licence="MIT",
            width=1024,
            patch=14,
            side=224,
            parameters=303_179_776,
        ),
    )
    options: tuple[str, ...] = ()

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> HuggingFaceEncoder:
        side = side_of(row, image_size, fixed=True)
        network = load_transformer(row, "CLIPVisionModel", path, UNUSED)
        take_norm(network, "post_layernorm", affine=True)
        preprocess = Preprocess(side, CLIP_MEAN, CLIP_STD, "bicubic", resize_first=True)
        name = full_name(row, options)
        return HuggingFaceEncoder(name, network, nn.Identity(), preprocess, Reading(prefix=1))
