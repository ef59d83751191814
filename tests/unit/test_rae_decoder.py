"""The decoder against a forward pass in numpy, written from its description."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nanogen.errors import ConfigError
from nanogen.tokenizers.rae_decoder import SIZES, DecoderConfig, RaeDecoder, positions

TINY = DecoderConfig(channels=6, grid=3, patch=2, width=16, depth=2, heads=2, hidden=24)


def decoder(config: DecoderConfig = TINY, seed: int = 0) -> RaeDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = RaeDecoder(config)
        for parameter in made.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-12) * weight + bias


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def by_hand(state: dict[str, np.ndarray], features: np.ndarray, config: DecoderConfig):
    """[C, h, w] of one image -> [3, H, W]."""
    w = lambda name: state[name]  # noqa: E731
    tokens = features.reshape(config.channels, -1).T @ w("in_proj.weight").T + w("in_proj.bias")
    x = np.concatenate([w("reg_token")[0], tokens]) + w("pos_embed")[0]
    size = config.width // config.heads
    for i in range(config.depth):
        p = f"blocks.{i}."
        y = norm(x, w(p + "norm1.weight"), w(p + "norm1.bias"))
        q, k, v = np.split(y @ w(p + "attn.qkv.weight").T + w(p + "attn.qkv.bias"), 3, axis=1)
        heads = []
        for h in range(config.heads):
            cut = slice(h * size, (h + 1) * size)
            scores = q[:, cut] @ k[:, cut].T / math.sqrt(size)
            scores = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(scores / scores.sum(1, keepdims=True) @ v[:, cut])
        x = x + np.concatenate(heads, 1) @ w(p + "attn.proj.weight").T + w(p + "attn.proj.bias")
        y = norm(x, w(p + "norm2.weight"), w(p + "norm2.bias"))
        y = gelu(y @ w(p + "mlp.fc1.weight").T + w(p + "mlp.fc1.bias"))
        x = x + y @ w(p + "mlp.fc2.weight").T + w(p + "mlp.fc2.bias")
    x = norm(x, w("norm.weight"), w("norm.bias"))
    x = (x @ w("out_proj.weight").T + w("out_proj.bias"))[1:]
    image = np.zeros((3, config.image_size, config.image_size))
    for place, values in enumerate(x):
        row, column = divmod(place, config.grid)
        for y in range(config.patch):
            for c in range(config.patch):
                at = (y * config.patch + c) * 3
                image[:, row * config.patch + y, column * config.patch + c] = values[at : at + 3]
    return image


def test_against_a_forward_by_hand() -> None:
    made = decoder()
    features = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(1))
    found = made(features).detach().double().numpy()
    state = {name: w.double().numpy() for name, w in made.state_dict().items()}
    for image, given in zip(found, features.double().numpy(), strict=True):
        np.testing.assert_allclose(image, by_hand(state, given, TINY), atol=1e-5)


@pytest.mark.parametrize(
    "size, parameters", [("B", 86_435_328), ("L", 304_150_272), ("XL", 415_352_704)]
)
def test_published_sizes(size: str, parameters: int) -> None:
    with torch.device("meta"):
        made = RaeDecoder(DecoderConfig(channels=768, grid=16, patch=16, **SIZES[size]))
    assert sum(p.numel() for p in made.parameters()) == parameters
    assert all(p.requires_grad for p in made.parameters())


def test_positions_start_as_in_mae() -> None:
    table = positions(3, 8)
    assert table.shape == (10, 8) and not table[0].any()
    # Row 1, column 2: the column first, its two sines, then its two cosines.
    for first, number in ((0, 2), (4, 1)):
        angles = [number, number / 100]
        wanted = [*map(math.sin, angles), *map(math.cos, angles)]
        torch.testing.assert_close(table[1 + 3 + 2, first : first + 4], torch.tensor(wanted))


def test_another_grid_is_resampled_first() -> None:
    made, features = decoder(), torch.randn(1, 6, 5, 5)
    small = torch.nn.functional.interpolate(features, (3, 3), mode="bilinear")
    torch.testing.assert_close(made(features), made(small))


def test_a_shape_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="multiple of 4 and of its 3 heads"):
        DecoderConfig(channels=6, grid=3, patch=2, width=16, depth=2, heads=3, hidden=24)
    with pytest.raises(ConfigError, match="depth=0"):
        DecoderConfig(channels=6, grid=3, patch=2, width=16, depth=0, heads=2, hidden=24)
