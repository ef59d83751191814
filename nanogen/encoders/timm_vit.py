"""Vision transformers as timm publishes them: DINOv2, MAE, CLIP and SigLIP 2 are one module.

    network = TimmViT(Shape(width=1024, depth=24, heads=16, hidden=4096, patch=14, grid=37))
    features = network.pooled(network(images))      # normalised [B, 3, H, W] -> [B, 1024]

Dosovitskiy et al. 2021 (arXiv 2010.11929). Parameters carry the names of timm's checkpoints. Images
may have any size: zeros fill them up to whole patches on the right and at the bottom, and the
learned positions are resampled to their grid. That is what timm does when it is asked for both
(`dynamic_img_size`, `dynamic_img_pad`); Hugging Face's models of the same weights cut the remainder
off, and their features differ.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """What the checkpoint of one model must be known to be."""

    width: int
    """D, a multiple of `heads`"""
    depth: int
    heads: int
    hidden: int
    """width inside each MLP"""
    patch: int
    """pixels a side"""
    grid: int
    """patches a side of the images that the learned positions are for"""
    class_token: bool = True
    """without one, learned attention pools the tokens"""
    layer_scale: bool = False
    """whether each branch ends in learned factors, one a channel"""
    norm_first: bool = False
    """whether a LayerNorm stands before the first block; the patches then have no bias"""
    activation: Literal["none", "tanh"] = "none"
    """how GELU is approximated"""
    epsilon: float = 1e-6
    """of every LayerNorm"""


class TimmViT(nn.Module):
    """Pre-norm blocks over a class token, if there is one, and the patches row by row."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, prefix = shape.width, int(shape.class_token)
        self.shape = shape
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if prefix else None
        self.pos_embed = nn.Parameter(torch.zeros(1, prefix + shape.grid**2, width))
        projection = nn.Conv2d(3, width, shape.patch, shape.patch, bias=not shape.norm_first)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        self.norm_pre = _norm(shape) if shape.norm_first else nn.Identity()
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = _norm(shape)
        self.attn_pool = None if shape.class_token else AttentionPool(shape)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised float [B, 3, H, W] of any size -> all tokens [B, T, D] after the final norm.

        Their number is ceil(H / patch) * ceil(W / patch), and one more for a class token.
        """
        height, width = (-size % self.shape.patch for size in images.shape[-2:])
        patches = self.patch_embed["proj"](functional.pad(images, (0, width, 0, height)))
        rows, columns = patches.shape[-2:]
        x = patches.flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        prefix = int(self.shape.class_token)
        x = self.norm_pre(x + resampled_positions(self.pos_embed, (rows, columns), prefix))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def pooled(self, tokens: Tensor) -> Tensor:
        """[B, T, D] -> [B, D]: the class token, or what the attention pool makes of the patches."""
        return tokens[:, 0] if self.attn_pool is None else self.attn_pool(tokens)


class Block(nn.Module):
    """`x + scale(attention(norm(x)))`, then the same with an MLP."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm1 = _norm(shape)
        self.attn = Attention(shape.width, shape.heads)
        self.ls1 = LayerScale(shape.width) if shape.layer_scale else nn.Identity()
        self.norm2 = _norm(shape)
        self.mlp = _mlp(shape)
        self.ls2 = LayerScale(shape.width) if shape.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Softmax attention over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # [B, T, 3 D] -> three of [B, heads, T, D / heads]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class AttentionPool(nn.Module):
    """One learned query attends to all tokens; an MLP with a residual follows (SigLIP)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = _norm(shape)
        self.mlp = _mlp(shape)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, D] -> [B, D]."""
        query = self.q(self.latent.expand(len(tokens), -1, -1))
        q = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        # [B, T, 2 D] -> two of [B, heads, T, D / heads]
        k, v = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = self.proj(mixed.transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm(x)))[:, 0]


class LayerScale(nn.Module):
    """One learned factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def resampled_positions(table: Tensor, grid: tuple[int, int], prefix: int) -> Tensor:
    """A table of positions [1, prefix + m * m, D] for a grid of (rows, columns) patches.

    Bicubic with antialiasing, in float32; the rows of the `prefix` tokens stay, and all of them
    where the grid is that of the table.
    """
    head, patches = table[:, :prefix], table[:, prefix:]
    side = round(patches.shape[1] ** 0.5)
    if grid == (side, side):
        return table
    square = patches.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resized = functional.interpolate(square, grid, mode="bicubic", antialias=True)
    return torch.cat([head, resized.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def _norm(shape: Shape) -> nn.LayerNorm:
    return nn.LayerNorm(shape.width, eps=shape.epsilon)


def _mlp(shape: Shape) -> nn.Sequential:
    layers = {
        "fc1": nn.Linear(shape.width, shape.hidden),
        "act": nn.GELU(approximate=shape.activation),
        "fc2": nn.Linear(shape.hidden, shape.width),
    }
    return nn.Sequential(OrderedDict(layers))
