"""LPIPS, a perceptual distance of two images (Zhang et al. 2018, arXiv 1801.03924), on VGG16.

    lpips = open_lpips()                     # the trunk from the hub; open_lpips("vgg16.pth")
    distances = lpips(images, others)        # both [B, 3, H, W] in [0, 1] -> [B]

Version 0.1 with the learned linear heads. Those are 7 KB in an installed package that is read, not
imported; the trunk is any file of torchvision's or timm's ImageNet weights of VGG16. Neither comes
with this package.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from nanogen.encoders.weights import fill, locate_file, read_tensors
from nanogen.errors import ConfigError, DataError, MissingExtra
from nanogen.fingerprint import digest_of_module

CONVOLUTIONS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
"""channels in the order of the layers of VGG16; 0 halves the resolution"""
TAPS = (3, 8, 15, 22, 29)
"""the layers, ReLUs, whose outputs are compared: the last before each halving"""
CHANNELS = (64, 128, 256, 512, 512)
"""of the taps"""
SMALLEST = 16
"""pixels a side that four halvings leave one of"""

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""of the channels of images in [-1, 1], before the trunk"""
TINY = 1e-10
"""added to the norm of a feature vector"""

TRUNK = "timm/vgg16.tv_in1k"
TRUNK_FILES = ("model.safetensors", "pytorch_model.bin", "vgg16-397923af.pth")
UNUSED = ("classifier.", "pre_logits.", "head.")
"""tensors of such a file that belong to its classifier"""

HEADS = {
    "lpips": "weights/v0.1/vgg.pth",
    "torchmetrics": "functional/image/lpips_models/vgg.pth",
}
"""package -> the file of the heads in it; both ship the same bytes (BSD-2-Clause)"""
HEADS_MD5 = "d507d7349b931f0638a25a48a722f98a"


class Trunk(nn.Module):
    """The convolutions of VGG16, named as in every file of its weights."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels in CONVOLUTIONS:
            if channels:
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
                before = channels
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the five taps, [B, c, h, w] each."""
        taps = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in TAPS:
                taps.append(x)
        return taps


class Lpips(nn.Module):
    """Frozen: in eval mode for ever, no gradient to its weights, one to both images."""

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: Trunk, heads: Sequence[Tensor]) -> None:
        """`heads`: the weight [c] of each channel of each tap."""
        super().__init__()
        self.trunk = trunk
        for number, weight in enumerate(heads):
            self.register_buffer(f"head{number}", weight.float().reshape(-1, 1, 1))
        self.register_buffer("shift", torch.tensor(SHIFT).reshape(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).reshape(3, 1, 1))
        self.fingerprint = f"lpips-0.1-vgg16/{digest_of_module(self)}"
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Two batches [B, 3, H, W] in [0, 1], not clamped, at least 16 px a side -> [B].

        Symmetric, 0 for equal images. Under autocast the convolutions are those of autocast and
        what follows them is float32. ConfigError for smaller images.
        """
        if min(images.shape[-2:]) < SMALLEST:
            raise ConfigError(
                f"LPIPS needs images of at least {SMALLEST} px a side, not "
                f"{min(images.shape[-2:])}; leave it out"
            )
        total = images.new_zeros(len(images), dtype=torch.float32)
        for number, (one, other) in enumerate(
            zip(self._taps(images), self._taps(others), strict=True)
        ):
            gap = (_unit(one) - _unit(other)).square()
            total = total + (gap * self.get_buffer(f"head{number}")).sum(1).mean((1, 2))
        return total

    def _taps(self, images: Tensor) -> list[Tensor]:
        return self.trunk((images * 2 - 1 - self.shift) / self.scale)


def open_lpips(path: str = "", field: str = "path") -> Lpips:
    """The distance with its learned weights.

    `path` is a file of VGG16's weights or the folder of one; empty asks the hub. `field` is the
    config field that sets it, for messages. ConfigError where the trunk cannot be had, MissingExtra
    where no package with the heads is installed.
    """
    heads = read_heads()
    file = locate_file(TRUNK, TRUNK_FILES, path, field)
    with torch.device("meta"):
        trunk = Trunk()
    fill(trunk, read_tensors(file), UNUSED, where=str(file))
    return Lpips(trunk, heads)


def read_heads() -> list[Tensor]:
    """The weight [c] of each channel of each tap, from an installed package.

    MissingExtra where none is installed; DataError where its file is not the known one.
    """
    file = heads_file()
    if file is None:
        packages = " or ".join(HEADS)
        raise MissingExtra(
            f"a package with the linear heads of LPIPS ({packages})",
            "pip install 'nanogen[stage1]'",
        )
    data = file.read_bytes()
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != HEADS_MD5:
        raise DataError(
            f"{file} is not the file of LPIPS heads of version 0.1: its MD5 is {found}, not "
            f"{HEADS_MD5}; install its package again"
        )
    # Saved on a GPU.
    tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return [tensors[f"lin{number}.model.1.weight"].flatten() for number in range(len(TAPS))]


def heads_file() -> Path | None:
    """The file of the heads in an installed package, found without importing it."""
    for package, name in HEADS.items():
        spec = find_spec(package)
        places = spec.submodule_search_locations if spec else None
        for place in places or ():
            file = Path(place) / name
            if file.is_file():
                return file
    return None


def _unit(features: Tensor) -> Tensor:
    """[B, c, h, w] with every vector of channels divided by its length, in float32."""
    features = features.float()
    # Unlike the root of a sum, this has a gradient (of 0) where a vector is 0.
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / (length + TINY)
