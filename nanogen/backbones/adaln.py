"""A transformer with adaptive norms (AdaLN, arXiv 2212.09748), as JiT and PixNerd use it.

Time and condition, added to one vector, modulate every block. The condition may also join the
sequence, as tokens that take part from block `start` on ("in context").

    c = silu(moment + condition)                                     [B, D]
    s = leaves | image | condition                                   [B, leaves + N + L, D]
    s = s + gate1 Attention(norm(s) (1 + scale1) + shift1)           Linear(c) gives the six
    s = s + gate2 SwiGLU(norm(s) (1 + scale2) + shift2)

The tokens of the condition have no place in the image: prepended, as in the papers, or appended, as
here, they give the same function. What is published has images only; a leaf is one more token, with
a linear head after a modulated norm, and a further head is a norm and a linear layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogen.backbones.layers import (
    Attention,
    RMSNorm,
    Rotary,
    SwiGLU,
    modulated,
    through,
    unpatchified,
)
from nanogen.backbones.modulators import ClassContext, Context, Moment, TextContext
from nanogen.backbones.refusals import (
    check_head_width,
    check_heads,
    check_hidden,
    check_patch,
    check_positive,
)
from nanogen.backbones.wanted import Wanted
from nanogen.types import Condition, ConditionSpec, LatentSpec, Prediction, State, Wiring


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer of this kind, and where JiT and PixNerd differ."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float
    period: float
    """of the slowest wave that time is embedded with"""
    start: int = 0
    """blocks that run before the tokens of the condition join"""
    class_tokens: int = 0
    """how often a class joins the sequence"""
    bias: bool = True
    """whether queries, keys, values and SwiGLU have biases"""
    zero_gates: bool = True
    """whether every block starts as the identity"""

    def check(self, latent: LatentSpec, wiring: Wiring) -> None:
        """ConfigError where the sizes fit neither each other, the latent space, nor the heads."""
        check_positive(self, ("depth", "width", "heads"))
        check_hidden(self.width, self.mlp_ratio)
        check_head_width("backbone.heads", self.width, self.heads)
        check_patch(latent)
        check_heads(wiring.heads, self.depth)


class AdalnTransformer(nn.Module, ABC):
    """Subclass, give `rotary`, and say how an image becomes tokens and tokens a prediction."""

    rotary: Rotary

    def __init__(
        self, shape: Shape, latent: LatentSpec, condition: ConditionSpec, wiring: Wiring
    ) -> None:
        """ConfigError where the sizes fit neither each other, the latent space, nor the heads."""
        super().__init__()
        shape.check(latent, wiring)
        self.shape, self.latent, self.wiring = shape, latent, wiring
        self.rows, self.columns = latent.height // latent.patch, latent.width // latent.patch
        self.recompute = False
        """whether training computes the activations of a block again instead of keeping them"""
        width = shape.width
        self.moment = Moment(width, shape.period, wiring)
        self.context = (
            ClassContext(condition.classes, width, shape.class_tokens)
            if condition.classes is not None
            else TextContext(condition.width or 0, width)
        )
        self.leaves = Leaves(wiring.leaves, width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        outputs = latent.channels * latent.patch**2
        for name in wiring.heads:
            head = nn.Sequential(RMSNorm(width), ZeroLinear(width, outputs))
            self.add_module(f"{name}_head", head)

    @abstractmethod
    def image_tokens(self, image: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, N, D]"""

    @abstractmethod
    def predicted(self, state: State, tokens: Tensor, moment: Tensor, c: Tensor) -> State:
        """Noisy state, tokens [B, leaves + N, D] after the last block, time [B, D], and what
        modulated the blocks [B, D] -> prediction.
        """

    def forward(
        self,
        state: State,
        t: Tensor,
        condition: Condition,
        *,
        interval: Tensor | None = None,
        scalars: Mapping[str, Tensor] | None = None,
        want: Iterable[str] = (),
    ) -> Prediction:
        """Noisy state, t `[B]`, condition -> prediction with the leaves of `state`, wanted features
        and heads. TypeError where it is told other numbers than it was wired for.
        """
        wanted = Wanted.of(want, self.shape.depth, self.wiring.heads)
        moment, context = self.moment(t, interval, scalars), self.context(condition)
        c = F.silu(moment + context.vector)
        after = self._blocks(state, c, context, wanted.blocks | {self.shape.depth})
        heads = {name: self._further(name, after[block]) for name, block in wanted.heads.items()}
        found = self.predicted(state, after[self.shape.depth], moment, c)
        return Prediction(found, wanted.features(after), heads)

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
        wanted = Wanted.of(want, self.shape.depth, {})
        moment, context = self.moment(t, interval, scalars), self.context(condition)
        c = F.silu(moment + context.vector)
        return wanted.features(self._blocks(state, c, context, wanted.blocks))

    def _blocks(
        self, state: State, c: Tensor, context: Context, keep: Set[int]
    ) -> dict[int, Tensor]:
        """Tokens [B, leaves + N, D] after each block of `keep`; those after the last do not run."""
        tokens = self.leaves(state, self.image_tokens(state["image"]))
        own, visible, after = tokens.shape[1], None, {}
        recompute = self.recompute and self.training
        for number, block in enumerate(self.blocks[: max(keep, default=0)], start=1):
            if number == self.shape.start + 1 and context.tokens is not None:
                tokens = torch.cat([tokens, context.tokens], dim=1)
                if context.mask is not None:
                    visible = F.pad(context.mask, (own, 0), value=True)[:, None, None]
            tokens = through(block, tokens, c, self.rotary, visible, recompute=recompute)
            if number in keep:
                after[number] = tokens[:, :own]
        return after

    def _further(self, name: str, tokens: Tensor) -> Tensor:
        """What a further head predicts of the image [B, C, h, w]."""
        patches = self.get_submodule(f"{name}_head")(tokens[:, len(self.wiring.leaves) :])
        return unpatchified(patches, self.latent)


class ZeroLinear(nn.Linear):
    """A Linear that starts at 0, whatever law other weights start from."""

    def reset_parameters(self) -> None:
        for p in self.parameters(recurse=False):
            nn.init.zeros_(p)


class Leaves(nn.Module):
    """The further leaves of a state: one token each in front of the image, and a head each."""

    def __init__(self, leaves: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.embeds = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(size, width), RMSNorm(width))
                for name, size in leaves.items()
            }
        )
        self.heads = nn.ModuleDict({name: ZeroLinear(width, size) for name, size in leaves.items()})

    def forward(self, state: State, image: Tensor) -> Tensor:
        """Image tokens [B, N, D] -> [B, leaves + N, D]."""
        first = [embed(state[name])[:, None] for name, embed in self.embeds.items()]
        return torch.cat([*first, image], dim=1) if first else image

    def predicted(self, tokens: Tensor) -> State:
        """Normed tokens [B, leaves + ..., D] -> [B, width of the leaf], by name."""
        return {name: head(tokens[:, i]) for i, (name, head) in enumerate(self.heads.items())}


class Block(nn.Module):
    """Attention and SwiGLU, modulated by the condition of the sample."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attn = Attention(width, shape.heads)
        self.mlp = SwiGLU(width, shape.mlp_ratio)
        modulation = ZeroLinear if shape.zero_gates else nn.Linear
        self.adaln_modulation = modulation(width, 6 * width)
        if not shape.bias:
            attn, mlp = self.attn, self.mlp
            for linear in (attn.q, attn.k, attn.v, mlp.w1, mlp.w2, mlp.w3):
                linear.register_parameter("bias", None)

    def forward(self, s: Tensor, c: Tensor, rotary: Rotary, visible: Tensor | None) -> Tensor:
        """s [B, S, D], c [B, D]; `visible` bool [B, 1, 1, S]: the tokens that may be read."""
        six = self.adaln_modulation(c)[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = six
        s = s + gate1 * self.attn(modulated(self.norm1(s), shift1, scale1), rotary, visible)
        return s + gate2 * self.mlp(modulated(self.norm2(s), shift2, scale2))


class FinalNorm(nn.Module):
    """The last norm, modulated by the condition of the sample."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.adaln_modulation = ZeroLinear(width, 2 * width)

    def forward(self, s: Tensor, c: Tensor) -> Tensor:
        """s [B, S, D], c [B, D] -> [B, S, D]."""
        shift, scale = self.adaln_modulation(c)[:, None].chunk(2, dim=-1)
        return modulated(self.norm(s), shift, scale)
