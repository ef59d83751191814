"""Pixel space: no autoencoder, images scaled to [-1, 1]."""

from __future__ import annotations

import chz
from torch import Tensor

from nanogen.errors import ConfigError
from nanogen.registry import register
from nanogen.tokenizers.base import Autoencoder
from nanogen.types import LatentSpec


@register("tokenizer", "pixels", summary="pixels in [-1, 1], cut into patches; no autoencoder")
@chz.chz
class PixelsConfig:
    patch: int = 16

    def build(self, image_size: int) -> Pixels:
        if self.patch < 1 or image_size % self.patch:
            raise ConfigError(
                f"tokenizer.patch={self.patch} does not divide images of {image_size} px; "
                "choose a divisor"
            )
        return Pixels(self.patch, image_size)


class Pixels(Autoencoder):
    def __init__(self, patch: int, image_size: int) -> None:
        spec = LatentSpec(channels=3, height=image_size, width=image_size, patch=patch)
        super().__init__(spec, f"pixels-{image_size}")

    def raw(self, images: Tensor) -> Tensor:
        return images * 2 - 1

    def from_raw(self, raw: Tensor) -> Tensor:
        return (raw + 1) / 2

    def latents(self, raw: Tensor, keys: Tensor | None = None) -> Tensor:
        return raw

    def decode(self, latents: Tensor) -> Tensor:
        return self.from_raw(latents)
