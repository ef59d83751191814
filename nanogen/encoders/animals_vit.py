"""The encoder `animals-vit`: patch tokens of the embedded images, a small vision transformer.

    encoder = open_encoder("animals-vit", image_size=40)
    features = encoder(images)          # float [B, 3, 40, 40] in [0, 1]
    features.patches, features.cls      # [B, 64, 64], [B, 64]

What DINOv2 is to ImageNet, this is to `animals` and `scenes`: tokens that know the animal, and from
which the image can still be decoded. On held-out silhouettes a linear probe of the mean token
classifies 0.9665 of them right (0.712 from pixels), and a linear map of each token draws its patch
with 35.0 dB (31.6 dB in scenes). Trained by `scripts/train_animals_vit.py` on their train splits;
it knows nothing of other images.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from nanogen.encoders.vision import EncoderRow, Options, VisionEncoder, VisionFeatures
from nanogen.encoders.weights import fill
from nanogen.errors import ConfigError, DataError
from nanogen.registry import register

WIDTH, DEPTH, HEADS, HIDDEN = 64, 4, 4, 256
PATCH = 4
"""pixels a side of a patch, as the network is fed"""
GRIDS = (8, 7)
"""tokens a side, the first that divides the side of an image"""
SMALLEST, LARGEST = 28, 64
"""pixels a side of the embedded images"""
WAVELENGTH = 100.0
"""base of the positions' frequencies, in tokens: the grids are too small for the usual 10,000"""
WEIGHTS = "animals_vit.safetensors"


class Block(nn.Module):
    """Attention, then two layers with GELU between; each after a LayerNorm, beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        batch, length, _ = tokens.shape
        packed = self.qkv(self.norm1(tokens)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        return tokens + self.mlp(self.norm2(tokens))


class Network(nn.Module):
    """Embedding of patches, positions, a class token, blocks, and a LayerNorm without affine.

    `embed` and `read` are apart, so that training can hide patches between them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(3 * PATCH * PATCH, WIDTH)
        self.class_token = nn.Parameter(torch.zeros(WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6, elementwise_affine=False)

    def embed(self, images: Tensor) -> Tensor:
        """[B, 3, 4 g, 4 g] in [0, 1] -> [B, g g, D], row by row. White, the ground, is zero."""
        return self.patches(cut(1 - images))

    def read(self, embedded: Tensor) -> VisionFeatures:
        """[B, g g, D] of `embed` -> tokens of mean 0 and variance 1, each over its channels."""
        grid = round(embedded.shape[1] ** 0.5)
        tokens = embedded + positions(grid).to(embedded)
        tokens = torch.cat([self.class_token.expand(len(tokens), 1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return VisionFeatures(tokens[:, 1:], tokens[:, 0])


def cut(images: Tensor) -> Tensor:
    """[B, 3, 4 g, 4 g] -> patches [B, g g, 3 * 16]: channel, row, column."""
    return functional.unfold(images, PATCH, stride=PATCH).transpose(1, 2)


def positions(grid: int) -> Tensor:
    """[g g, D]: sine and cosine of the column, then of the row, as in MAE (arXiv 2111.06377)."""
    rates = WAVELENGTH ** -(torch.arange(WIDTH // 4) / (WIDTH // 4))
    angles = torch.outer(torch.arange(grid), rates)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([axis.repeat(grid, 1), axis.repeat_interleave(grid, dim=0)], dim=1)


def grid_of(image_size: int) -> int:
    """Tokens a side for images of a size: 7 or 8, so that a token stands for whole pixels.

    28 px give 7 x 7 and 40 px 8 x 8. ConfigError where neither divides the size.
    """
    for grid in GRIDS:
        if SMALLEST <= image_size <= LARGEST and image_size % grid == 0:
            return grid
    raise ConfigError(
        f"encoder 'animals-vit' takes images of {SMALLEST} to {LARGEST} px whose side is a "
        f"multiple of 7 or 8 px, not {image_size}"
    )


def fed(images: Tensor, grid: int) -> Tensor:
    """[B, 3, H, H] -> [B, 3, 4 g, 4 g]; a filter as wide as the shrinking, so nothing aliases."""
    size = (PATCH * grid, PATCH * grid)
    if images.shape[-2:] == size:
        return images
    return functional.interpolate(images, size, mode="bicubic", antialias=True)


class AnimalsVit(VisionEncoder):
    """The trained network, frozen, for square images of one size."""

    def __init__(self, image_size: int) -> None:
        """ConfigError for a size without a grid, DataError where the embedded file is missing."""
        super().__init__()
        self.name = "animals-vit"
        self.width = WIDTH
        self.grid = grid_of(image_size)
        self.image_size = image_size
        try:
            data = files("nanogen").joinpath("assets", WEIGHTS).read_bytes()
        except FileNotFoundError:
            raise DataError(
                f"the embedded file {WEIGHTS} is missing; install nanogen again"
            ) from None
        digest = hashlib.sha256(data).hexdigest()[:16]
        self.fingerprint = f"animals-vit-1-{image_size}/{digest}"
        self.network = Network()
        # Stored as halves, used as floats.
        fill(self.network, safetensors.torch.load(data), where=WEIGHTS)
        self.requires_grad_(False)
        self.train(False)

    def forward(self, images: Tensor) -> VisionFeatures:
        """Every token has mean 0 and variance 1 over its channels."""
        return self.network.read(self.network.embed(fed(images, self.grid)))


@register("encoder", "animals", summary="vision transformer of the embedded silhouettes")
class AnimalsFamily:
    """Comes with the package: nothing is fetched."""

    options: tuple[str, ...] = ()
    rows = (
        EncoderRow(
            name="animals-vit",
            hub="",
            licence="Apache-2.0",
            width=WIDTH,
            patch=PATCH,
            side=28,  # of an image of 28 px, there is none of 256
            parameters=203_136,
        ),
    )

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> AnimalsVit:
        """ConfigError for a path: there are no other weights."""
        if path:
            raise ConfigError(
                f"encoder {row.name!r} comes with the package and takes no path; leave {path} out"
            )
        return AnimalsVit(image_size)
