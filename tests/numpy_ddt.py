"""DDT and LightningDiT evaluated in numpy float64, written from their description: an independent
implementation.

It shares no line with the package. `weights` are named as in the checkpoints of diffusion-bench.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Told:
    """What a network is told besides the image [B, C, h, w]."""

    t: Array
    context: Array
    """class ids [B], or features [B, L, D'] with `real` [B, L]"""
    real: Array | None = None
    cls: Array | None = None
    interval: Array | None = None
    scalars: Mapping[str, Array] = field(default_factory=dict)


class Numpy:
    """Layers, and the encoder that DDT and LightningDiT share."""

    embedder, side = "x_embedder", ""
    """names of the encoder's embeddings of the image, and of the class token"""

    def __init__(self, weights: Mapping[str, Array], patch: int, depth: int, heads: int) -> None:
        self.weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
        self.patch, self.depth, self.heads = patch, depth, heads

    def encoder(self, x: Array, told: Told) -> tuple[Array, list[Array]]:
        """The base embedding of time [B, D], and the tokens of class and image before the first
        block, and after each.
        """
        tokens = self.patches(x, self.embedder)
        if told.cls is not None:
            tokens = np.concatenate([self.leaf(told.cls, self.side), tokens], axis=1)
        own, place = tokens.shape[1], self.place(x, told)
        # MeanFlow: the interval takes the place of the time, which gets an embedding of its own.
        first = told.t if told.interval is None else told.interval
        parts = [tokens, self.time_tokens(first, "t_embedder")]
        if told.interval is not None:
            parts.append(self.time_tokens(told.t, "t_abs_embedder"))
        for name, value in told.scalars.items():
            parts.append(self.time_tokens(np.log(1 + value), f"scalar_embedders.{name}"))
        s = np.concatenate([*parts, self.context(told.context)], axis=1)
        visible = np.ones(s.shape[:2], bool)
        if told.real is not None:
            visible[:, s.shape[1] - told.real.shape[1] :] = told.real.astype(bool)
        found = [tokens]
        for block in range(self.depth):
            at = f"blocks.{block}"
            normed = self.norm(s, f"{at}.norm1")
            s = s + self.attention(normed, at, self.heads, place, visible)
            s = s + self.feed_forward(self.norm(s, f"{at}.norm2"), at)
            found.append(s[:, :own])
        return self.time(first, "t_embedder"), found

    def place(self, x: Array, told: Told) -> tuple[int, tuple[int, int]]:
        """Where the image tokens begin, and their grid."""
        grid = (x.shape[2] // self.patch, x.shape[3] // self.patch)
        return 0 if told.cls is None else 1, grid

    def time(self, t: Array, name: str) -> Array:
        phase = 2 * np.pi * t[:, None] * self.weights[f"{name}.W"]
        waves = np.concatenate([np.sin(phase), np.cos(phase)], axis=1)
        return self.linear(silu(self.linear(waves, f"{name}.mlp.0")), f"{name}.mlp.2")

    def time_tokens(self, t: Array, name: str) -> Array:
        return self.time(t, name)[:, None] + self.weights[f"{name}.learnable_tokens"]

    def image(self, patches: Array, grid: tuple[int, int]) -> Array:
        """Each token holds its patch as (row, column, channel), channel fastest."""
        p, batch = self.patch, len(patches)
        cut = patches.reshape(batch, *grid, p, p, -1)
        return np.einsum("byxijc->bcyixj", cut).reshape(batch, -1, grid[0] * p, grid[1] * p)

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, x: Array, name: str) -> Array:
        scale = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x / scale * self.weights[f"{name}.weight"]

    def patches(self, x: Array, name: str) -> Array:
        """A strided convolution, written as a product with each patch."""
        kernel, p = self.weights[f"{name}.proj.weight"], self.patch
        cut = x.reshape(*x.shape[:2], x.shape[2] // p, p, x.shape[3] // p, p)
        out = np.einsum("bcyixj,dcij->byxd", cut, kernel)
        return out.reshape(len(x), -1, len(kernel)) + self.weights[f"{name}.proj.bias"]

    def leaf(self, cls: Array, side: str) -> Array:
        token = self.linear(cls, f"cls_in_proj{side}")
        return self.norm(token, f"cls_in_norm{side}")[:, None]

    def context(self, context: Array) -> Array:
        w = self.weights
        if "ctx_embedder.proj.weight" in w:
            return self.linear(self.norm(context, "ctx_embedder.norm"), "ctx_embedder.proj")
        table = w["ctx_embedder.embedding_table.weight"]
        return table[context.astype(int)][:, None] + w["ctx_embedder.learnable_tokens"]

    def attention(
        self, x: Array, at: str, heads: int, place: tuple[int, tuple[int, int]], visible: Array
    ) -> Array:
        split = (*x.shape[:2], heads, -1)
        q, k, v = (self.linear(x, f"{at}.attn.{name}").reshape(split) for name in "qkv")
        q = rotated(self.norm(q, f"{at}.attn.q_norm"), *place)
        k = rotated(self.norm(k, f"{at}.attn.k_norm"), *place)
        logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
        logits = np.where(visible[:, None, None], logits, -np.inf)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        y = np.einsum("bhqk,bkhd->bqhd", shares, v).reshape(x.shape)
        return self.linear(y, f"{at}.attn.proj")

    def feed_forward(self, x: Array, at: str) -> Array:
        gate, value = (self.linear(x, f"{at}.mlp.{name}") for name in ("w1", "w2"))
        return self.linear(silu(gate) * value, f"{at}.mlp.w3")


class NumpyDdt(Numpy):
    """DDT; `decoder` is the depth and the heads of its decoder."""

    embedder, side = "s_embedder", "_enc"

    def __init__(
        self,
        weights: Mapping[str, Array],
        patch: int,
        encoder: tuple[int, int],
        decoder: tuple[int, int],
    ) -> None:
        super().__init__(weights, patch, *encoder)
        self.decoder = decoder

    def __call__(self, x: Array, told: Told, base_block: int | None = None) -> dict[str, Array]:
        """`image`, `cls` where it is told one, `base` of internal guidance, and `block<i>`."""
        time, found = self.encoder(x, told)
        first, grid = self.place(x, told)
        c = silu(time[:, None] + found[-1])
        if "s_projector.weight" in self.weights:
            c = self.linear(c, "s_projector")
        h = self.patches(x, "x_embedder")
        if told.cls is not None:
            h = np.concatenate([self.leaf(told.cls, "_dec"), h], axis=1)
        every = np.ones(h.shape[:2], bool)
        for block in range(self.depth, self.depth + self.decoder[0]):
            at = f"blocks.{block}"
            parts = self.linear(silu(c), f"{at}.adaln_modulation.1")
            shift1, scale1, gate1, shift2, scale2, gate2 = np.split(parts, 6, axis=-1)
            moved = self.norm(h, f"{at}.norm1") * (1 + scale1) + shift1
            h = h + gate1 * self.attention(moved, at, self.decoder[1], (first, grid), every)
            moved = self.norm(h, f"{at}.norm2") * (1 + scale2) + shift2
            h = h + gate2 * self.feed_forward(moved, at)
        h = self.modulated(h, c, "final_layer")
        result = {f"block{number}": tokens for number, tokens in enumerate(found)}
        result["image"] = self.image(self.linear(h[:, first:], "final_layer.linear"), grid)
        if told.cls is not None:
            result["cls"] = self.linear(h[:, 0], "final_layer.cls_linear")
        if base_block is not None:
            u = silu(time[:, None] + found[base_block][:, first:])
            u = self.modulated(u, u, "base_final_layer")
            result["base"] = self.image(self.linear(u, "base_final_layer.linear"), grid)
        return result

    def modulated(self, h: Array, c: Array, name: str) -> Array:
        shift, scale = np.split(self.linear(silu(c), f"{name}.adaln_modulation.1"), 2, axis=-1)
        return self.norm(h, f"{name}.norm") * (1 + scale) + shift


class NumpyLightningDit(Numpy):
    """LightningDiT: the encoder alone, and plain heads."""

    def __call__(self, x: Array, told: Told, base_block: int | None = None) -> dict[str, Array]:
        """As DDT's."""
        _, found = self.encoder(x, told)
        first, grid = self.place(x, told)
        normed = self.norm(found[-1], "final_layer.norm_final")
        result = {f"block{number}": tokens for number, tokens in enumerate(found)}
        result["image"] = self.image(self.linear(normed[:, first:], "final_layer.linear"), grid)
        if told.cls is not None:
            result["cls"] = self.linear(normed[:, 0], "final_layer.cls_linear")
        if base_block is not None:
            u = self.norm(found[base_block][:, first:], "base_final_layer.norm_final")
            result["base"] = self.image(self.linear(u, "base_final_layer.linear"), grid)
        return result


def rotated(x: Array, first: int, grid: tuple[int, int]) -> Array:
    """x [B, S, heads, d]: image tokens, from `first` on, turn by row and column; others stay."""
    d, x = x.shape[-1], x.copy()
    for number in range(grid[0] * grid[1]):
        row, column = divmod(number, grid[1])
        for axis, position in enumerate((row, column)):
            for j in range(d // 4):
                angle = position * 10_000 ** (-2 * j / (d // 2))
                even = axis * d // 2 + 2 * j
                a, b = (
                    x[:, first + number, :, even].copy(),
                    x[:, first + number, :, even + 1].copy(),
                )
                x[:, first + number, :, even] = a * np.cos(angle) - b * np.sin(angle)
                x[:, first + number, :, even + 1] = b * np.cos(angle) + a * np.sin(angle)
    return x


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))
