"""What a network is, in so far as its weights say it: kind, sizes, latent space, conditions, heads.

architecture = Architecture("ddt", Tower(28, 1152, 16), Tower(2, 2048, 16), ...)
backbone = architecture.build(base_block=8)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from nanogen import registry
from nanogen.errors import ConfigError
from nanogen.types import ConditionSpec, LatentSpec, Wiring

DDT, LIGHTNING = "ddt", "lightning-dit"
LEAF = "cls"
"""the leaf that REG adds to the state"""
HEAD = "base"
"""the head of internal guidance"""
BLOCK = 8
"""the encoder block that heads read unless something else is said: no weight tells"""


@dataclass(frozen=True)
class Tower:
    """A stack of blocks of one width."""

    depth: int
    width: int
    heads: int


@dataclass(frozen=True)
class Architecture:
    """A backbone of diffusion-bench, and what its training adds to it."""

    kind: str
    """registered name of the backbone"""
    encoder: Tower
    decoder: Tower | None
    """None where the kind has none"""
    mlp_ratio: float
    latent: LatentSpec
    condition: ConditionSpec
    leaf: int | None = None
    """width of REG's class token"""
    interval: bool = False
    """whether it is told the length of a step, and so has embeddings of two times (MeanFlow)"""
    base: bool = False
    """whether it has a head for internal guidance"""
    projector: int | None = None
    """width of the features that REPA's projector gives"""

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.latent.height // self.latent.patch

    def build(self, base_block: int = BLOCK) -> nn.Module:
        """The backbone, freshly initialised, whatever the state of the global generator; on the
        meta device within `torch.device("meta")`. ConfigError where there is no block `base_block`
        for the head of internal guidance.
        """
        if self.base and not 1 <= base_block <= self.encoder.depth:
            raise ConfigError(
                f"base_block={base_block}: this backbone has blocks 1 to {self.encoder.depth}; "
                "name the one that its head of internal guidance reads, which no weight tells"
            )
        wiring = Wiring(
            leaves={} if self.leaf is None else {LEAF: self.leaf},
            interval=self.interval,
            heads={HEAD: base_block} if self.base else {},
        )
        encoder, decoder = self.encoder, self.decoder
        sizes: dict[str, int | float] = {
            "depth": encoder.depth,
            "width": encoder.width,
            "heads": encoder.heads,
            "mlp_ratio": self.mlp_ratio,
        }
        if decoder is not None:
            sizes |= {
                "decoder_depth": decoder.depth,
                "decoder_width": decoder.width,
                "decoder_heads": decoder.heads,
            }
        config = registry.get("backbone", self.kind)(**sizes)
        with torch.random.fork_rng(devices=[]):
            return cast(nn.Module, config.build(self.latent, self.condition, wiring))


def hidden_width(width: int, ratio: float) -> int:
    """Hidden units of a SwiGLU."""
    return int((2 / 3) * width * ratio)


def ratio_of(widths: dict[int, int]) -> float | None:
    """The roundest ratio for which a SwiGLU of each width has the hidden units given for it; None
    where there is none.
    """
    low = max(1.5 * hidden / width for width, hidden in widths.items())
    for digits in range(10):
        # The smallest ratio of so many digits may fall on either side of a rounded limit.
        nearest = round(low * 10**digits)
        for ratio in (nearest / 10**digits, (nearest + 1) / 10**digits):
            if all(hidden_width(width, ratio) == hidden for width, hidden in widths.items()):
                return ratio
    return None
