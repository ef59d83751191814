"""DDT, the decoupled diffusion transformer (arXiv 2504.05741), as NanoGen uses it (arXiv
2606.24888).

* The encoder reads image tokens with the condition in context: four time tokens, then eight class
  tokens or the text. It has no AdaLN; every token attends to every real token.
* Its image tokens, with the time added, modulate a short and wide decoder token by token.
* The decoder embeds the noisy input again and returns the prediction, exactly 0 at initialisation.
* A further head (internal guidance, RAEv2) predicts the image from an earlier encoder block.

    s = [leaves] image | time | class or text           encoder tokens, [B, S, D]
    c = P(silu(time + s_image))                         conditions of the decoder, [B, N, D_decoder]
    out = head(decoder(embed(x), c))
    base = base_head(u, u) with u = silu(time + s_image after block 8)

With an interval (MeanFlow), `time` in c and u is the embedding of the interval; the absolute time
reaches the decoder through the encoder only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import chz
import torch.nn.functional as F
from torch import Tensor, nn

from nanogen.backbones.in_context import EncoderBlock, InContext, condition_embed, read_out
from nanogen.backbones.layers import (
    Attention,
    PatchEmbed,
    RMSNorm,
    Rotary,
    SwiGLU,
    TimeEmbed,
    modulated,
    through,
    unpatchified,
    zeroed,
)
from nanogen.backbones.refusals import (
    check_head_width,
    check_hidden,
    check_patch,
    check_positive,
)
from nanogen.backbones.wanted import Wanted
from nanogen.registry import register
from nanogen.types import Condition, ConditionSpec, LatentSpec, Prediction, State, Wiring


@register("backbone", "ddt", summary="decoupled diffusion transformer with in-context conditions")
@chz.chz
class DdtConfig:
    """Defaults are the paper's size: 28 encoder blocks of width 1152, 2 decoder blocks of width
    2048.
    """

    depth: int = chz.field(default=28, doc="encoder blocks")
    width: int = chz.field(default=1152, doc="encoder width D")
    heads: int = 16
    decoder_depth: int = 2
    decoder_width: int = 2048
    decoder_heads: int = 16
    mlp_ratio: float = 4.0

    def build(self, latent: LatentSpec, condition: ConditionSpec, wiring: Wiring) -> Ddt:
        """ConfigError where sizes do not fit together, or a head reads no block there is."""
        return Ddt(self, latent, condition, wiring)


class Ddt(InContext):
    def __init__(
        self,
        config: DdtConfig,
        latent: LatentSpec,
        condition: ConditionSpec,
        wiring: Wiring,
    ) -> None:
        _check(config, latent)
        super().__init__(config.depth, latent, wiring)
        width, wide, patch = config.width, config.decoder_width, latent.patch
        self.s_embedder = PatchEmbed(latent.channels, patch, width)
        self.x_embedder = PatchEmbed(latent.channels, patch, wide)
        self.t_embedder = TimeEmbed(width)
        self.ctx_embedder = condition_embed(condition, width)
        self._add_numbers(width)
        self.s_projector = nn.Linear(width, wide) if width != wide else nn.Identity()
        encoder = [EncoderBlock(width, config.heads, config.mlp_ratio) for _ in range(config.depth)]
        decoder = [
            DecoderBlock(wide, config.decoder_heads, config.mlp_ratio)
            for _ in range(config.decoder_depth)
        ]
        self.blocks = nn.ModuleList([*encoder, *decoder])
        for leaf in self.leaves:
            self._add_leaf(leaf, width, "_enc")
            self._add_leaf(leaf, wide, "_dec")
        outputs = latent.channels * patch * patch
        self.final_layer = FinalLayer(wide, outputs, self.leaves)
        for name in wiring.heads:
            self.add_module(f"{name}_final_layer", FinalLayer(width, outputs, {}))
        rows, columns, extra = latent.height // patch, latent.width // patch, len(self.leaves)
        self.enc_rope = Rotary(rows, columns, width // config.heads, before=extra)
        self.dec_rope = Rotary(rows, columns, wide // config.decoder_heads, before=extra)

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
        wanted = Wanted.of(want, self.depth, self.wiring.heads)
        context = self._context(t, condition, interval, scalars)
        after = self._encode(self._tokens(state), context, wanted.blocks | {self.depth})
        c = self.s_projector(F.silu(context.base[:, None] + after[self.depth]))
        x = self._with_leaves(self.x_embedder(state["image"]), state, "_dec")
        recompute = self.recompute and self.training
        for block in self.blocks[self.depth :]:
            x = through(block, x, c, self.dec_rope, recompute=recompute)
        found = self.final_layer(x, c)
        heads = {
            name: self._further(name, context.base, after[block])
            for name, block in wanted.heads.items()
        }
        found |= {"image": unpatchified(found["image"], self.latent)}
        return Prediction(found, wanted.features(after), heads)

    def _tokens(self, state: State) -> Tensor:
        return self._with_leaves(self.s_embedder(state["image"]), state, "_enc")

    def _further(self, name: str, base: Tensor, tokens: Tensor) -> Tensor:
        """What a further head predicts of the image: its tokens are modulated by themselves."""
        u = F.silu(base[:, None] + tokens[:, len(self.leaves) :])
        return unpatchified(getattr(self, f"{name}_final_layer")(u, u)["image"], self.latent)


class DecoderBlock(nn.Module):
    """Attention and SwiGLU, modulated token by token by the encoder (adaptive norm, zero gates at
    the start).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.norm2 = RMSNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = SwiGLU(width, mlp_ratio)
        self.adaln_modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 6 * width)))

    def forward(self, x: Tensor, c: Tensor, rotary: Rotary) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln_modulation(c).chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulated(self.norm1(x), shift1, scale1), rotary)
        return x + gate2 * self.mlp(modulated(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Modulated norm, then one linear head for the image tokens and one for each extra leaf; all
    zero at the start.
    """

    def __init__(self, width: int, outputs: int, leaves: Mapping[str, int]) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.linear = zeroed(nn.Linear(width, outputs))
        self.adaln_modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 2 * width)))
        self.leaves = tuple(leaves)
        for leaf, size in leaves.items():
            self.add_module(f"{leaf}_linear", zeroed(nn.Linear(width, size)))

    def forward(self, x: Tensor, c: Tensor) -> State:
        """x, c [B, leaves + N, D] -> `image` [B, N, p p C], and each leaf [B, width]."""
        shift, scale = self.adaln_modulation(c).chunk(2, dim=-1)
        return read_out(self, modulated(self.norm(x), shift, scale))


def _check(config: DdtConfig, latent: LatentSpec) -> None:
    check_positive(
        config, ("depth", "width", "heads", "decoder_depth", "decoder_width", "decoder_heads")
    )
    check_hidden(min(config.width, config.decoder_width), config.mlp_ratio)
    check_head_width("backbone.heads", config.width, config.heads)
    check_head_width("backbone.decoder_heads", config.decoder_width, config.decoder_heads)
    check_patch(latent)
