"""DDT, the decoupled diffusion transformer (arXiv 2504.05741), as NanoGen uses it (arXiv
2606.24888).

* The encoder reads image tokens with the condition in context: four time tokens, then eight class
  tokens or the text. It has no AdaLN; every token attends to every real token.
* Its image tokens, with the time added, modulate a short and wide decoder token by token.
* The decoder embeds the noisy input again and returns the prediction, exactly 0 at initialisation.

    s = [cls] image | time | class or text              encoder tokens, [B, S, D]
    c = P(silu(time + s_image))                         conditions of the decoder, [B, N, D_decoder]
    out = head(decoder(embed(x), c))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import chz
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogen.backbones.layers import (
    Attention,
    LabelEmbed,
    PatchEmbed,
    RMSNorm,
    Rotary,
    SwiGLU,
    TextEmbed,
    TimeEmbed,
    modulated,
)
from nanogen.errors import ConfigError
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
        return Ddt(self, latent, condition, wiring)


class Ddt(nn.Module):
    def __init__(
        self,
        config: DdtConfig,
        latent: LatentSpec,
        condition: ConditionSpec,
        wiring: Wiring,
    ) -> None:
        super().__init__()
        _check(config, latent)
        width, wide, patch = config.width, config.decoder_width, latent.patch
        self.latent, self.depth, self.leaves = latent, config.depth, dict(wiring.leaves)
        rows, columns = latent.height // patch, latent.width // patch
        self.s_embedder = PatchEmbed(latent.channels, patch, width)
        self.x_embedder = PatchEmbed(latent.channels, patch, wide)
        self.t_embedder = TimeEmbed(width)
        self.ctx_embedder = (
            LabelEmbed(condition.classes, width)
            if condition.classes is not None
            else TextEmbed(condition.width or 0, width)
        )
        self.s_projector = nn.Linear(width, wide) if width != wide else nn.Identity()
        encoder = [EncoderBlock(width, config.heads, config.mlp_ratio) for _ in range(config.depth)]
        decoder = [
            DecoderBlock(wide, config.decoder_heads, config.mlp_ratio)
            for _ in range(config.decoder_depth)
        ]
        self.blocks = nn.ModuleList([*encoder, *decoder])
        for leaf, size in self.leaves.items():
            self.add_module(f"{leaf}_in_proj_enc", nn.Linear(size, width))
            self.add_module(f"{leaf}_in_norm_enc", RMSNorm(width))
            self.add_module(f"{leaf}_in_proj_dec", nn.Linear(size, wide))
            self.add_module(f"{leaf}_in_norm_dec", RMSNorm(wide))
        self.final_layer = FinalLayer(wide, latent.channels * patch * patch, self.leaves)
        extra = len(self.leaves)
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
        """Noisy state, t `[B]`, condition -> prediction with the leaves of `state`, and wanted
        features.
        """
        base, image_tokens, features = self._encode(state, t, condition, want, self.depth)
        c = self.s_projector(F.silu(base[:, None] + image_tokens))
        x = self._with_leaves(self.x_embedder(state["image"]), state, "dec")
        for block in self.blocks[self.depth :]:
            x = block(x, c, self.dec_rope)
        return Prediction(self.final_layer(x, c, self._unpatchify), features)

    def features(
        self, state: State, t: Tensor, condition: Condition, want: Iterable[str]
    ) -> dict[str, Tensor]:
        """The wanted features alone: the same as those of `forward`, without the blocks after the
        last of them.
        """
        want = tuple(want)
        last = max(_block_numbers(want, self.depth), default=0)
        return self._encode(state, t, condition, want, last)[2]

    def _encode(
        self, state: State, t: Tensor, condition: Condition, want: Iterable[str], last: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Base embedding of time [B, D], image tokens [B, N, D] after encoder block `last`, and the
        wanted features up to there.
        """
        wanted = _block_numbers(want, self.depth)
        base, time_tokens = self.t_embedder(t)
        context, mask = self.ctx_embedder(condition)
        image_tokens = self._with_leaves(self.s_embedder(state["image"]), state, "enc")
        visual = image_tokens.shape[1]
        s = torch.cat([image_tokens, time_tokens, context], dim=1)
        visible = None
        if mask is not None:
            visible = F.pad(mask, (s.shape[1] - mask.shape[1], 0), value=True)[:, None, None]
        features = {}
        for number, block in enumerate(self.blocks[:last], start=1):
            s = block(s, self.enc_rope, visible)
            if number in wanted:
                features[f"block{number}"] = s[:, :visual]
        return base, s[:, :visual], features

    def _with_leaves(self, tokens: Tensor, state: State, side: str) -> Tensor:
        extra = [
            getattr(self, f"{leaf}_in_norm_{side}")(
                getattr(self, f"{leaf}_in_proj_{side}")(state[leaf])
            )[:, None]
            for leaf in self.leaves
        ]
        return torch.cat([*extra, tokens], dim=1) if extra else tokens

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        """[B, N, p p C], channel fastest, -> [B, C, h, w]."""
        p, rows = self.latent.patch, self.latent.height // self.latent.patch
        grid = tokens.unflatten(2, (p, p, -1)).unflatten(
            1, (rows, -1)
        )  # [B, rows, columns, p, p, C]
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


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
        self.adaln_modulation = nn.Sequential(nn.SiLU(), _zero(nn.Linear(width, 6 * width)))

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
        self.linear = _zero(nn.Linear(width, outputs))
        self.adaln_modulation = nn.Sequential(nn.SiLU(), _zero(nn.Linear(width, 2 * width)))
        self.leaves = tuple(leaves)
        for leaf, size in leaves.items():
            self.add_module(f"{leaf}_linear", _zero(nn.Linear(width, size)))

    def forward(self, x: Tensor, c: Tensor, unpatchify) -> State:
        shift, scale = self.adaln_modulation(c).chunk(2, dim=-1)
        x = modulated(self.norm(x), shift, scale)
        state = {"image": unpatchify(self.linear(x[:, len(self.leaves) :]))}
        for index, leaf in enumerate(self.leaves):
            state[leaf] = getattr(self, f"{leaf}_linear")(x[:, index])
        return state


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _block_numbers(want: Iterable[str], depth: int) -> set[int]:
    allowed = {f"block{i}": i for i in range(1, depth + 1)}
    unknown = [name for name in want if name not in allowed]
    if unknown:
        raise ConfigError(
            f"this backbone has no feature {unknown[0]!r}; it has block1 to block{depth}"
        )
    return {allowed[name] for name in want}


def _check(config: DdtConfig, latent: LatentSpec) -> None:
    for name in ("depth", "width", "heads", "decoder_depth", "decoder_width", "decoder_heads"):
        if getattr(config, name) < 1:
            raise ConfigError(f"backbone.{name}={getattr(config, name)}: must be at least 1")
    if config.mlp_ratio * min(config.width, config.decoder_width) < 1.5:
        raise ConfigError(f"backbone.mlp_ratio={config.mlp_ratio}: leaves no hidden unit; raise it")
    for name, width, heads in (
        ("backbone.heads", config.width, config.heads),
        ("backbone.decoder_heads", config.decoder_width, config.decoder_heads),
    ):
        if width % heads or (width // heads) % 4:
            raise ConfigError(
                f"{name}={heads}: width {width} / heads must be a multiple of 4 "
                "(2-D rotary positions)"
            )
    if latent.height % latent.patch or latent.width % latent.patch:
        raise ConfigError(
            f"patch {latent.patch} does not divide the latent grid {latent.height}x{latent.width}; "
            "choose a patch or an image size that fits"
        )
