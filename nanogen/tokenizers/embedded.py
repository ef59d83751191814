"""The latent spaces of the embedded data: small tokenizers that come with the package.

    tokenizer=animals-vae     4 channels, 4 px a latent: 7 x 7 for `animals`, 10 x 10 for `scenes`
    tokenizer=animals-rae     64 channels of `animals-vit`: 7 x 7, and 8 x 8 for `scenes`

Each is trained twice, for images of 28 px and of 40 px, by `nanogen tokenizer train animals/vae`
and its like; `scripts/ship_tokenizers.py` puts what they export here. They know nothing of other
images.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import ClassVar

import chz

from nanogen.errors import ConfigError, DataError
from nanogen.registry import register
from nanogen.tokenizers.base import TokenizerFacts
from nanogen.tokenizers.rae import Rae, RaeConfig
from nanogen.tokenizers.vae import Vae, VaeConfig
from nanogen.types import LatentSpec

SIZES = {28: "animals", 40: "scenes"}
"""pixels a side of an image -> the data that its tokenizer was trained on"""
MOST_TOKENS = 64
HERE = "comes with it"


def folder_of(kind: str, image_size: int) -> Path:
    """Where the tokenizer `kind`, vae or rae, for images of a size lies; ConfigError for others."""
    if image_size not in SIZES:
        raise ConfigError(
            f"tokenizer=animals-{kind} is for images of 28 px (animals) and 40 px (scenes), not "
            f"{image_size}; train one of your own with nanogen tokenizer train"
        )
    folder = Path(str(files("nanogen"))) / "assets" / "tokenizers" / f"{SIZES[image_size]}-{kind}"
    if not folder.is_dir():
        raise DataError(f"the embedded folder {folder.name} is missing; install nanogen again")
    return folder


@register(
    "tokenizer",
    "animals-vae",
    summary="small VAE of the embedded data, in the package",
    needs="pip install 'nanogen[latents]'; images of 28 or 40 px",
)
@chz.chz
class AnimalsVae:
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        licence="Apache-2.0", parameters=409_863, status=HERE
    )

    patch: int | None = chz.field(
        default=None, doc="latents a side of a token; None: the least that gives at most 64 tokens"
    )

    def space(self, image_size: int) -> LatentSpec:
        """The latent space, without opening the files; ConfigError for other sizes of images."""
        folder_of("vae", image_size)
        side = image_size // 4
        fits = [p for p in range(1, side + 1) if side % p == 0 and (side // p) ** 2 <= MOST_TOKENS]
        return LatentSpec(4, side, side, self.patch or fits[0])

    def build(self, image_size: int) -> Vae:
        folder = folder_of("vae", image_size)
        patch = self.space(image_size).patch
        return VaeConfig(model=str(folder), patch=patch).build(image_size)


@register(
    "tokenizer",
    "animals-rae",
    summary="RAE on animals-vit, in the package",
    needs="images of 28 or 40 px",
)
@chz.chz
class AnimalsRae:
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        # With the encoder; for 40 px 4,059 more.
        licence="Apache-2.0",
        parameters=554_640,
        status=HERE,
    )

    def build(self, image_size: int) -> Rae:
        return RaeConfig(decoder=str(folder_of("rae", image_size))).build(image_size)
