"""Streaming statistics against numpy, and their files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from nanogen.data.animals import Animals
from nanogen.errors import ConfigError
from nanogen.tokenizers import statistics
from nanogen.tokenizers.statistics import Images, Moments, Statistics

SHAPE = (5, 3, 2)


def values(n: int = 40, offset: float = 100.0) -> torch.Tensor:
    """Far from zero: where a sum of squares would lose its digits."""
    return offset + torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0))


def moments(parts) -> Moments:
    found = Moments()
    for part in parts:
        found.add(part)
    return found


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [7, 13, 20], [39, 1]])
def test_any_batches_give_the_population_moments(sizes: list[int]) -> None:
    given = values()
    found = moments(given.split(sizes)).across()
    exact = given.double().numpy()
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.variance, exact.var(0), rtol=1e-6)
    assert found.mean.dtype == torch.float32 and found.mean.shape == SHAPE


def test_two_streams_merge() -> None:
    given = values()
    one, other = moments(given[:11].split(4)), moments(given[11:].split(9))
    one.merge(other)
    whole = moments([given])
    assert one.count == whole.count == 40
    torch.testing.assert_close(one.mean, whole.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(one.squares, whole.squares, rtol=1e-11, atol=0)
    one.merge(Moments())
    assert one.count == 40


def test_measured_over_a_data_set() -> None:
    source = Animals().build()
    found = statistics.measure(lambda x: x, source, Images("held-out", 50, 7), torch.device("cpu"))
    numbers = [i * source.count("held-out") // 50 for i in range(50)]
    pixels = np.stack([source.read("held-out", i, i).image.numpy() / 255.0 for i in numbers])
    np.testing.assert_allclose(found.mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.variance, pixels.var(0), atol=1e-6)


def test_power_tells_the_norm() -> None:
    """After a LayerNorm without affine the mean square of a token is 1; with affine it is not."""
    tokens = torch.nn.functional.layer_norm(torch.randn(64, 6, 32) * 3 + 1, (32,))
    plain = moments([tokens.transpose(1, 2).unflatten(2, (2, 3))]).across()
    assert plain.power == pytest.approx(1, abs=1e-4)
    scaled = moments([(1.7 * tokens + 0.3).transpose(1, 2).unflatten(2, (2, 3))]).across()
    assert scaled.power == pytest.approx(1.7**2 + 0.3**2, rel=1e-3)


def test_files(tmp_path: Path) -> None:
    found = moments([values()]).across()
    statistics.save(found, tmp_path / "s.safetensors")
    torch.save({"mean": found.mean, "var": found.variance}, tmp_path / "stats.pt")
    for name in ("s.safetensors", "stats.pt"):
        again = statistics.load(tmp_path / name, SHAPE)
        assert torch.equal(again.mean, found.mean) and torch.equal(again.variance, found.variance)
    torch.testing.assert_close(found.scale, 1 / (found.variance + 1e-5).sqrt())


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"mean": torch.zeros(5), "var": torch.ones(5)}, "mean in .* is [5], but the latents are"),
        ({"mean": torch.zeros(3, 2, 5), "var": torch.ones(SHAPE)}, "mean in .* is [3, 2, 5]"),
        ({"mean": torch.zeros(SHAPE)}, "holds mean, not mean and var"),
        ({"mean": torch.zeros(SHAPE), "var": -torch.ones(SHAPE)}, "values that no var has"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, tensors, message: str) -> None:
    torch.save(tensors, tmp_path / "stats.pt")
    pattern = message.replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ConfigError, match=pattern):
        statistics.load(tmp_path / "stats.pt", SHAPE)
    (tmp_path / "broken.pt").write_bytes(b"not a file of tensors")
    with pytest.raises(ConfigError, match="is not a readable file"):
        statistics.load(tmp_path / "broken.pt", SHAPE)


def test_too_few_images() -> None:
    source = Animals().build()
    for images, message in (
        (Images("held-out", 1), "at least 2"),
        (Images("held-out", 10**6), "of a held-out split of 2000"),
        (Images("test", 5), "unknown split 'test'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            statistics.measure(lambda x: x, source, images, torch.device("cpu"))
    with pytest.raises(ConfigError, match="at least 2 images, not 1"):
        moments([values(1)]).across()
    assert isinstance(moments([values(2)]).across(), Statistics)
