"""Counter-based randomness: known answers, and each row a function of its key alone."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from nanogen import rng

KEYS = torch.arange(20_000)

# Random123's known answers (kat_vectors, philox4x32 with 10 rounds): counter, key, words.
KNOWN = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    found = rng.philox(tuple(torch.tensor([c]) for c in words(counter)), words(key))
    assert tuple(int(word) for word in found) == words(expected)


def test_rows_depend_on_their_key_only() -> None:
    keys = torch.tensor([5, 2**31, 2**32 + 5, 0, 2**40 + 1])
    whole = rng.normal(1, "noise", keys, (3, 5))
    for split in ([1, 4], [2, 3], [1, 1, 1, 1, 1]):
        parts = [rng.normal(1, "noise", part, (3, 5)) for part in keys.split(split)]
        assert torch.equal(torch.cat(parts), whole)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(rng.normal(1, "noise", keys[order], (3, 5)), whole[order])
    # Keys that agree in their low 32 bits are still different keys.
    assert not torch.equal(whole[0], whole[2])


def test_longer_draws_begin_like_shorter_ones() -> None:
    long = rng.uniform(1, "noise", KEYS[:10], 13)
    assert torch.equal(rng.uniform(1, "noise", KEYS[:10], 6), long[:, :6])


def test_nothing_is_remembered() -> None:
    first = rng.uniform(3, "a", KEYS[:5], 4)
    torch.manual_seed(0)
    rng.uniform(4, "b", KEYS[:5], 4)
    assert torch.equal(rng.uniform(3, "a", KEYS[:5], 4), first)


def test_normal_is_normal() -> None:
    values = rng.normal(0, "noise", KEYS, (4,)).double()
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 0.01
    # Both halves of Box-Muller, and neighbours within a row, are uncorrelated.
    correlation = torch.corrcoef(values.T).fill_diagonal_(0).abs().max()
    assert correlation < 4 / math.sqrt(len(KEYS))
    assert abs(stats.kurtosis(values.flatten().numpy())) < 0.05


@pytest.mark.parametrize(
    "one, other",
    [((0, "noise", 0), (1, "noise", 0)), ((0, "noise", 0), (0, "time", 0))]
    + [((0, "noise", 0), (0, "noise", 1)), ((0, "noise", 0), (0, "noise", 2**32))],
    ids=["seed", "purpose", "next key", "high half of the key"],
)
def test_streams_are_independent(one: tuple, other: tuple) -> None:
    a, b = (rng.normal(s, p, KEYS + shift, ()).double() for s, p, shift in (one, other))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 4 / math.sqrt(len(KEYS))
    assert abs(torch.corrcoef(torch.stack([a**2, b**2]))[0, 1]) < 4 / math.sqrt(len(KEYS))


def test_uniform_is_uniform_and_open() -> None:
    values = rng.uniform(0, "dropout", KEYS, 8)
    assert stats.kstest(values.flatten().double().numpy(), "uniform").pvalue > 0.01
    assert 0 < values.min() and values.max() < 1


def test_extreme_words_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least and the greatest word map to numbers inside (0, 1): their logarithms are finite."""
    extremes = torch.tensor([[0, 2**24 - 1]])
    monkeypatch.setattr(rng, "_words", lambda *_: extremes)
    least, greatest = rng.uniform(0, "any", KEYS[:1], 2)[0].tolist()
    assert least == 2.0**-24 and greatest == 1 - 2.0**-24


def test_shapes() -> None:
    assert rng.normal(0, "a", KEYS[:3], ()).shape == (3,)
    assert rng.normal(0, "a", KEYS[:3], (5,)).shape == (3, 5)
    assert rng.normal(0, "a", KEYS[:0], (2, 2)).shape == (0, 2, 2)
    assert rng.normal(0, "a", KEYS[:3], (2, 3)).dtype == torch.float32
