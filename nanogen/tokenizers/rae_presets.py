"""The representation autoencoders of the paper: six encoders, each with the XL decoder and the
statistics that diffusion-bench published.

    tokenizer=rae-dinov2-vit-b
    tokenizer=rae-dinov3-vit-b16 tokenizer.encoder_path=/models/dinov3
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar

import chz

from nanogen.encoders.vision import EncoderRow, find
from nanogen.registry import register
from nanogen.tokenizers.base import TokenizerFacts
from nanogen.tokenizers.rae import NEEDS, XL, RaeFields
from nanogen.tokenizers.rae_files import REPOSITORY

GRID = 16
"""tokens a side of an image of 256 px"""
PER_CHANNEL = 1152
"""parameters of the decoder's first layer for each channel of the features"""


T = TypeVar("T", bound=RaeFields)


def preset(encoder: str, shown: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: register the published autoencoder of an encoder."""
    return register(
        "tokenizer", f"rae-{encoder}", summary=f"RAE on {shown}", licence="unknown", needs=NEEDS
    )


def _facts(encoder: str) -> TokenizerFacts:
    row: EncoderRow = find(encoder)
    decoder = XL + PER_CHANNEL * (row.width - 768)
    return TokenizerFacts(
        hub=REPOSITORY,
        licence=f"decoder: unknown; encoder: {row.licence}",
        latent=(row.width, GRID, GRID),
        parameters=row.parameters + decoder,
        status="gated" if row.gated else "ungated",
    )


@register(
    "tokenizer", "rae-dinov2-vit-b", summary="RAE on DINOv2-B", licence="unknown", needs=NEEDS
)
@chz.chz
class RaeDinov2(RaeFields):
    published: ClassVar[str] = "dinov2-vit-b"
    facts: ClassVar[TokenizerFacts] = _facts("dinov2-vit-b")


@register(
    "tokenizer", "rae-dinov3-vit-b16", summary="RAE on DINOv3-B", licence="unknown", needs=NEEDS
)
@chz.chz
class RaeDinov3(RaeFields):
    published: ClassVar[str] = "dinov3-vit-b16"
    facts: ClassVar[TokenizerFacts] = _facts("dinov3-vit-b16")


@register(
    "tokenizer", "rae-siglip2-vit-b", summary="RAE on SigLIP2-B", licence="unknown", needs=NEEDS
)
@chz.chz
class RaeSiglip2(RaeFields):
    published: ClassVar[str] = "siglip2-vit-b"
    facts: ClassVar[TokenizerFacts] = _facts("siglip2-vit-b")


@preset("pe-vit-l", "PE-L")
@chz.chz
class RaePe(RaeFields):
    published: ClassVar[str] = "pe-vit-l"
    facts: ClassVar[TokenizerFacts] = _facts("pe-vit-l")


@register(
    "tokenizer", "rae-langpe-vit-l", summary="RAE on LangPE-L", licence="unknown", needs=NEEDS
)
@chz.chz
class RaeLangPe(RaeFields):
    published: ClassVar[str] = "langpe-vit-l"
    facts: ClassVar[TokenizerFacts] = _facts("langpe-vit-l")


@register(
    "tokenizer", "rae-spatialpe-vit-l", summary="RAE on SpatialPE-L", licence="unknown", needs=NEEDS
)
@chz.chz
class RaeSpatialPe(RaeFields):
    published: ClassVar[str] = "spatialpe-vit-l"
    facts: ClassVar[TokenizerFacts] = _facts("spatialpe-vit-l")
