"""I-JEPA: features of hidden regions predicted from seen ones; no class token.

    jepa-vit-h       the final norm's affine kept

Assran et al. 2023 (arXiv 2301.08243).
"""

from __future__ import annotations

from typing import Any

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

UNUSED = ("pooler.", "embeddings.mask_token")


class IJepaEncoder(HuggingFaceEncoder):
    """Asks for positions of other sizes than 224 px where they are needed."""

    def run(self, fed: Tensor, hidden: bool) -> Any:
        return self.network(
            pixel_values=fed, interpolate_pos_encoding=True, output_hidden_states=hidden
        )


@register(
    "encoder",
    "jepa",
    summary="I-JEPA: predicts features of hidden regions",
    needs="pip install 'nanogen[latents]', and the model",
)
class IJepa:
    rows = (
        EncoderRow(
            name="jepa-vit-h",
            hub="facebook/ijepa_vith14_1k",
            licence="CC-BY-NC-4.0",
            width=1280,
            patch=14,
            side=224,
            parameters=630_762_240,
        ),
    )
    options: tuple[str, ...] = ()

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> IJepaEncoder:
        side = side_of(row, image_size)
        network = load_transformer(row, "IJepaModel", path, UNUSED)
        norm = take_norm(network, "layernorm", affine=True)
        preprocess = Preprocess(side, IMAGENET_MEAN, IMAGENET_STD, "bicubic")
        reading = Reading(prefix=0, class_token=False)
        return IJepaEncoder(full_name(row, options), network, norm, preprocess, reading)
