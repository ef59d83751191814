"""The network `inception-2015`: the Inception that FID, IS, sFID and KID are defined on.

    features = Inception2015()(images)         # uint8 [B, 3, H, W], any size
    features["pool"]                           # float32 [B, 2048]
    features["logits"]                         # float32 [B, 1008], without the bias
    features["spatial"]                        # float32 [B, 2023], of sFID

It is the TensorFlow graph of 2015-12-05 with the weights that torch-fidelity published for it
(https://github.com/toshas/torch-fidelity, release v0.2.0), and with the graph's own resize: on the
CPU its outputs have the same bits as torch-fidelity's. Copies with another resize, or the Inception
of torchvision, give other numbers, which must not be called FID.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from nanogen.encoders.inception_blocks import (
    Block,
    Conv,
    NormalisedConvolution,
    coarse,
    fine,
    greatest,
    halve,
    mean,
    middle,
    narrowed,
    to_fine,
    to_middle,
)
from nanogen.encoders.weights import fill, read_tensors
from nanogen.registry import register
from nanogen.store import Asset, Prepared, find

SIDE = 299
CLASSES = 1008
SPATIAL = 7
"""channels of the spatial features, the first of those there are"""
AT_ONCE = 64
"""images that go through the layers at once: bounds the memory, changes no result"""
NAME = "inception-2015"
WEIGHTS = Asset(
    NAME,
    "weights of the Inception of FID",
    "Apache-2.0",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    size="96 MB",
)
STEM = (
    ("Conv2d_1a_3x3", 32, 3, 2, 0),
    ("Conv2d_2a_3x3", 32, 3, 1, 0),
    ("Conv2d_2b_3x3", 64, 3, 1, 1),
    ("Conv2d_3b_1x1", 80, 1, 1, 0),
    ("Conv2d_4a_3x3", 192, 3, 1, 0),
)
"""name, channels, kernel, stride, padding"""
POOLED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
"""convolutions after which the size is halved"""
BLOCKS = {
    "Mixed_5b": coarse(32),
    "Mixed_5c": coarse(64),
    "Mixed_5d": coarse(64),
    "Mixed_6a": to_middle(),
    "Mixed_6b": middle(128),
    "Mixed_6c": middle(160),
    "Mixed_6d": middle(160),
    "Mixed_6e": middle(192),
    "Mixed_7a": to_fine(),
    "Mixed_7b": fine(mean),
    "Mixed_7c": fine(greatest),
}
SPATIAL_BLOCK = "Mixed_6d"
"""the graph's `mixed_6`, of which sFID reads the branch `conv`: its outputs come first"""


class Network(nn.Module):
    """The layers. `divisor` divides all channels: 1 in the published network."""

    def __init__(self, divisor: int = 1) -> None:
        super().__init__()
        width = 3
        for name, channels, kernel, stride, padding in STEM:
            conv = Conv(name, channels // divisor, (kernel, kernel), stride)
            self.add_module(name, NormalisedConvolution(width, conv, (padding, padding)))
            width = conv.width
        for name, branches in BLOCKS.items():
            block = Block(width, narrowed(branches, divisor))
            self.add_module(name, block)
            width = block.width
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """float32 [B, 3, H, W] in [-1, 1) -> features by name, as `Inception2015` gives them."""
        for name, *_ in STEM:
            x = self.get_submodule(name)(x)
            x = halve(x) if name in POOLED else x
        features = {}
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
            if name == SPATIAL_BLOCK:
                # TensorFlow has the channels last, and published moments are in its order.
                features["spatial"] = x[:, :SPATIAL].permute(0, 2, 3, 1).flatten(1)
        pool = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return features | {"pool": pool, "logits": pool.mm(self.fc.weight.T)}


@register(
    "network",
    NAME,
    summary="the Inception of FID, 24M parameters",
    needs="nanogen prepare inception-2015",
)
class Inception2015(nn.Module):
    """The published network, frozen: it stays in eval mode and gives no gradient.

    ConfigError where its weights are not in the store.
    """

    classes = ()

    def __init__(self) -> None:
        super().__init__()
        weights = find(WEIGHTS)
        self.fingerprint = fingerprint(weights)
        with torch.device("meta"):
            self.network = Network()
        tensors = read_tensors(weights.path)
        # Counts of training steps, which modules of torch add to the published moments.
        kept = {n: t for n, t in tensors.items() if not n.endswith(".num_batches_tracked")}
        fill(self.network, kept, where=str(weights.path))
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 3, H, W] -> "pool" float32 [B, 2048], "logits" float32 [B, 1008] (of 1000
        classes and 8 unused ones) and "spatial" float32 [B, 2023], place by place.

        TypeError for other types: a float in [0, 1] would be taken for black.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"{NAME} takes uint8 images, not {images.dtype}")
        parts = [self._features(part) for part in images.split(AT_ONCE)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        # The ten bits of mantissa that cuDNN keeps by default would show in a distance.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self.network((resize(images, SIDE) - 128) / 128)


def fingerprint(weights: Prepared) -> str:
    """That of the network with these weights."""
    return f"{NAME}/{weights.sha256[:16]}"


def resize(images: Tensor, side: int) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, side, side] in [0, 255], as TensorFlow 1 does.

    Output pixel i is read at i * H / side, without the half pixel that later conventions add, and
    blended from its two neighbours, however much the image shrinks.
    """
    return _blended(_blended(images.float(), side, dim=3), side, dim=2)


def _blended(x: Tensor, side: int, dim: int) -> Tensor:
    """One dimension resized. All in float32 as in TensorFlow: the bits matter."""
    size = x.shape[dim]
    scale = torch.tensor(size / side, dtype=torch.float32, device=x.device)
    place = torch.arange(side, dtype=torch.float32, device=x.device) * scale
    low = place.long()
    high = (low + 1).clamp(max=size - 1)
    share = place - low.float()
    share = share[:, None] if dim == 2 else share
    before = x.index_select(dim, low)
    return before + (x.index_select(dim, high) - before) * share
