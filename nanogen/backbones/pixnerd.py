"""PixNerd, pixel neural field diffusion (arXiv 2507.23268): a transformer whose tokens are fields.

    backbone=pixnerd                                            PixNerd-XL/16: 700M parameters
    backbone=pixnerd backbone.depth=22 backbone.width=1024 backbone.field_depth=2 PixNerd-L/16

A patch of 16 x 16 pixels holds more than a linear head decodes well. Instead, the last state of a
token gives the weights of a small MLP, the neural field of its patch, which is evaluated at every
pixel: at its place (64 cosines) and at its noisy value.

    s_n = silu(time + state_n)                              one vector for each token n, [D]
    v = Linear([pixel, cosines(i, j)])                      64 numbers for each pixel (i, j)
    v = v + silu(norm(v) W1_n) W2_n                         `field_depth` times, each with other
                                                            W1_n, W2_n = Linear(s_n), whose columns
                                                            are brought to length 1
    out = Linear(norm(v))                                   C numbers for each pixel

For classes, this is the function of the released code (github.com/MCG-NJU/PixNerd, class to image)
at the time 1 - t, but for an order: in each head, rows turn the first half of the channels and
columns the second, where they alternate there. The weights start from its law: the last Linear is
0, so that the output is, and AdaLN is not. Rotary positions run from 0 to 16 along each side,
whatever the number of patches; the image gets no other positions.

The default has 700.6M parameters, the paper's 700M. The paper prints 458M for PixNerd-L; the
released config of that name has 452.1M, as here, and no reading that gives 458M was found.

The paper's model of text refines the tokens in blocks of their own, and lets image tokens read them
without taking them along. Here they join the sequence, and the mean of the real ones modulates, as
a class does; a null caption has no token, and 0 for its mean.
"""

from __future__ import annotations

import math

import chz
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogen.backbones.adaln import AdalnTransformer, FinalNorm, Shape, ZeroLinear
from nanogen.backbones.layers import PatchEmbed, RMSNorm, Rotary, through, unpatchified
from nanogen.backbones.refusals import check_positive
from nanogen.errors import ConfigError
from nanogen.registry import register
from nanogen.types import ConditionSpec, LatentSpec, State, Wiring

TIME_PERIOD = 10.0
WAVES = 8
"""cosines along each side of a patch"""
GRID = 16.0


@register("backbone", "pixnerd", summary="PixNerd: AdaLN, and a neural field for each patch")
@chz.chz
class PixnerdConfig:
    """Defaults are PixNerd-XL: 26 blocks of width 1152, fields of 4 layers of width 64."""

    depth: int = chz.field(default=26, doc="blocks of the transformer")
    width: int = chz.field(default=1152, doc="width D")
    heads: int = 16
    mlp_ratio: float = 4.0
    field_depth: int = chz.field(default=4, doc="layers of a field, whose weights a token gives")
    field_width: int = chz.field(default=64, doc="numbers that a field keeps of a pixel")
    field_ratio: int = chz.field(default=2, doc="hidden width of a layer, in widths of the field")

    def build(self, latent: LatentSpec, condition: ConditionSpec, wiring: Wiring) -> Pixnerd:
        """ConfigError where the sizes do not fit each other or the latents."""
        return Pixnerd(self, latent, condition, wiring)


class Pixnerd(AdalnTransformer):
    def __init__(
        self, config: PixnerdConfig, latent: LatentSpec, condition: ConditionSpec, wiring: Wiring
    ) -> None:
        _check(config, latent)
        width = config.width
        shape = Shape(
            width,
            config.depth,
            config.heads,
            config.mlp_ratio,
            TIME_PERIOD,
            bias=False,
            zero_gates=False,
        )
        super().__init__(shape, latent, condition, wiring)
        self.embed = PatchEmbed(latent.channels, latent.patch, width)
        self.rotary = Rotary(
            self.rows,
            self.columns,
            width // config.heads,
            before=len(wiring.leaves),
            extent=GRID,
        )
        self.leaf_norm = FinalNorm(width) if wiring.leaves else None
        self.field = NeuralField(config, latent.channels, latent.patch)

    def image_tokens(self, image: Tensor) -> Tensor:
        return self.embed(image)

    def predicted(self, state: State, tokens: Tensor, moment: Tensor, c: Tensor) -> State:
        leaves = len(self.wiring.leaves)
        s = F.silu(moment[:, None] + tokens[:, leaves:])
        pixels = patched(state["image"], self.latent.patch)
        recompute = self.recompute and self.training
        field = through(self.field, pixels.flatten(0, 1), s.flatten(0, 1), recompute=recompute)
        patches = field.unflatten(0, pixels.shape[:2]).flatten(2)
        found = {"image": unpatchified(patches, self.latent)}
        if self.leaf_norm is not None:
            found |= self.leaves.predicted(self.leaf_norm(tokens[:, :leaves], c))
        return found


class NeuralField(nn.Module):
    """Pixels of patches, and a vector for each patch -> what is predicted of the pixels."""

    waves: Tensor
    """[p p, 64]"""

    def __init__(self, config: PixnerdConfig, channels: int, patch: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("waves", pixel_waves(patch), persistent=False)
        self.embed = nn.Linear(channels + WAVES**2, config.field_width)
        self.layers = nn.ModuleList(FieldLayer(config) for _ in range(config.field_depth))
        self.norm = RMSNorm(config.field_width)
        self.head = ZeroLinear(config.field_width, channels)

    def forward(self, pixels: Tensor, s: Tensor) -> Tensor:
        """pixels [M, p p, C], s [M, D] -> [M, p p, C]."""
        # In two halves, as the waves are the same in every patch.
        of_pixel, of_place = self.embed.weight.tensor_split([self.channels], dim=1)
        v = F.linear(pixels, of_pixel) + F.linear(self.waves, of_place, self.embed.bias)
        for layer in self.layers:
            v = layer(v, s)
        return self.head(self.norm(v))


class FieldLayer(nn.Module):
    """v + silu(norm(v) W1) W2, with both matrices a linear function of the vector of the patch."""

    def __init__(self, config: PixnerdConfig) -> None:
        super().__init__()
        self.width, self.hidden = config.field_width, config.field_ratio * config.field_width
        self.norm = RMSNorm(self.width)
        self.generator = nn.Linear(config.width, 2 * self.width * self.hidden)

    def forward(self, v: Tensor, s: Tensor) -> Tensor:
        """v [M, P, d], s [M, D] -> [M, P, d]."""
        first, second = self.generator(s).chunk(2, dim=-1)
        first = unit_columns(first.unflatten(-1, (self.width, self.hidden)))
        second = unit_columns(second.unflatten(-1, (self.hidden, self.width)))
        return v + F.silu(self.norm(v) @ first) @ second


def patched(image: Tensor, patch: int) -> Tensor:
    """[B, C, h, w] -> [B, N, p p, C]: patches row by row, the pixels of each row by row."""
    grid = image.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [B, C, rows, p, columns, p]
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def pixel_waves(patch: int) -> Tensor:
    """[p p, 64]: cos(pi x k) cos(pi y l) / (1 + k l) at each pixel, row by row, l fastest.

    x (column) and y (row) run from 0 to 1 over the patch, k and l over 8 numbers from 0 to 8.
    """
    place = torch.linspace(0, 1, patch, dtype=torch.float64)
    k = torch.linspace(0, WAVES, WAVES, dtype=torch.float64)
    wave = (math.pi * place[:, None] * k).cos()  # [p, 8]
    both = wave[None, :, :, None] * wave[:, None, None, :]  # [row, column, k, l]
    return (both / (1 + k[:, None] * k)).reshape(patch**2, WAVES**2).float()


def unit_columns(matrices: Tensor) -> Tensor:
    """[M, rows, columns], each column divided by its length, which is taken in float32."""
    wide = torch.promote_types(matrices.dtype, torch.float32)
    length = torch.linalg.vector_norm(matrices, dim=1, keepdim=True, dtype=wide)
    return matrices / length.clamp(min=1e-12).to(matrices.dtype)


def _check(config: PixnerdConfig, latent: LatentSpec) -> None:
    check_positive(config, ("field_depth", "field_width", "field_ratio"))
    if latent.patch == 1:
        raise ConfigError(
            "backbone=pixnerd decodes a patch pixel by pixel, and patch 1 has a single one; choose "
            "a tokenizer with larger patches, or backbone=jit"
        )
