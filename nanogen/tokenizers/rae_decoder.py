"""The decoder of a representation autoencoder (RAE, arXiv 2510.11690): tokens of a frozen encoder
to an image, by a vision transformer in the style of MAE's decoder (arXiv 2111.06377).

    decoder = RaeDecoder(DecoderConfig(channels=768, grid=16, patch=16, **SIZES["XL"]))
    images = decoder(features)          # [B, 768, 16, 16] -> [B, 3, 256, 256]

Published decoders were trained with their table of positions and the token in front, both of which
start as constants: never regenerate them, load them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from nanogen.errors import ConfigError

EPSILON = 1e-12
"""of every LayerNorm, as published"""
WAVELENGTH = 10_000.0

SIZES: dict[str, dict[str, int]] = {
    "B": {"width": 768, "depth": 12, "heads": 12, "hidden": 3072},
    "L": {"width": 1024, "depth": 24, "heads": 16, "hidden": 4096},
    "XL": {"width": 1152, "depth": 28, "heads": 16, "hidden": 4096},
}
"""the published ones; every row of the paper uses XL"""


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder; it can be read off the weights but for `heads`."""

    channels: int
    """C of the features"""
    grid: int
    """tokens a side"""
    patch: int
    """pixels a side that a token becomes"""
    width: int
    depth: int
    heads: int
    hidden: int
    """units between the two layers of a block's MLP"""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"a decoder of {name}={value!r}: must be a number from 1 on")
        if self.width % self.heads or self.width % 4:
            raise ConfigError(
                f"a decoder of width={self.width}: must be a multiple of 4 and of its "
                f"{self.heads} heads"
            )

    @property
    def image_size(self) -> int:
        """Pixels a side of what it makes."""
        return self.grid * self.patch


class RaeDecoder(nn.Module):
    """Features of an encoder [B, C, h, w] to images [B, 3, H, W]."""

    def __init__(self, config: DecoderConfig) -> None:
        """Layers are initialised by torch's defaults, positions as in MAE; all of it is trained."""
        super().__init__()
        self.config = config
        width = config.width
        self.in_proj = nn.Linear(config.channels, width)
        self.reg_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(positions(config.grid, width)[None])
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.out_proj = nn.Linear(width, 3 * config.patch**2)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, grid patch, grid patch], not clamped. Another grid of features
        than the decoder's is resampled bilinearly first.
        """
        grid, patch = self.config.grid, self.config.patch
        if features.shape[-2:] != (grid, grid):
            features = functional.interpolate(
                features, (grid, grid), mode="bilinear", align_corners=False
            )
        tokens = self.in_proj(features.flatten(2).transpose(1, 2))
        tokens = torch.cat([self.reg_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        patches = self.out_proj(self.norm(tokens))[:, 1:]
        # Within a patch: row, column, channel.
        patches = patches.unflatten(2, (patch, patch, 3)).unflatten(1, (grid, grid))
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, grid * patch, grid * patch)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        packed = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = packed
        seen = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(seen.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(tokens)))


class _Block(nn.Module):
    """Attention, then an MLP; each after a LayerNorm, beside the identity."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=EPSILON)
        self.attn = _Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=EPSILON)
        self.mlp = _Mlp(config.width, config.hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


def positions(grid: int, width: int) -> Tensor:
    """[1 + grid grid, width] as in MAE: zeros for the token in front, then row by row the sine and
    the cosine of the column, and those of the row.
    """
    rates = WAVELENGTH ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.outer(torch.arange(grid, dtype=torch.float64), rates)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    table = torch.cat([axis.repeat(grid, 1), axis.repeat_interleave(grid, dim=0)], dim=1)
    return torch.cat([table.new_zeros(1, width), table]).float()
