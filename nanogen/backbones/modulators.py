"""What modulates the blocks of an AdaLN transformer: where on the path a sample is, and of what.

moment = Moment(width, period, wiring)(t, interval, scalars)        # [B, D]
context = TextContext(features, width)(condition)                  # a vector, and tokens
c = silu(moment + context.vector)                                  # [B, D]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogen.backbones.layers import TextEmbed
from nanogen.backbones.refusals import check_told
from nanogen.types import LabelCondition, TextCondition, Wiring

FREQUENCIES = 128


class NumberEmbed(nn.Module):
    """Numbers [B] -> [B, D]: an MLP of cosines and sines at the 128 frequencies period^(-j/128)."""

    frequencies: Tensor

    def __init__(self, width: int, period: float) -> None:
        super().__init__()
        powers = torch.arange(FREQUENCIES, dtype=torch.float64) / FREQUENCIES
        self.register_buffer("frequencies", (period**-powers).float(), persistent=False)
        self.first, self.second = nn.Linear(2 * FREQUENCIES, width), nn.Linear(width, width)
        self.reset_weights()

    def reset_weights(self) -> None:
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        phase = x.to(torch.promote_types(x.dtype, torch.float32))[:, None] * self.frequencies
        waves = torch.cat([phase.cos(), phase.sin()], dim=1).to(self.first.weight.dtype)
        return self.second(F.silu(self.first(waves)))


class Moment(nn.Module):
    """Time, and whatever else the objective tells of a sample, as one vector.

    JiT and PixNerd count time from noise to data, so that 1 - t is what is embedded. The length of
    a step and further numbers have embeddings of their own, which are added.
    """

    def __init__(self, width: int, period: float, wiring: Wiring) -> None:
        super().__init__()
        self.wiring = wiring
        self.time = NumberEmbed(width, period)
        self.interval = NumberEmbed(width, period) if wiring.interval else None
        self.scalars = nn.ModuleDict({name: NumberEmbed(width, period) for name in wiring.scalars})

    def forward(
        self, t: Tensor, interval: Tensor | None, scalars: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Numbers [B] -> [B, D]; TypeError unless given exactly what it was wired for."""
        check_told(self.wiring, interval, scalars)
        moment = self.time(1 - t)
        if interval is not None and self.interval is not None:
            moment = moment + self.interval(interval)
        for name, embed in self.scalars.items():
            moment = moment + embed((scalars or {})[name])
        return moment


@dataclass(frozen=True)
class Context:
    """A condition, as a vector and as tokens."""

    vector: Tensor
    """[B, D]"""
    tokens: Tensor | None = None
    """[B, L, D]"""
    mask: Tensor | None = None
    """bool [B, L]: which tokens are real; None: all are"""


class ClassContext(nn.Module):
    """A class as its row of a table, and as `tokens` copies of the row, each with a learned offset.

    The last row is the null class.
    """

    def __init__(self, classes: int, width: int, tokens: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)
        self.offsets = nn.Parameter(0.02 * torch.randn(tokens, width)) if tokens else None

    def forward(self, condition: LabelCondition) -> Context:
        vector = self.table(condition.ids)
        if self.offsets is None:
            return Context(vector)
        return Context(vector, vector[:, None] + self.offsets)


class TextContext(nn.Module):
    """A caption as its projected tokens, and as the mean of those that are real: 0 without any."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.embed = TextEmbed(features, width)

    def forward(self, condition: TextCondition) -> Context:
        tokens, mask = self.embed(condition)
        real = condition.mask[..., None]
        count = real.sum(1).clamp(min=1).to(tokens.dtype)
        return Context(torch.where(real, tokens, 0.0).sum(1) / count, tokens, mask)
