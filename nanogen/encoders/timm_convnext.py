"""ConvNeXt V2 as timm publishes it (Woo et al. 2023, arXiv 2301.00808).

    network = TimmConvNext(Shape(widths=(128, 256, 512, 1024), depths=(3, 3, 27, 3)))
    features = network.pooled(network(images))      # normalised [B, 3, H, W] -> [B, 1024]

Parameters carry the names of timm's checkpoints; the classifier, and the norm before it, are left
out: features are the plain mean over places of the last stage.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

EPSILON = 1e-6
"""of every LayerNorm, and of the mean that responses are divided by"""


@dataclass(frozen=True)
class Shape:
    """Four stages; each but the first halves the resolution."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]


class TimmConvNext(nn.Module):
    """Patches of 4 px, then the stages."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, shape.widths[0], 4, 4), PlaceNorm(shape.widths[0]))
        before = (None, *shape.widths)
        stages = zip(before, shape.widths, shape.depths, strict=False)
        self.stages = nn.Sequential(*(Stage(*stage) for stage in stages))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised float [B, 3, H, W] -> the last stage [B, D, H / 32, W / 32]."""
        return self.stages(self.stem(images))

    def pooled(self, places: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, D]: the mean over places."""
        return places.mean(dim=(2, 3))


class Stage(nn.Module):
    """Halves the resolution, but for the first stage, and applies its blocks."""

    def __init__(self, before: int | None, width: int, depth: int) -> None:
        """`before`: channels of the stage before this, None for the first."""
        super().__init__()
        self.downsample = (
            nn.Identity()
            if before is None
            else nn.Sequential(PlaceNorm(before), nn.Conv2d(before, width, 2, 2))
        )
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Block(nn.Module):
    """`x + mlp(norm(conv(x)))` with a 7 x 7 convolution of each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        layers = {
            "fc1": nn.Linear(width, 4 * width),
            "act": nn.GELU(),
            "grn": ResponseNorm(4 * width),
            "fc2": nn.Linear(4 * width, width),
        }
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv_dw(x).permute(0, 2, 3, 1)  # [B, h, w, D]
        return x + self.mlp(self.norm(inner)).permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Global response normalisation, eq. 1-3: channels compete by their norms over all places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, D] -> the same shape."""
        response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        relative = response / (response.mean(dim=-1, keepdim=True) + EPSILON)
        return x + (x * relative * self.weight + self.bias)


class PlaceNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, D, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPSILON)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
