"""Discriminators: images in [-1, 1], `[B, 3, H, W]`, to logits `[B, M]`, high for real ones.

    discriminator = DinoDiscriminator(load_trunk("S_8"))          # RAE decoders (arXiv 2510.11690)
    discriminator = PatchDiscriminator(channels=64, layers=3)     # VAEs (arXiv 1611.07004)

`DinoDiscriminator` has five small heads on the features of a frozen DINO. The frozen trunk is no
submodule: it is neither trained, averaged nor saved, and the 80 keys of `state_dict()` are those of
published checkpoints (`heads.<i>.0.0.weight_orig`, ...).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogen import dist
from nanogen.errors import ConfigError
from nanogen.stage1.dino import DinoTrunk

SLOPE = 0.2
"""of every leaky ReLU"""


class DinoDiscriminator(nn.Module):
    """Spectrally normalised heads on five feature maps of a frozen DINO, the last one twice.

    M = 5 N with N tokens of the trunk: 3,920 at the published size, with 7,386,245 parameters.
    """

    def __init__(self, trunk: DinoTrunk, kernel: int = 9) -> None:
        """`kernel`: tokens that the residual convolution of a head sees, an odd number."""
        super().__init__()
        # A frozen network must not become a submodule: a tuple hides it.
        self._trunk = (trunk,)
        width, maps = trunk.recipe.width, len(trunk.recipe.taps) + 1
        self.heads = nn.ModuleList(_head(width, kernel) for _ in range(maps))

    @property
    def trunk(self) -> DinoTrunk:
        return self._trunk[0]

    def forward(self, images: Tensor) -> Tensor:
        maps = self.trunk(images)
        return torch.cat(
            [head(x).flatten(1) for head, x in zip(self.heads, maps, strict=True)], dim=1
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """The trunk moves along to another device or type."""
        self.trunk._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _head(width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        _block(width, 1), Residual(_block(width, kernel)), SpectralConv1d(width, 1, 1)
    )


def _block(width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        SpectralConv1d(width, width, kernel), SampleNorm(width), nn.LeakyReLU(SLOPE)
    )


class Residual(nn.Module):
    """(fn(x) + x) / sqrt 2: keeps the variance of independent summands."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return (self.fn(x) + x) * math.sqrt(0.5)


class SampleNorm(nn.Module):
    """Batch normalisation over virtual batches of one sample: statistics over the tokens of each
    sample and channel, then a learned gain and offset. [B, C, N] -> [B, C, N].
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        variance, mean = torch.var_mean(wide, dim=2, correction=0, keepdim=True)
        normal = (wide - mean) * torch.rsqrt(variance + self.eps)
        return (normal * self.weight[:, None] + self.bias[:, None]).to(x.dtype)


class SpectralConv1d(nn.Module):
    """A circular convolution whose weight is divided by its largest singular value (arXiv
    1802.05957), [B, C, N] -> [B, C', N].

    That value is u' W v, with W the weight as a matrix [C', C kernel]; in train mode each forward
    takes one step of power iteration on u and v first. Names of parameters and buffers are those of
    `torch.nn.utils.spectral_norm`, whose hooks would keep the module from being copied.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"a kernel of {kernel} tokens has no middle; choose an odd number")
        plain = nn.Conv1d(before, after, kernel)
        assert plain.bias is not None
        self.bias = nn.Parameter(plain.bias.detach())
        self.weight_orig = nn.Parameter(plain.weight.detach())
        rows, columns = plain.weight.flatten(1).shape
        self.register_buffer("weight_u", F.normalize(torch.randn(rows), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(columns), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        side = self.weight_orig.shape[2] // 2
        padded = F.pad(x, (side, side), mode="circular") if side else x
        return F.conv1d(padded, self.weight(), self.bias)

    def weight(self) -> Tensor:
        """The normalised weight [C', C, kernel]."""
        matrix = self.weight_orig.flatten(1)
        if self.training:
            self._iterate(matrix)
        # Later iterations write in place: this graph keeps the vectors it was built with. Products
        # and sums instead of matmul: autocast would round those to bfloat16.
        u, v = self.weight_u.clone(), self.weight_v.clone()
        return self.weight_orig / (u[:, None] * matrix * v).sum()

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        self.weight_v.copy_(F.normalize((matrix * self.weight_u[:, None]).sum(0), dim=0))
        self.weight_u.copy_(F.normalize((matrix * self.weight_v).sum(1), dim=0))


def across_processes(discriminator: nn.Module, device: torch.device) -> nn.Module:
    """The module itself; on graphics cards its batch statistics are now those of the images of all
    processes at once.
    """
    if dist.world() > 1 and device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(discriminator)
    return discriminator


class PatchDiscriminator(nn.Module):
    """PatchGAN: a logit for each overlapping patch (70 px with three layers), M = places.

    `layers` convolutions of stride 2 with widths channels * 1, 2, 4, 8, 8, ..., then two of stride
    1; normalisation between; initial weights N(0, 0.02), gains N(1, 0.02).
    """

    def __init__(
        self, channels: int = 64, layers: int = 3, norm: Literal["batch", "sample"] = "batch"
    ) -> None:
        """`norm`: statistics of a batch, as published, or of each sample over its places: then no
        logit depends on what else is in the batch.
        """
        super().__init__()
        widths = [channels * min(2**level, 8) for level in range(layers + 1)]
        main: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            main += [
                nn.Conv2d(widths[level - 1], widths[level], 4, stride, 1, bias=False),
                nn.BatchNorm2d(widths[level])
                if norm == "batch"
                else nn.InstanceNorm2d(widths[level], affine=True),
                nn.LeakyReLU(SLOPE),
            ]
        self.main = nn.Sequential(*main, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.layers = layers
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """ConfigError for images of less than 3 * 2^layers px, which leave no place."""
        least, side = 3 * 2**self.layers, min(images.shape[-2:])
        if side < least:
            raise ConfigError(
                f"a patch discriminator of {self.layers} layers needs images of at least {least} "
                f"px, not {side}; lower discriminator.layers"
            )
        return self.main(images).flatten(1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
