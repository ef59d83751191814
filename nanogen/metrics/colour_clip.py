"""Which of ten colours an object has, as GenEval reads it: of the likeliest caption for CLIP.

    reader = ColourClip(clip, Cut("grey", crop=True))
    reader.colour(image, instance)          # uint8 [3, H, W] and a detection with a mask -> "red"

The object is cut out along its mask onto plain grey, cropped to its box, and compared with three
captions of each colour (Ghosh et al. 2023, section 3.2 and the published code). CLIP is ViT-L/14 of
OpenAI, as `clip-score` opens it. Objects are looked at one by one: neither batches nor what else is
in an image change a colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nanogen.encoders.contrastive import Contrastive, unit
from nanogen.metrics.geneval_rules import Box
from nanogen.metrics.instances import Instance

COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
)
CAPTIONS = (
    "a photo of a {colour} {name}",
    "a photo of a {colour}-colored {name}",
    "a photo of a {colour} object",
)
GREY = 0x99
"""of all three channels, around an object"""


@dataclass(frozen=True)
class Cut:
    """How an object is cut out of its image."""

    background: Literal["grey", "original"] = "grey"
    """what stands around it"""
    crop: bool = True
    """to its box; otherwise the whole image is shown"""


class ColourClip:
    """Remembers the directions of the colours of each class."""

    def __init__(self, clip: Contrastive, cut: Cut) -> None:
        self.clip = clip
        self.cut = cut
        self._directions: dict[str, Tensor] = {}

    def colour(self, image: Tensor, instance: Instance) -> str:
        """The colour of an object in its image, uint8 [3, H, W]."""
        shown = cut_out(image, instance.mask, instance.box, self.cut)
        likeness = self.clip.images(shown[None]) @ self.directions(instance.name).T
        return COLOURS[int(likeness.argmax())]

    def directions(self, name: str) -> Tensor:
        """float32 [10, D], of length one: the mean over captions of each colour of a class."""
        if name not in self._directions:
            captions = [c.format(colour=one, name=name) for one in COLOURS for c in CAPTIONS]
            texts = self.clip.texts(self.clip.tokens(captions))
            means = texts.unflatten(0, (len(COLOURS), len(CAPTIONS))).mean(1)
            self._directions[name] = unit(means)
        return self._directions[name]


def cut_out(image: Tensor, mask: Tensor, box: Box, cut: Cut) -> Tensor:
    """What is shown of an object: uint8 [3, h, w] of an image uint8 [3, H, W], and its mask bool
    [H, W].

    A crop ends before the right and lower ends of the box. A box that ends on its last pixel loses
    that pixel, as in DiffusionBench, unless nothing would be left.
    """
    if cut.crop:
        xmin, ymin, xmax, ymax = (int(end) for end in box)
        rows, columns = slice(ymin, max(ymax, ymin + 1)), slice(xmin, max(xmax, xmin + 1))
        image, mask = image[:, rows, columns], mask[rows, columns]
    if cut.background == "original":
        return image
    return torch.where(mask.to(image.device), image, torch.full_like(image, GREY))
