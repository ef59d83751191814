"""What is done to images before a vision encoder sees them.

    fed = Preprocess(side=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, mode="bicubic")(images)

Every family was published with its own rule, and features change with it: with the filter, with
whether the filter widens where it shrinks (antialias), and with the constants.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

Colour: TypeAlias = tuple[float, float, float]

IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)
CLIP_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Colour = (0.26862954, 0.26130258, 0.27577711)
HALF: Colour = (0.5, 0.5, 0.5)
"""mean and standard deviation of those who only map [0, 1] to [-1, 1]"""


class Preprocess(nn.Module):
    """Resizes to `side` px and subtracts `mean`, divides by `std`; differentiable.

    The order makes no difference but in rounding, as the filters' weights sum to one; it is kept
    as published. An image that has the side already is not filtered.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        side: int,
        mean: Colour,
        std: Colour,
        mode: Literal["bilinear", "bicubic"],
        *,
        antialias: bool = False,
        resize_first: bool = False,
    ) -> None:
        super().__init__()
        self.side = side
        self.mode = mode
        self.antialias = antialias
        self.resize_first = resize_first
        # Not persistent: they are no weights, and no part of their digest.
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        filters = f"{mode}{'-antialias' if antialias else ''}"
        order = f"{filters},normalise" if resize_first else f"normalise,{filters}"
        constants = ",".join(f"{value:g}" for value in (*mean, *std))
        self.fingerprint = f"{order}-{side}-{constants}"

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> [B, 3, side, side]."""
        if self.resize_first:
            return self._normalised(self._resized(images))
        return self._resized(self._normalised(images))

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def _resized(self, images: Tensor) -> Tensor:
        size = (self.side, self.side)
        if images.shape[-2:] == size:
            return images
        return functional.interpolate(
            images, size, mode=self.mode, align_corners=False, antialias=self.antialias
        )
