"""Perceptual losses: how far apart two images look, to a frozen network.

    perceptual=lpips perceptual.path=vgg16.pth         LPIPS; its VGG16 is not in this package
    perceptual=features perceptual.encoder=animals-vit any vision encoder, such as the embedded one
    perceptual=none

A distance takes two batches of images, float [B, 3, H, W] in [0, 1] and not clamped, to [B]; it
gives a gradient to the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import chz
import torch
from torch import Tensor, nn

from nanogen.encoders.lpips import open_lpips
from nanogen.encoders.vision import VisionEncoder, open_encoder
from nanogen.errors import ConfigError
from nanogen.objectives.alignment import cosine_distance
from nanogen.registry import register

Distance = Callable[[Tensor, Tensor], Tensor]


class DistanceConfig(Protocol):
    """What is registered as a distance."""

    @property
    def weight(self) -> float: ...

    def build(self, image_size: int) -> nn.Module | None: ...


@register("distance", "none", summary="no perceptual loss")
@chz.chz
class NoDistance:
    @property
    def weight(self) -> float:
        return 0.0

    def build(self, image_size: int) -> None:
        return None


@chz.chz
class Weighted:
    """What every distance has."""

    weight: float = chz.field(default=1.0, doc="of the distance, beside an L1 of weight 1")

    @chz.validate
    def _positive(self) -> None:
        if self.weight <= 0:
            raise ConfigError(
                f"perceptual.weight={self.weight}: must be above 0; use perceptual=none instead"
            )


@register(
    "distance",
    "lpips",
    summary="LPIPS on VGG16 (arXiv 1801.03924)",
    licence="BSD-2-Clause (heads)",
    needs="pip install 'nanogen[stage1]', and the weights of VGG16",
)
@chz.chz
class LpipsDistance(Weighted):
    path: str = chz.field(default="", doc="file or folder of VGG16's weights; empty: the hub")

    def build(self, image_size: int) -> nn.Module:
        return open_lpips(self.path, field="perceptual.path")


@register("distance", "features", summary="angle between the tokens of a vision encoder")
@chz.chz
class FeaturesDistance(Weighted):
    encoder: str = chz.field(default="animals-vit", doc="a vision encoder (nanogen ls encoders)")
    path: str = chz.field(default="", doc="its weights in place of the hub")

    def build(self, image_size: int) -> nn.Module:
        return TokenDistance(open_encoder(self.encoder, image_size, self.path))


class TokenDistance(nn.Module):
    """1 - cosine similarity of patch tokens, mean over tokens: 0 for equal images, at most 2."""

    def __init__(self, encoder: VisionEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.encoder(images).patches.float()
        found = self.encoder(others).patches.float()
        return cosine_distance(found, wanted)
