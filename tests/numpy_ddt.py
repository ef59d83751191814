"""DDT evaluated in numpy float64, written from its description: an independent implementation.

It shares no line with the package. `weights` are named as in the checkpoints of diffusion-bench.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Array = np.ndarray


class NumpyDdt:
    """`heads` and `depth` are (encoder, decoder)."""

    def __init__(
        self,
        weights: Mapping[str, Array],
        patch: int,
        depth: tuple[int, int],
        heads: tuple[int, int],
    ) -> None:
        self.weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
        self.patch, self.depth, self.heads = patch, depth, heads

    def __call__(
        self, x: Array, t: Array, context: Array, real: Array | None, cls: Array | None = None
    ) -> dict[str, Array]:
        """x [B, C, h, w], t [B], context: class ids [B] or features [B, L, D'] with real [B, L]."""
        w = self.weights
        batch, _, height, width = x.shape
        grid = (height // self.patch, width // self.patch)
        image = self.patches(x, "s_embedder")
        first = 0
        if cls is not None:
            image = np.concatenate([self.leaf(cls, "enc"), image], axis=1)
            first = 1
        phase = 2 * np.pi * t[:, None] * w["t_embedder.W"]
        time = np.concatenate([np.sin(phase), np.cos(phase)], axis=1)
        time = self.linear(silu(self.linear(time, "t_embedder.mlp.0")), "t_embedder.mlp.2")
        tokens = [image, time[:, None] + w["t_embedder.learnable_tokens"], self.context(context)]
        s = np.concatenate(tokens, axis=1)
        visible = np.ones(s.shape[:2], bool)
        if real is not None:
            visible[:, s.shape[1] - real.shape[1] :] = real.astype(bool)
        for block in range(self.depth[0]):
            at = f"blocks.{block}"
            normed = self.norm(s, f"{at}.norm1")
            s = s + self.attention(normed, at, self.heads[0], (first, grid), visible)
            s = s + self.feed_forward(self.norm(s, f"{at}.norm2"), at)
        c = silu(time[:, None] + s[:, : image.shape[1]])
        if "s_projector.weight" in w:
            c = self.linear(c, "s_projector")
        h = self.patches(x, "x_embedder")
        if cls is not None:
            h = np.concatenate([self.leaf(cls, "dec"), h], axis=1)
        every = np.ones(h.shape[:2], bool)
        for block in range(self.depth[0], sum(self.depth)):
            at = f"blocks.{block}"
            parts = self.linear(silu(c), f"{at}.adaln_modulation.1")
            shift1, scale1, gate1, shift2, scale2, gate2 = np.split(parts, 6, axis=-1)
            moved = self.norm(h, f"{at}.norm1") * (1 + scale1) + shift1
            h = h + gate1 * self.attention(moved, at, self.heads[1], (first, grid), every)
            moved = self.norm(h, f"{at}.norm2") * (1 + scale2) + shift2
            h = h + gate2 * self.feed_forward(moved, at)
        shift, scale = np.split(self.linear(silu(c), "final_layer.adaln_modulation.1"), 2, axis=-1)
        h = self.norm(h, "final_layer.norm") * (1 + scale) + shift
        out = self.linear(h[:, first:], "final_layer.linear")
        # Each token holds its patch as (row, column, channel), channel fastest.
        p = self.patch
        out = out.reshape(batch, *grid, p, p, -1)
        result = {"image": np.einsum("byxijc->bcyixj", out).reshape(batch, -1, height, width)}
        if cls is not None:
            result["cls"] = self.linear(h[:, 0], "final_layer.cls_linear")
        return result

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
        token = self.linear(cls, f"cls_in_proj_{side}")
        return self.norm(token, f"cls_in_norm_{side}")[:, None]

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
