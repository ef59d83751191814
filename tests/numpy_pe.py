"""The Perception Encoder in numpy, written from its description: tokens of one normalised image."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erf

Arrays = dict[str, np.ndarray]


def encode(w: Arrays, image: np.ndarray, patch: int, heads: int) -> np.ndarray:
    """image [3, S, S], normalised -> [T, D]; whether there is a class token, layer scale or final
    norm is read off the weights.
    """
    grid = image.shape[1] // patch
    kernel = w["conv1.weight"].reshape(len(w["conv1.weight"]), -1)
    tokens = [
        kernel @ image[:, r : r + patch, c : c + patch].ravel()
        for r in range(0, grid * patch, patch)
        for c in range(0, grid * patch, patch)
    ]
    positions = w["positional_embedding"]
    first = "class_embedding" in w
    if first:
        tokens.insert(0, w["class_embedding"])
    x = np.stack(tokens) + np.concatenate(
        [positions[:first], bilinear(positions[int(first) :], grid)]
    )
    x = norm(x, w, "ln_pre")
    places = [(c + first, r + first) for r in range(grid) for c in range(grid)]
    places = [(0, 0)] * first + places
    depth = 1 + max(int(n.split(".")[2]) for n in w if n.startswith("transformer."))
    for number in range(depth):
        prefix = f"transformer.resblocks.{number}."
        block = {n.removeprefix(prefix): v for n, v in w.items() if n.startswith(prefix)}
        x = x + block.get("ls_1.gamma", 1.0) * attention(
            norm(x, block, "ln_1"), block, heads, places
        )
        x = x + block.get("ls_2.gamma", 1.0) * mlp(norm(x, block, "ln_2"), block)
    return norm(x, w, "ln_post") if "ln_post.weight" in w else x


def attention(x: np.ndarray, w: Arrays, heads: int, places: list[tuple[int, int]]) -> np.ndarray:
    width = x.shape[1] // heads
    q, k, v = np.split(x @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"], 3, axis=1)
    out = np.empty_like(x)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        queries = np.stack(
            [turn(row, place) for row, place in zip(q[:, part], places, strict=True)]
        )
        keys = np.stack([turn(row, place) for row, place in zip(k[:, part], places, strict=True)])
        scores = queries @ keys.T / math.sqrt(width)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        out[:, part] = scores / scores.sum(1, keepdims=True) @ v[:, part]
    return out @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]


def turn(row: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    """A vector as complex numbers, one a pair of neighbours, each turned by its angle."""
    pairs = row[0::2] + 1j * row[1::2]
    half = len(row) // 2
    column, line = place
    for i in range(len(pairs)):
        coordinate, j = (column, i) if i < len(pairs) // 2 else (line, i - len(pairs) // 2)
        pairs[i] *= np.exp(1j * coordinate * 10_000 ** (-2 * j / half))
    turned = np.empty_like(row)
    turned[0::2], turned[1::2] = pairs.real, pairs.imag
    return turned


def mlp(x: np.ndarray, w: Arrays) -> np.ndarray:
    hidden = x @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"]
    hidden = hidden * (1 + erf(hidden / math.sqrt(2))) / 2
    return hidden @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]


def norm(x: np.ndarray, w: Arrays, name: str) -> np.ndarray:
    centred = x - x.mean(1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def bilinear(table: np.ndarray, side: int) -> np.ndarray:
    """A square table [m^2, D] at `side` x `side` places: the two nearest rows and columns of each,
    pixel centres at halves, without a filter.
    """
    old = math.isqrt(len(table))
    weights = np.zeros((side, old))
    for i in range(side):
        place = min(max((i + 0.5) * old / side - 0.5, 0), old - 1)
        low = min(int(place), old - 1)
        high = min(low + 1, old - 1)
        weights[i, low] += 1 - (place - low)
        weights[i, high] += place - low
    square = table.reshape(old, old, -1)
    return np.einsum("ij,kl,jlc->ikc", weights, weights, square).reshape(side * side, -1)
