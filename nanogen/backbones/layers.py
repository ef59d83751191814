"""Layers of the transformers: RMSNorm, rotary positions, attention, SwiGLU, embeddings of time,
label and text; and `through`, which runs a block with or without keeping its activations.

Parameter names follow the checkpoints of diffusion-bench, so that those load without a map. Two of
their entries have no place here: tables of rotary positions (`rope.*`, `enc_rope.*`, `dec_rope.*`)
are computed, and `repa_projector.*` belongs to a term.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanogen.types import LabelCondition, LatentSpec, TextCondition

TIME_TOKENS = 4
CLASS_TOKENS = 8
FREQUENCIES = 256


class RMSNorm(nn.Module):
    """x / rms(x) with a learned gain and eps 1e-6; statistics in float32, cast back before the
    gain.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, x.shape[-1:], eps=1e-6).to(x.dtype) * self.weight


class SwiGLU(nn.Module):
    """W3(silu(W1 x) * W2 x) with hidden width int(2/3 * width * ratio)."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int((2 / 3) * width * ratio)
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class Rotary(nn.Module):
    """2-D rotary positions (RoPE): half of each head turns with the row of a token, half with its
    column.

    Adjacent pairs turn together, at frequencies 10000^(-2j/d) with d = head_width / 2. Only image
    tokens turn: tokens before (`before`) and after them have angle 0.
    """

    turn: Tensor
    """[before + N, head_width / 2, 2]: cosine and sine of each angle"""

    def __init__(
        self,
        rows: int,
        columns: int,
        head_width: int,
        before: int = 0,
        extent: float | None = None,
    ) -> None:
        """Positions are numbers of tokens, or run from 0 to `extent` along each side."""
        super().__init__()
        if head_width % 4:
            raise ValueError(
                f"2-D rotary positions need a head width that 4 divides, not {head_width}"
            )
        axis = head_width // 2
        frequency = 10000.0 ** (-torch.arange(0, axis, 2, dtype=torch.float64) / axis)
        row, column = (
            torch.arange(count, dtype=torch.float64)
            if extent is None
            else torch.linspace(0, extent, count, dtype=torch.float64)
            for count in (rows, columns)
        )
        row, column = row.repeat_interleave(columns), column.repeat(rows)
        angle = torch.cat([row[:, None] * frequency, column[:, None] * frequency], dim=1)
        angle = torch.cat([angle.new_zeros(before, axis), angle])
        turn = torch.stack([angle.cos(), angle.sin()], dim=-1).float()
        self.register_buffer("turn", turn, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, heads, S, head_width] with S >= before + N; the tokens that follow the image stay
        as they are.
        """
        turned, rest = x[:, :, : len(self.turn)], x[:, :, len(self.turn) :]
        pairs = turned.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
        turned = self._turn(pairs).flatten(-2).to(x.dtype)
        return torch.cat([turned, rest], dim=2) if rest.shape[2] else turned

    def _turn(self, pairs: Tensor) -> Tensor:
        """[..., 2] pairs, each turned by its angle."""
        if not torch.compiler.is_compiling() and pairs.dtype == self.turn.dtype:
            # One complex product: several times faster eagerly; a compiler fuses the plain form
            # instead.
            return torch.view_as_real(
                torch.view_as_complex(pairs) * torch.view_as_complex(self.turn)
            )
        (a, b), (cosine, sine) = pairs.unbind(-1), self.turn.unbind(-1)
        return torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1)


class Attention(nn.Module):
    """Multi-head attention with RMSNorm on queries and keys (QK-norm) and rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)

    def forward(self, x: Tensor, rotary: Rotary, visible: Tensor | None = None) -> Tensor:
        """x [B, S, D]; `visible` bool [B, 1, 1, S] marks the keys that may be read, None means
        all.
        """
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        q, k = rotary(self.q_norm(q)), rotary(self.k_norm(k))
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype), attn_mask=visible)
        return self.proj(y.transpose(1, 2).flatten(2))


class PatchEmbed(nn.Module):
    """[B, C, h, w] -> [B, N, D], tokens row by row."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimeEmbed(nn.Module):
    """Time in [0, 1] -> Fourier features -> base embedding [B, D] and four tokens [B, 4, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Frozen, but stored like a parameter: the frequencies are part of the trained function.
        self.W = nn.Parameter(torch.randn(FREQUENCIES), requires_grad=False)
        first, second = nn.Linear(2 * FREQUENCIES, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(first, nn.SiLU(), second)
        self.learnable_tokens = nn.Parameter(torch.randn(TIME_TOKENS, width) / math.sqrt(width))
        for layer in (first, second):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(t.dtype, torch.float32)
        phase = 2 * math.pi * t.to(wide)[:, None] * self.W.to(wide)
        base = self.mlp(torch.cat([phase.sin(), phase.cos()], dim=1).to(t.dtype))
        return base, base[:, None] + self.learnable_tokens


class LabelEmbed(nn.Module):
    """Class ids -> eight tokens [B, 8, D]; the last row of the table is the null class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)
        self.learnable_tokens = nn.Parameter(torch.randn(CLASS_TOKENS, width) / math.sqrt(width))
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, condition: LabelCondition) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, 8, D] and no mask."""
        return self.embedding_table(condition.ids)[:, None] + self.learnable_tokens, None


class TextEmbed(nn.Module):
    """Text features -> tokens [B, L, D] and the mask [B, L], which is None when every token is
    real.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(features)
        self.proj = nn.Linear(features, width)

    def forward(self, condition: TextCondition) -> tuple[Tensor, Tensor | None]:
        # Masked features are zeroed first: a NaN there would otherwise reach real tokens as 0 *
        # NaN.
        real = torch.where(condition.mask[..., None], condition.features, 0.0)
        tokens = self.proj(self.norm(real.to(self.proj.weight.dtype)))
        return tokens, condition.mask if self._masks(condition) else None

    def _masks(self, condition: TextCondition) -> bool:
        """Whether the mask is passed on: fast kernels take none. A compiler cannot look at values,
        so that compiled code takes every mask that has a column.
        """
        if condition.whole:
            return False
        if torch.compiler.is_compiling():
            return condition.mask.shape[1] > 0
        return not bool(condition.mask.all())


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift."""
    return torch.addcmul(x + shift, x, scale)


def unpatchified(patches: Tensor, latent: LatentSpec) -> Tensor:
    """[B, N, p p C], channel fastest, -> [B, C, h, w]."""
    p, rows = latent.patch, latent.height // latent.patch
    grid = patches.unflatten(2, (p, p, -1)).unflatten(1, (rows, -1))  # [B, rows, columns, p, p, C]
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def zeroed(linear: nn.Linear) -> nn.Linear:
    """The layer with all its weights 0."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def through(block: nn.Module, *inputs: object, recompute: bool) -> Tensor:
    """block(*inputs). With `recompute`, its activations are not kept for the backward pass but
    computed once more there: the same gradients, for a third more time and far less memory.

    `block` must draw no random numbers.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    return block(*inputs)
