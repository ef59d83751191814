"""The layers of the TensorFlow Inception of 2015, named as in the published weights.

Szegedy et al. 2015 (arXiv 1512.00567), as the graph `inception-2015-12-05` has it. Three things in
it differ from later copies: means of 3 x 3 do not count the padding, the last block takes a maximum
where the others take a mean, and the normalisation adds 1e-3 to the variance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-3


@dataclass(frozen=True)
class Conv:
    """A convolution of a block, and what its weights are called."""

    name: str
    width: int
    """channels out"""
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    """with 2 nothing is padded, with 1 the size stays"""


Pool: TypeAlias = Callable[[Tensor], Tensor]
Step: TypeAlias = Conv | Pool | tuple[Conv, ...]
"""several convolutions see the same input, and their outputs are joined"""
Branch: TypeAlias = tuple[Step, ...]

mean: Pool = functools.partial(
    functional.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False
)
greatest: Pool = functools.partial(functional.max_pool2d, kernel_size=3, stride=1, padding=1)
halve: Pool = functools.partial(functional.max_pool2d, kernel_size=3, stride=2)


class NormalisedConvolution(nn.Module):
    """Convolution without bias, normalisation by stored moments, and max(0, x)."""

    def __init__(self, before: int, conv: Conv, padding: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, conv.width, conv.kernel, conv.stride, padding, bias=False)
        self.bn = StoredNorm(conv.width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class StoredNorm(nn.Module):
    """Normalisation by moments that came with the weights: it never learns."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=EPSILON
        )


class Block(nn.Module):
    """Branches that see the same input; their outputs are joined along the channels."""

    def __init__(self, before: int, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.branches = branches
        self.width = sum(self._add(before, branch) for branch in branches)

    def _add(self, before: int, branch: Branch) -> int:
        """Make the convolutions of a branch; its channels out."""
        for step in branch:
            side_by_side = (step,) if isinstance(step, Conv) else step
            if not isinstance(side_by_side, tuple):
                continue
            for conv in side_by_side:
                same = (conv.kernel[0] // 2, conv.kernel[1] // 2)
                padding = same if conv.stride == 1 else (0, 0)
                self.add_module(conv.name, NormalisedConvolution(before, conv, padding))
            before = sum(conv.width for conv in side_by_side)
        return before

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, h, w] -> [B, width, h', w']"""
        return torch.cat([self._along(branch, x) for branch in self.branches], 1)

    def _along(self, branch: Branch, x: Tensor) -> Tensor:
        for step in branch:
            if isinstance(step, Conv):
                x = self.get_submodule(step.name)(x)
            elif isinstance(step, tuple):
                x = torch.cat([self.get_submodule(conv.name)(x) for conv in step], 1)
            else:
                x = step(x)
        return x


def coarse(pooled: int) -> tuple[Branch, ...]:
    """Blocks 5b to 5d, on 35 x 35 places."""
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3)),
        ),
        (mean, Conv("branch_pool", pooled)),
    )


def to_middle() -> tuple[Branch, ...]:
    """Block 6a, from 35 x 35 to 17 x 17 places."""
    return (
        (Conv("branch3x3", 384, (3, 3), 2),),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3), 2),
        ),
        (halve,),
    )


def middle(inner: int) -> tuple[Branch, ...]:
    """Blocks 6b to 6e, on 17 x 17 places."""
    return (
        (Conv("branch1x1", 192),),
        (
            Conv("branch7x7_1", inner),
            Conv("branch7x7_2", inner, (1, 7)),
            Conv("branch7x7_3", 192, (7, 1)),
        ),
        (
            Conv("branch7x7dbl_1", inner),
            Conv("branch7x7dbl_2", inner, (7, 1)),
            Conv("branch7x7dbl_3", inner, (1, 7)),
            Conv("branch7x7dbl_4", inner, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (mean, Conv("branch_pool", 192)),
    )


def to_fine() -> tuple[Branch, ...]:
    """Block 7a, from 17 x 17 to 8 x 8 places."""
    return (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ),
        (halve,),
    )


def fine(pool: Pool) -> tuple[Branch, ...]:
    """Blocks 7b and 7c, on 8 x 8 places."""
    return (
        (Conv("branch1x1", 320),),
        (
            Conv("branch3x3_1", 384),
            (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))),
        ),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, Conv("branch_pool", 192)),
    )


def narrowed(branches: Sequence[Branch], divisor: int) -> tuple[Branch, ...]:
    """The same branches with a `divisor`-th of the channels, which divides all of them."""

    def narrow(conv: Conv) -> Conv:
        return Conv(conv.name, conv.width // divisor, conv.kernel, conv.stride)

    def narrow_step(step: Step) -> Step:
        if isinstance(step, Conv):
            return narrow(step)
        return tuple(map(narrow, step)) if isinstance(step, tuple) else step

    return tuple(tuple(map(narrow_step, branch)) for branch in branches)
