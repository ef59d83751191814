"""JiT and PixNerd evaluated in numpy float64, one sample at a time, written from their description.

It shares no line with the package, and keeps to the papers where the package departs in form only:
time runs from noise to data, and a condition comes before the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Array = np.ndarray


class NumpyAdaln:
    """`places` [N, channel pairs of a head]: by how much each image token turns each pair."""

    def __init__(
        self, weights: Mapping[str, Array], heads: int, period: float, places: Array
    ) -> None:
        self.weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
        self.heads, self.period, self.places = heads, period, places

    def number(self, x: float, name: str) -> Array:
        """A number -> [D]."""
        waves = [x * self.period ** (-j / 128) for j in range(128)]
        features = np.array([np.cos(w) for w in waves] + [np.sin(w) for w in waves])
        return self.linear(silu(self.linear(features, f"{name}.first")), f"{name}.second")

    def moment(self, data_time: float, told: Mapping[str, float]) -> Array:
        """Data time, and what else is told by the name of its embedding -> [D]."""
        total = self.number(data_time, "moment.time")
        for name, value in told.items():
            total = total + self.number(value, f"moment.{name}")
        return total

    def label(self, label: int) -> tuple[Array, Array]:
        """A class -> its vector [D] and its tokens [L, D]."""
        vector = self.weights["context.table.weight"][label]
        offsets = self.weights.get("context.offsets", np.zeros((0, len(vector))))
        return vector, np.stack([vector + o for o in offsets]) if len(offsets) else offsets

    def text(self, features: Array) -> tuple[Array, Array]:
        """Features of the real tokens [L, F] -> their mean [D] and tokens [L, D]."""
        normed = self.norm(features, "context.embed.norm")
        tokens = self.linear(normed, "context.embed.proj")
        return (tokens.mean(0) if len(tokens) else np.zeros(tokens.shape[1])), tokens

    def leaf(self, value: Array, name: str) -> Array:
        """[width] -> [1, D]"""
        embedded = self.linear(value, f"leaves.embeds.{name}.0")
        return self.norm(embedded, f"leaves.embeds.{name}.1")[None]

    def blocks(self, image: Array, leaf: Array, context: Array, c: Array, start: int) -> Array:
        """Image [N, D], leaf tokens [K, D], condition [L, D] -> leaves and image [K + N, D]."""
        s, before = np.concatenate([leaf, image]), len(leaf)
        depth = 1 + max(int(n.split(".")[1]) for n in self.weights if n.startswith("blocks."))
        for number in range(depth):
            if number == start:
                s, before = np.concatenate([context, s]), before + len(context)
            s = self.block(s, c, f"blocks.{number}", before)
        return s[len(s) - len(image) - len(leaf) :]

    def block(self, s: Array, c: Array, at: str, before: int) -> Array:
        parts = np.split(self.linear(c, f"{at}.adaln_modulation"), 6)
        moved = self.norm(s, f"{at}.norm1") * (1 + parts[1]) + parts[0]
        s = s + parts[2] * self.attention(moved, at, before)
        moved = self.norm(s, f"{at}.norm2") * (1 + parts[4]) + parts[3]
        gate, value = (self.linear(moved, f"{at}.mlp.{name}") for name in ("w1", "w2"))
        return s + parts[5] * self.linear(silu(gate) * value, f"{at}.mlp.w3")

    def attention(self, x: Array, at: str, before: int) -> Array:
        size = x.shape[1] // self.heads
        out = []
        for head in range(self.heads):
            mine = slice(head * size, (head + 1) * size)
            q, k, v = (self.linear(x, f"{at}.attn.{name}")[:, mine] for name in "qkv")
            q = self.turned(self.norm(q, f"{at}.attn.q_norm"), before)
            k = self.turned(self.norm(k, f"{at}.attn.k_norm"), before)
            shares = np.exp(q @ k.T / np.sqrt(size))
            out.append(shares / shares.sum(1, keepdims=True) @ v)
        return self.linear(np.concatenate(out, axis=1), f"{at}.attn.proj")

    def turned(self, x: Array, before: int) -> Array:
        """[S, size]: pairs of neighbouring channels as complex numbers; only the image turns."""
        pairs = x[:, 0::2] + 1j * x[:, 1::2]
        pairs[before:] = pairs[before:] * np.exp(1j * self.places)
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)

    def final_norm(self, s: Array, c: Array, at: str) -> Array:
        shift, scale = np.split(self.linear(c, f"{at}.adaln_modulation"), 2)
        return self.norm(s, f"{at}.norm") * (1 + scale) + shift

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, x: Array, name: str) -> Array:
        length = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x / length * self.weights[f"{name}.weight"]


def cut(image: Array, patch: int) -> list[Array]:
    """[C, h, w] -> patches [C, p, p], row by row."""
    _, height, width = image.shape
    return [
        image[:, y : y + patch, x : x + patch]
        for y in range(0, height, patch)
        for x in range(0, width, patch)
    ]


def joined(pixel: Callable[[int, int, int], Array], size: tuple[int, int], patch: int) -> Array:
    """[C, h, w] of what `pixel(patch number, row, column)` gives, [C]."""
    columns = size[1] // patch
    rows = [
        [pixel(y // patch * columns + x // patch, y % patch, x % patch) for x in range(size[1])]
        for y in range(size[0])
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))
