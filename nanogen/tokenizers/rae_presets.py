"""The representation autoencoders of the paper: six encoders, each with the XL decoder and the
statistics that diffusion-bench published.

    tokenizer=rae-dinov2-vit-b
    tokenizer=rae-dinov3-vit-b16 tokenizer.encoder_path=/models/dinov3
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar

import chz

from nanogen.encoders.vision import find
from nanogen.registry import register
from nanogen.tokenizers.base import TokenizerFacts
from nanogen.tokenizers.rae import NEEDS, XL, RaeFields
from nanogen.tokenizers.rae_files import REPOSITORY

GRID = 16
"""tokens a side of an image of 256 px"""
PER_CHANNEL = 1152
"""parameters of the decoder's first layer for each channel of the features"""

T = TypeVar("T", bound=RaeFields)


def preset(summary: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: register the published autoencoder of the encoder that the class names."""

    def add(target: type[T]) -> type[T]:
        needs = NEEDS
        if target.facts.status == "gated":
            page = f"https://huggingface.co/{find(target.published).hub}"
            needs += f" (accept the encoder's terms at {page})"
        name, licence = f"rae-{target.published}", target.facts.licence
        return register("tokenizer", name, summary=summary, licence=licence, needs=needs)(target)

    return add


def _facts(encoder: str) -> TokenizerFacts:
    row = find(encoder)
    return TokenizerFacts(
        hub=REPOSITORY,
        licence=f"decoder: unknown; encoder: {row.licence}",
        latent=(row.width, GRID, GRID),
        parameters=row.parameters + XL + PER_CHANNEL * (row.width - 768),
        status="gated" if row.gated else "ungated",
    )


@preset("RAE on DINOv2-B")
@chz.chz
class RaeDinov2(RaeFields):
    published: ClassVar[str] = "dinov2-vit-b"
    facts: ClassVar[TokenizerFacts] = _facts(published)


@preset("RAE on DINOv3-B")
@chz.chz
class RaeDinov3(RaeFields):
    published: ClassVar[str] = "dinov3-vit-b16"
    facts: ClassVar[TokenizerFacts] = _facts(published)


@preset("RAE on SigLIP2-B")
@chz.chz
class RaeSiglip2(RaeFields):
    published: ClassVar[str] = "siglip2-vit-b"
    facts: ClassVar[TokenizerFacts] = _facts(published)


@preset("RAE on PE-L")
@chz.chz
class RaePe(RaeFields):
    published: ClassVar[str] = "pe-vit-l"
    facts: ClassVar[TokenizerFacts] = _facts(published)


@preset("RAE on LangPE-L")
@chz.chz
class RaeLangPe(RaeFields):
    published: ClassVar[str] = "langpe-vit-l"
    facts: ClassVar[TokenizerFacts] = _facts(published)


@preset("RAE on SpatialPE-L")
@chz.chz
class RaeSpatialPe(RaeFields):
    published: ClassVar[str] = "spatialpe-vit-l"
    facts: ClassVar[TokenizerFacts] = _facts(published)
