"""LightningDiT (arXiv 2501.01423) as NanoGen uses it (arXiv 2606.24888): a plain stack of blocks.

Time, numbers and condition are tokens in context, as in the encoder of DDT; there is no decoder and
no modulation anywhere. The head is a norm and a linear layer, 0 at initialisation.

    out = head(norm(encoder([leaves] image | time | class or text)))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import chz
from torch import Tensor, nn

from nanogen.backbones.in_context import EncoderBlock, InContext, condition_embed, read_out
from nanogen.backbones.layers import PatchEmbed, RMSNorm, Rotary, TimeEmbed, unpatchified, zeroed
from nanogen.backbones.refusals import (
    check_head_width,
    check_hidden,
    check_patch,
    check_positive,
)
from nanogen.backbones.wanted import Wanted
from nanogen.registry import register
from nanogen.types import Condition, ConditionSpec, LatentSpec, Prediction, State, Wiring


@register(
    "backbone", "lightning-dit", summary="plain diffusion transformer with in-context conditions"
)
@chz.chz
class LightningDitConfig:
    """Defaults are the size of the paper's 88M network."""

    depth: int = chz.field(default=12, doc="blocks")
    width: int = chz.field(default=768, doc="width D")
    heads: int = 12
    mlp_ratio: float = 4.0

    def build(self, latent: LatentSpec, condition: ConditionSpec, wiring: Wiring) -> LightningDit:
        """ConfigError where sizes do not fit together, or a head reads no block there is."""
        return LightningDit(self, latent, condition, wiring)


class LightningDit(InContext):
    def __init__(
        self,
        config: LightningDitConfig,
        latent: LatentSpec,
        condition: ConditionSpec,
        wiring: Wiring,
    ) -> None:
        check_positive(config, ("depth", "width", "heads"))
        check_hidden(config.width, config.mlp_ratio)
        check_head_width("backbone.heads", config.width, config.heads)
        check_patch(latent)
        super().__init__(config.depth, latent, wiring)
        width, patch = config.width, latent.patch
        self.x_embedder = PatchEmbed(latent.channels, patch, width)
        self.t_embedder = TimeEmbed(width)
        self.ctx_embedder = condition_embed(condition, width)
        self._add_numbers(width)
        self.blocks = nn.ModuleList(
            EncoderBlock(width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        for leaf in self.leaves:
            self._add_leaf(leaf, width)
        outputs = latent.channels * patch * patch
        self.final_layer = PlainHead(width, outputs, self.leaves)
        for name in wiring.heads:
            self.add_module(f"{name}_final_layer", PlainHead(width, outputs, {}))
        self.enc_rope = Rotary(
            latent.height // patch,
            latent.width // patch,
            width // config.heads,
            before=len(self.leaves),
        )

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
        found = self.final_layer(after[self.depth])
        first = len(self.leaves)
        heads = {
            name: unpatchified(
                getattr(self, f"{name}_final_layer")(after[block][:, first:])["image"],
                self.latent,
            )
            for name, block in wanted.heads.items()
        }
        found |= {"image": unpatchified(found["image"], self.latent)}
        return Prediction(found, wanted.features(after), heads)

    def _tokens(self, state: State) -> Tensor:
        return self._with_leaves(self.x_embedder(state["image"]), state)


class PlainHead(nn.Module):
    """Norm, then one linear layer for the image tokens and one for each leaf; all zero at the
    start.
    """

    def __init__(self, width: int, outputs: int, leaves: Mapping[str, int]) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width)
        self.linear = zeroed(nn.Linear(width, outputs))
        self.leaves = tuple(leaves)
        for leaf, size in leaves.items():
            self.add_module(f"{leaf}_linear", zeroed(nn.Linear(width, size)))

    def forward(self, x: Tensor) -> State:
        """x [B, leaves + N, D] -> `image` [B, N, p p C], and each leaf [B, width]."""
        return read_out(self, self.norm_final(x))
