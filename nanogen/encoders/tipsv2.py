"""TIPSv2: contrastive with text, with patches that know their place.

    tipsv2-vit-b14     affine-free final norm; the two class tokens dropped, `cls` is the first

Images go in as they are, in [0, 1]. transformers resamples the positions with antialiased bilinear,
as the authors do. It has the model since 5.16.
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
from nanogen.encoders.preprocess import Preprocess
from nanogen.encoders.vision import EncoderRow, Options
from nanogen.registry import register

EPSILON = 1e-5
UNUSED = ("text_encoder.", "text_model.", "temperature")


def _row(size: str, model: str, width: int, parameters: int) -> EncoderRow:
    return EncoderRow(
        name=f"tipsv2-vit-{size}",
        hub=f"google/tipsv2-{model}",
        licence="Apache-2.0",
        width=width,
        patch=14,
        side=224,
        parameters=parameters,
    )


@register(
    "encoder",
    "tipsv2",
    summary="TIPSv2: contrastive with text, spatially aware",
    needs="pip install 'nanogen[latents]' with transformers 5.16, and the model",
)
class TipsV2:
    rows = (
        _row("b14", "b14", 768, 86_315_520),
        _row("l14", "l14", 1024, 304_015_360),
        _row("so14", "so400m14", 1152, 413_392_752),
        _row("g14", "g14", 1536, 1_135_950_848),
    )
    options: tuple[str, ...] = ()

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> HuggingFaceEncoder:
        side = side_of(row, image_size)
        network = load_transformer(row, "Tipsv2VisionModel", path, UNUSED)
        norm = take_norm(network, "layernorm", affine=False, epsilon=EPSILON)
        preprocess = Preprocess(side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic")
        reading = Reading(prefix=1 + network.config.num_register_tokens)
        return HuggingFaceEncoder(full_name(row, options), network, norm, preprocess, reading)
