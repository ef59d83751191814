"""The data set `animals`: silhouettes of ten animals, black on white, with class labels.

source = Animals().build()
source.read("train", index=0, draw=0)      # Sample(image=uint8 [3, 28, 28], label=0)
"""

from __future__ import annotations

import chz
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanogen.data import silhouettes
from nanogen.data.base import Description, Sample
from nanogen.data.draws import generator
from nanogen.errors import ConfigError
from nanogen.registry import register


class AnimalsSource:
    """The opened data set. With `flip`, train images are mirrored at random; others never are."""

    classes = silhouettes.ANIMALS
    captioned = False

    def __init__(self, size: int, flip: bool) -> None:
        self.size = size
        self.flip = flip
        self.variants = 2 if flip else 1
        self.fingerprint = f"animals-1/{silhouettes.fingerprint()[:16]}/{size}/{'flip' * flip}"

    def count(self, split: str) -> int:
        """Number of silhouettes of a split."""
        return len(silhouettes.load(split).labels)

    def read(self, split: str, index: int, draw: int) -> Sample:
        """Silhouette `index` of a split as uint8 [3, size, size]: 0 is ink, 255 is ground."""
        image = self._image(split, index)
        if split == "train" and self.variant(index, draw):
            image = image.flip(-1)
        return Sample(image, label=int(silhouettes.load(split).labels[index]))

    def variant(self, index: int, draw: int) -> int:
        """1 where the draw shows the mirror image."""
        return int(generator("train", index, draw).integers(2)) if self.flip else 0

    def views(self, index: int) -> tuple[Tensor, ...]:
        """As it is, and with `flip` its mirror image."""
        image = self._image("train", index)
        return (image, image.flip(-1))[: self.variants]

    def describe(self, index: int) -> Description:
        return Description(int(silhouettes.load("train").labels[index]))

    def _image(self, split: str, index: int) -> Tensor:
        ink = silhouettes.load(split).opacity[index]
        if ink.shape[0] != self.size:
            # Pillow widens its filter when it shrinks, so that nothing aliases.
            shape = (self.size, self.size)
            ink = np.asarray(Image.fromarray(ink).resize(shape, Image.Resampling.BICUBIC))
        return torch.from_numpy(255 - ink).expand(3, -1, -1)

    def prompts(self) -> tuple[str, ...]:
        return ()


@register(
    "data", "animals", summary="9,716 silhouettes of ten animals, in the package", licence="MIT"
)
@chz.chz
class Animals:
    """Class-conditional data that need no download."""

    size: int = chz.field(default=28, doc="pixels of a side, 28 to 64")
    flip: bool = chz.field(default=True, doc="mirror train images at random")

    def build(self) -> AnimalsSource:
        if not 28 <= self.size <= 64:
            raise ConfigError(f"animals: size={self.size} is out of range; choose 28 to 64")
        return AnimalsSource(self.size, self.flip)
