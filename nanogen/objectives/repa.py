"""REPA: tokens of an encoder block are aligned with those of a frozen vision encoder.

    terms.repa=on                                                    as released
    terms.repa.loss=cosine terms.repa.projector=mlp3                 as published
    terms.repa.loss=cosine terms.repa.projector=conv3 terms.repa.spatial_norm=true      iREPA

    loss = mean_n d(P(s_n), z_n)      d = mean square, or 1 - cosine, of a token of D

s are the image tokens after block 8, P a trained projector, and z the encoder's tokens of the clean
image. (Yu et al., arXiv 2410.06940; iREPA: Singh et al., arXiv 2512.10794.)
"""

from __future__ import annotations

from typing import Literal, get_args

import chz
import torch
from torch import Tensor, nn
from torch.nn import functional

from nanogen.encoders.teachers import EncoderTeacher
from nanogen.errors import ConfigError
from nanogen.objectives.alignment import DISTANCES, Distance
from nanogen.objectives.base import Facts, Step, Term
from nanogen.objectives.refusals import check_choice, check_weight
from nanogen.objectives.reg import LEAF
from nanogen.registry import register
from nanogen.types import LatentSpec

Projection = Literal["linear", "mlp3", "conv3"]

HIDDEN, GAMMA = 2048, 1.0
TINY = 1e-6
"""added to a deviation over space"""


@register(
    "term",
    "repa",
    summary="a block's tokens are aligned with an encoder's (REPA, iREPA)",
    needs="the encoder's files",
)
@chz.chz
class RepaConfig:
    """Defaults are the released code's: a linear map and mean squares of DINOv2-B's tokens, whose
    final norm has no affine.
    """

    weight: float = 0.5
    block: int = chz.field(default=8, doc="encoder block that is aligned, counted from 1")
    encoder: str = chz.field(default="dinov2-vit-b", doc="see nanogen ls encoders")
    path: str = chz.field(default="", doc="folder or file in place of the hub")
    loss: Distance = "mse"
    projector: Projection = chz.field(
        default="linear", doc="mlp3: three layers with SiLU; conv3: 3 x 3 convolution"
    )
    hidden: int = chz.field(default=HIDDEN, doc="width of mlp3")
    spatial_norm: bool = chz.field(
        default=False, doc="standardise each channel of the encoder's tokens over the image"
    )
    gamma: float = chz.field(
        default=GAMMA, doc="share of the mean over the image that spatial_norm takes away"
    )
    class_token: bool = chz.field(
        default=False, doc="align REG's token with the encoder's class token too"
    )
    resample: bool = chz.field(
        default=False, doc="interpolate the encoder's tokens where the backbone's grid is another"
    )

    @chz.validate
    def _ranges(self) -> None:
        check_weight("repa", self.weight)
        check_choice("terms.repa.loss", self.loss, get_args(Distance))
        check_choice("terms.repa.projector", self.projector, get_args(Projection))
        if self.hidden < 1:
            raise ConfigError(f"terms.repa.hidden={self.hidden}: must be at least 1")
        if self.hidden != HIDDEN and self.projector != "mlp3":
            raise ConfigError(
                f"terms.repa.hidden={self.hidden} has no effect with terms.repa.projector="
                f"{self.projector}; leave it out, or choose terms.repa.projector=mlp3"
            )
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"terms.repa.gamma={self.gamma}: must lie between 0 and 1")
        if self.gamma != GAMMA and not self.spatial_norm:
            raise ConfigError(
                f"terms.repa.gamma={self.gamma} has no effect without spatial_norm; leave it out, "
                "or set terms.repa.spatial_norm=true"
            )
        if self.class_token and self.projector == "conv3":
            raise ConfigError(
                "terms.repa.class_token=true contradicts terms.repa.projector=conv3: a class token "
                "has no place on the grid; choose linear or mlp3"
            )

    def build(self, facts: Facts) -> Repa:
        """ConfigError where the backbone has no such block; once the encoder is open, where its
        tokens are not as many as the backbone's.
        """
        return Repa(self, facts)


class Repa(Term):
    needs_images = True

    def __init__(self, config: RepaConfig, facts: Facts) -> None:
        super().__init__()
        self.config, self.weight = config, config.weight
        self.block = f"block{facts.block(config.block, 'terms.repa.block')}"
        self.want = (self.block,)
        self.needs_leaves = (LEAF,) if config.class_token else ()
        self.latent = facts.latent
        self.teacher = facts.known_teachers().encoder(
            config.encoder, config.path, owner="terms.repa"
        )
        if not config.resample:
            self.teacher.require(self._check_tokens)
        if config.class_token:
            self.teacher.require_class_token("terms.repa")
        self.projector = _projector(config, facts, self.teacher.width)

    def loss(self, step: Step) -> Tensor:
        """[B]: at least 0; 0 where tokens are equal, or with cosine parallel."""
        leaves = [name for name in step.clean if name != "image"]
        tokens = step.prediction.features[self.block]
        found = self.projector(tokens[:, len(leaves) :])
        seen = self.teacher(step.batch.images)
        wanted = self._wanted(seen.patches.float())
        if self.config.class_token:
            assert seen.cls is not None
            # Tokens of leaves come first, in the order of the state.
            place = leaves.index(LEAF)
            found = torch.cat([self.projector(tokens[:, place : place + 1]), found], dim=1)
            wanted = torch.cat([seen.cls.float()[:, None], wanted], dim=1)
        return DISTANCES[self.config.loss](found.float(), wanted)

    def _wanted(self, patches: Tensor) -> Tensor:
        """The encoder's patch tokens [B, M, D] as those of the image tokens, [B, N, D]."""
        if self.config.resample:
            patches = resampled(patches, *_grid(self.latent))
        if self.config.spatial_norm:
            patches = spatially_normalised(patches, self.config.gamma)
        return patches

    def _check_tokens(self, teacher: EncoderTeacher) -> None:
        rows, columns = _grid(self.latent)
        if (rows, columns) != (teacher.grid, teacher.grid):
            raise ConfigError(
                f"terms.repa.encoder={teacher.name} gives {teacher.grid} x {teacher.grid} tokens "
                f"and the backbone has {rows} x {columns}; choose a tokenizer.patch or an encoder "
                "with as many, or set terms.repa.resample=true"
            )


class Projector(nn.Sequential):
    """Features [B, N, D] -> [B, N, width of the target]: three layers with SiLU."""

    def __init__(self, width: int, hidden: int, target: int) -> None:
        super().__init__(
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, target),
        )


class ConvProjector(nn.Module):
    """Image tokens [B, N, D] -> [B, N, target] by a 3 x 3 convolution on their grid."""

    def __init__(self, grid: tuple[int, int], width: int, target: int) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(width, target, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        square = tokens.transpose(1, 2).unflatten(2, self.grid)
        return self.conv(square).flatten(2).transpose(1, 2)


def spatially_normalised(tokens: Tensor, gamma: float) -> Tensor:
    """[B, N, D] -> (z - gamma mean(z)) / std(z), mean and deviation over the N tokens of a channel
    (iREPA, arXiv 2512.10794).
    """
    std, mean = torch.std_mean(tokens, dim=1, keepdim=True)
    return (tokens - gamma * mean) / (std + TINY)


def resampled(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Tokens [B, g g, D] of a square grid -> [B, rows columns, D], bilinear; themselves where the
    grid is the same. The filter is as wide as the shrinking.
    """
    side = round(tokens.shape[1] ** 0.5)
    if (rows, columns) == (side, side):
        return tokens
    square = tokens.transpose(1, 2).unflatten(2, (side, side))
    square = functional.interpolate(square, (rows, columns), mode="bilinear", antialias=True)
    return square.flatten(2).transpose(1, 2)


def _grid(latent: LatentSpec) -> tuple[int, int]:
    """Rows and columns of image tokens."""
    return latent.height // latent.patch, latent.width // latent.patch


def _projector(config: RepaConfig, facts: Facts, target: int) -> nn.Module:
    width, hidden = facts.feature_width, config.hidden
    if config.projector == "conv3":
        return ConvProjector(_grid(facts.latent), width, target)
    if config.projector == "linear":
        return nn.Linear(width, target)
    return Projector(width, hidden, target)
