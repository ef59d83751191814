"""The frozen DINO (v1, arXiv 2104.14294) that a discriminator looks through.

    trunk = load_trunk("S_8")                       # from the hub
    trunk = load_trunk("S_8", "dino_vit_small_patch8_224.pth")
    trunk(images)                                   # five maps [B, 384, 784]

It is apart from `nanogen.encoders`: a discriminator reads maps of several blocks, without a final
norm, in another layout, of images in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogen.encoders.weights import fill, locate_file, read_tensors
from nanogen.errors import ConfigError, suggest

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""of the colours of ImageNet in [0, 1]"""
EPS = 1e-6


@dataclass(frozen=True)
class DinoRecipe:
    """Sizes of a trunk and what is read of it."""

    width: int
    heads: int
    patch: int
    depth: int = 12
    taps: tuple[int, ...] = (2, 5, 8, 11)
    """blocks whose output is read, counted from 0; the last block's comes first once more"""
    side: int = 224
    """pixels a side that images are resized to"""
    hub: str = ""
    """name on the hub; empty where there is none"""
    file: str = ""
    """name of the file that published code asks for"""

    @property
    def tokens(self) -> int:
        return (self.side // self.patch) ** 2


RECIPES = {
    name: DinoRecipe(width, heads, patch, hub=f"timm/vit_{kind}.dino", file=f"dino_vit_{kind}.pth")
    for name, width, heads, patch, kind in (
        ("S_8", 384, 6, 8, "small_patch8_224"),
        ("S_16", 384, 6, 16, "small_patch16_224"),
        ("B_16", 768, 12, 16, "base_patch16_224"),
    )
}


class DinoTrunk(nn.Module):
    """Images float [B, 3, H, W] in [-1, 1] to maps [B, D, N]; parameter names are timm's.

    Frozen: it stays in eval mode, and gives a gradient to the images alone.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, recipe: DinoRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        width = recipe.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, recipe.tokens + 1, width))
        self.patch_embed = PatchEmbed(width, recipe.patch)
        self.blocks = nn.ModuleList(Block(width, recipe.heads) for _ in range(recipe.depth))
        # Never applied; it is here because files hold it and are read strictly.
        self.norm = nn.LayerNorm(width, EPS)
        mean, deviation = (torch.tensor(v)[:, None, None] for v in (MEAN, DEVIATION))
        self.register_buffer("scale", 0.5 / deviation, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / deviation, persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        side = (self.recipe.side, self.recipe.side)
        resized = F.interpolate(images.float(), side, mode="bilinear", align_corners=False)
        x = resized * self.scale + self.shift
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        maps: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.recipe.taps:
                maps.append(x[:, 1:].transpose(1, 2))
        return [x[:, 1:].transpose(1, 2), *maps]

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        # DINO was trained with the exact GELU; the discriminator of RAE takes the approximation.
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def load_trunk(recipe: str = "S_8", path: str = "") -> DinoTrunk:
    """The trunk of a named recipe, from a file or folder (.safetensors, or .pth) or else the hub.

    ConfigError where the recipe is unknown, or the weights cannot be had or do not fit it.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"discriminator.recipe={recipe!r} is unknown; {suggest(recipe, RECIPES)}")
    chosen = RECIPES[recipe]
    file = locate_file(chosen.hub, ("model.safetensors", chosen.file), path, "discriminator.path")
    return filled_trunk(chosen, read_tensors(file), str(file))


def filled_trunk(recipe: DinoRecipe, weights: Mapping[str, Tensor], where: str) -> DinoTrunk:
    """A trunk with the given weights, all of them and no other; `where` is for messages."""
    trunk, width = DinoTrunk(recipe), recipe.width
    fill(trunk, weights, where=where)
    with torch.no_grad():
        for name, bias in trunk.named_parameters():
            # A bias of the keys adds the same to every score of a query: softmax drops it.
            if name.endswith("attn.qkv.bias"):
                bias[width : 2 * width] = 0
    return trunk
