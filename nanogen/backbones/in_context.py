"""The encoder of DDT and LightningDiT: all that a network is told is a token among those of the
image.

    s = [leaves] image | time | absolute time | scalars | class or text      [B, S, D]

Every token attends to every real one; no block is modulated. A network that is told an interval
(MeanFlow) reads it as its first time, and the absolute time from four tokens more. The tokens have
no positions except those of the image, so that their order only matters for reading them out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogen.backbones.layers import (
    Attention,
    LabelEmbed,
    RMSNorm,
    Rotary,
    SwiGLU,
    TextEmbed,
    TimeEmbed,
    through,
)
from nanogen.backbones.refusals import check_heads, check_told
from nanogen.backbones.wanted import Wanted
from nanogen.types import Condition, ConditionSpec, LatentSpec, State, Wiring


@dataclass(frozen=True)
class Context:
    """What a network is told of each sample, besides the state."""

    base: Tensor
    """[B, D]: embedding of the interval where there is one, else of the time"""
    tokens: Tensor
    """[B, K, D]"""
    mask: Tensor | None
    """bool [B, L]: which of the last L tokens are real; None: all are"""


class InContext(nn.Module, ABC):
    """What both backbones share. The one that inherits adds its modules in the order of its choice,
    as initial weights are drawn in that order, and names them as checkpoints of diffusion-bench do.
    """

    t_embedder: TimeEmbed
    ctx_embedder: LabelEmbed | TextEmbed
    t_abs_embedder: TimeEmbed
    scalar_embedders: nn.ModuleDict
    blocks: nn.ModuleList
    """the encoder's `depth` blocks come first"""
    enc_rope: Rotary

    def __init__(self, depth: int, latent: LatentSpec, wiring: Wiring) -> None:
        """ConfigError where `wiring` asks for a head at a block that is not there."""
        super().__init__()
        check_heads(wiring.heads, depth)
        self.depth, self.latent, self.wiring = depth, latent, wiring
        self.leaves = dict(wiring.leaves)
        self.recompute = False
        """whether training computes the activations of a block again instead of keeping them"""

    @abstractmethod
    def _tokens(self, state: State) -> Tensor:
        """What the encoder reads of a noisy state: tokens of leaves and image, [B, leaves + N,
        D].
        """

    def features(
        self,
        state: State,
        t: Tensor,
        condition: Condition,
        want: Iterable[str],
        *,
        interval: Tensor | None = None,
        scalars: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The wanted features alone: the same as those of `forward`, without the blocks after the
        last of them.
        """
        wanted = Wanted.of(want, self.depth, {})
        context = self._context(t, condition, interval, scalars)
        return wanted.features(self._encode(self._tokens(state), context, wanted.blocks | {0}))

    def _add_numbers(self, width: int) -> None:
        """Embeddings of the absolute time and of the scalars, where the wiring has any."""
        if self.wiring.interval:
            self.t_abs_embedder = TimeEmbed(width)
        self.scalar_embedders = nn.ModuleDict(
            {name: TimeEmbed(width) for name in self.wiring.scalars}
        )

    def _add_leaf(self, leaf: str, width: int, side: str = "") -> None:
        self.add_module(f"{leaf}_in_proj{side}", nn.Linear(self.leaves[leaf], width))
        self.add_module(f"{leaf}_in_norm{side}", RMSNorm(width))

    def _with_leaves(self, tokens: Tensor, state: State, side: str = "") -> Tensor:
        """Image tokens [B, N, D] -> [B, leaves + N, D]: one token for each leaf comes first."""
        extra = [
            getattr(self, f"{leaf}_in_norm{side}")(
                getattr(self, f"{leaf}_in_proj{side}")(state[leaf])
            )[:, None]
            for leaf in self.leaves
        ]
        return torch.cat([*extra, tokens], dim=1) if extra else tokens

    def _context(
        self,
        t: Tensor,
        condition: Condition,
        interval: Tensor | None,
        scalars: Mapping[str, Tensor] | None,
    ) -> Context:
        """TypeError where it is told other numbers than it was wired for."""
        check_told(self.wiring, interval, scalars)
        base, tokens = self.t_embedder(t if interval is None else interval)
        parts = [tokens]
        if interval is not None:
            parts.append(self.t_abs_embedder(t)[1])
        for name, embed in self.scalar_embedders.items():
            # The frequencies are made for [0, 1]. The logarithm brings a scale of any size near,
            # keeps apart what differs by a ratio, and leaves a time about as it is.
            parts.append(embed((scalars or {})[name].log1p())[1])
        embedded, mask = self.ctx_embedder(condition)
        return Context(base, torch.cat([*parts, embedded], dim=1), mask)

    def _encode(self, tokens: Tensor, context: Context, keep: Set[int]) -> dict[int, Tensor]:
        """Tokens of leaves and image [B, leaves + N, D] -> the same after each block of `keep`;
        those after the last of them do not run. Block 0 stands for the input.
        """
        own = tokens.shape[1]
        s = torch.cat([tokens, context.tokens], dim=1)
        visible = None
        if context.mask is not None:
            before = s.shape[1] - context.mask.shape[1]
            visible = F.pad(context.mask, (before, 0), value=True)[:, None, None]
        after = {0: tokens} if 0 in keep else {}
        recompute = self.recompute and self.training
        for number, block in enumerate(self.blocks[: max(keep)], start=1):
            s = through(block, s, self.enc_rope, visible, recompute=recompute)
            if number in keep:
                after[number] = s[:, :own]
        return after


class Head(Protocol):
    """The last layer of a backbone."""

    linear: nn.Linear
    leaves: tuple[str, ...]


class EncoderBlock(nn.Module):
    """Pre-norm attention and SwiGLU, without modulation."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.norm2 = RMSNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = SwiGLU(width, mlp_ratio)

    def forward(self, s: Tensor, rotary: Rotary, visible: Tensor | None) -> Tensor:
        s = s + self.attn(self.norm1(s), rotary, visible)
        return s + self.mlp(self.norm2(s))


def read_out(head: Head, x: Tensor) -> State:
    """Tokens x [B, leaves + N, D] -> `image` [B, N, p p C] by `linear`, and each leaf [B, width] by
    `<leaf>_linear`.
    """
    found = {"image": head.linear(x[:, len(head.leaves) :])}
    for index, leaf in enumerate(head.leaves):
        found[leaf] = getattr(head, f"{leaf}_linear")(x[:, index])
    return found


def condition_embed(condition: ConditionSpec, width: int) -> LabelEmbed | TextEmbed:
    """The embedding of the labels or of the text that a condition has."""
    if condition.classes is not None:
        return LabelEmbed(condition.classes, width)
    return TextEmbed(condition.width or 0, width)
