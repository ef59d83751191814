"""The transformer of the Perception Encoder (Bolya et al. 2025, arXiv 2504.13181).

    network = PerceptionTransformer(Shape(width=768, depth=12, heads=12, hidden=3072, patch=16), 16)
    tokens = network(images)            # normalised [B, 3, 256, 256] -> [B, 1 + 256, 768]

A pre-norm vision transformer with learned positions and, in every attention, rotations by the
integer column and row of a token. Its parameters carry the names of the published checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

BASE = 10_000.0
"""of the rotation frequencies"""


@dataclass(frozen=True)
class Shape:
    """The sizes of one model; none of them but `heads` is left to be found in its checkpoint."""

    width: int
    """D, a multiple of 4 heads"""
    depth: int
    heads: int
    hidden: int
    """width inside each MLP"""
    patch: int
    class_token: bool = True
    layer_scale: bool = False
    """whether each branch ends in learned factors, one a channel"""
    final_norm: bool = False
    """whether the last block is followed by a LayerNorm"""


class LayerScale(nn.Module):
    """One learned factor for each channel."""

    def __init__(self, width: int, initial: float = 0.1) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Softmax attention over all tokens, with rotated queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; `cosine` and `sine` [T, D / heads] are those of each token."""
        packed = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        # [B, T, 3 D] -> three of [B, heads, T, D / heads]
        q, k, v = packed.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotated(q, cosine, sine), rotated(k, cosine, sine)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """`x + scale(attention(norm(x)))`, then the same with an MLP."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, shape.heads)
        self.ls_1 = LayerScale(width) if shape.layer_scale else nn.Identity()
        self.ln_2 = nn.LayerNorm(width)
        layers = {
            "c_fc": nn.Linear(width, shape.hidden),
            "gelu": nn.GELU(),
            "c_proj": nn.Linear(shape.hidden, width),
        }
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ls_2 = LayerScale(width) if shape.layer_scale else nn.Identity()

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.ls_1(self.attn(self.ln_1(x), cosine, sine))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class PerceptionTransformer(nn.Module):
    """Normalised images to tokens, for one grid of patches."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, shape: Shape, grid: int) -> None:
        """`grid`: patches a side of the images that will be given."""
        super().__init__()
        width = shape.width
        self.shape = shape
        self.conv1 = nn.Conv2d(3, width, shape.patch, shape.patch, bias=False)
        prefix = int(shape.class_token)
        self.class_embedding = nn.Parameter(torch.zeros(width)) if prefix else None
        self.positional_embedding = nn.Parameter(torch.zeros(prefix + grid * grid, width))
        self.ln_pre = nn.LayerNorm(width)
        blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.ln_post = nn.LayerNorm(width) if shape.final_norm else nn.Identity()
        angles = rotation_angles(grid, width // shape.heads, shape.class_token)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, grid * patch, grid * patch] -> [B, T, D]: the class token, if any, then N = grid^2
        patches row by row.
        """
        x = self.conv1(images).flatten(2).transpose(1, 2)
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding)
        for block in self.transformer["resblocks"]:  # ty: ignore[not-iterable]
            x = block(x, self.cosine, self.sine)
        return self.ln_post(x)


def rotation_angles(grid: int, head_width: int, class_token: bool) -> Tensor:
    """float32 [T, head_width]: the angle of every channel of a head at every token.

    The first half of the channels turns with the column, the second with the row: pair i of a half
    by `place * BASE^(-2 i / half)`, both of its channels alike. Beside a class token, which has
    angle 0, columns and rows count from 1; without one, from 0.
    """
    half = head_width // 2
    # On the CPU even where the network is built on the meta device: these are no weights.
    frequencies = BASE ** (-torch.arange(0, half, 2, dtype=torch.float64, device="cpu") / half)
    places = torch.arange(grid, dtype=torch.float64, device="cpu") + int(class_token)
    of_place = (places[:, None] * frequencies).repeat_interleave(2, dim=1)  # [grid, half]
    shape = (grid, grid, half)
    columns, rows = of_place[None].expand(shape), of_place[:, None].expand(shape)
    angles = torch.cat([columns, rows], dim=-1).flatten(0, 1)
    if class_token:
        angles = torch.cat([angles.new_zeros(1, head_width), angles])
    return angles.float()


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair of adjacent channels of `x` [..., T, d] by its angle."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-second, first], dim=-1).flatten(-2)
    return x * cosine + turned * sine


def resized_positions(table: Tensor, grid: int, class_token: bool) -> Tensor:
    """A table of positions [prefix + m^2, D] for a grid of another side: [prefix + grid^2, D].

    Bilinear, without antialiasing; the row of the class token stays. ValueError where the rows
    make no square.
    """
    prefix = int(class_token)
    head, patches = table[:prefix], table[prefix:]
    side = round(len(patches) ** 0.5)
    if side * side != len(patches):
        raise ValueError(f"{len(table)} positions are no square grid and {prefix} class token")
    if side == grid:
        return table
    square = patches.T.reshape(1, -1, side, side).float()
    resized = functional.interpolate(square, (grid, grid), mode="bilinear", align_corners=False)
    return torch.cat([head, resized[0].flatten(1).T.to(table.dtype)])
