"""The beam search of mPLUG, against every sequence there is and against slow loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from nanogen.encoders.mplug_decoding import Rules, beam_search


def table(vocabulary: int, seed: int):
    """Log-probabilities of the next token as a fixed random function of the tokens before."""
    known: dict[tuple[int, ...], Tensor] = {}

    def of(tokens: tuple[int, ...]) -> Tensor:
        if tokens not in known:
            generator = torch.Generator().manual_seed(hash((seed, tokens)) % 2**31)
            known[tokens] = torch.randn(vocabulary, generator=generator) * 2
        return known[tokens].log_softmax(0)

    return of


def batched(tables: list):
    def next_logits(tokens: Tensor) -> Tensor:
        return torch.stack(
            [
                torch.stack([of(tuple(beam)) for beam in beams.tolist()])
                for of, beams in zip(tables, tokens, strict=True)
            ]
        )

    return next_logits


def exhaustive(of, vocabulary: int, rules: Rules) -> list[int]:
    """Every sequence of every length: the rules of the search, without beams.

    A sequence may go on beyond its end. The search stops at the first length whose best sequence
    ends there; its candidates are all of that length, and the shorter ones that end in the end.
    """

    def score(words: tuple[int, ...]) -> float:
        total = 0.0
        for place, word in enumerate(words):
            if word == rules.end and place < rules.shortest:
                return -math.inf
            total += float(of((rules.start, *words[:place]))[word])
        return total / ((5 + len(words)) / 6) ** 0.6

    candidates: dict[tuple[int, ...], float] = {}
    for length in range(1, rules.longest + 1):
        every = {w: score(w) for w in itertools.product(range(vocabulary), repeat=length)}
        top = max(every, key=every.__getitem__)
        if top[-1] == rules.end or length == rules.longest:
            candidates |= every
            break
        candidates |= {w: s for w, s in every.items() if w[-1] == rules.end}
    return [rules.start, *max(candidates, key=candidates.__getitem__)]


def test_wide_search_is_exhaustive() -> None:
    rules = Rules(start=0, end=1, beams=3**4, shortest=1, longest=4)
    tables = [table(3, seed) for seed in range(12)]
    found = beam_search(batched(tables), len(tables), rules)
    expected = [exhaustive(of, 3, rules) for of in tables]
    assert found == expected
    assert len({len(answer) for answer in found}) > 1, "answers of several lengths"


def test_penalty() -> None:
    """((5 + length) / 6)^0.6"""
    rules = Rules(start=0, end=1)
    assert rules.penalty(1) == 1
    assert rules.penalty(7) == pytest.approx(2**0.6)


def test_an_answer_does_not_depend_on_its_neighbours() -> None:
    """A question that is answered waits for the others."""
    rules = Rules(start=0, end=1, beams=3, shortest=1, longest=5)
    tables = [table(4, seed) for seed in range(100)]
    alone = [beam_search(batched([of]), 1, rules)[0] for of in tables]
    assert beam_search(batched(tables), len(tables), rules) == alone


def literal_search(of, vocabulary: int, rules: Rules) -> list[int]:
    """The search with lists, one question at a time."""
    beams = [(0.0, [rules.start])]
    noted: list[tuple[float, list[int]]] = []
    for length in range(1, rules.longest + 1):
        grown = [
            (total + float(of(tuple(words))[word]), [*words, word])
            for total, words in beams
            for word in range(vocabulary)
            if not (word == rules.end and length <= rules.shortest)
        ]
        grown.sort(key=lambda beam: -beam[0])
        beams = grown[: rules.beams]
        last = beams[0][1][-1] == rules.end or length == rules.longest
        penalty = ((5 + length) / 6) ** 0.6
        noted += [(t / penalty, w) for t, w in beams if last or w[-1] == rules.end]
        if last:
            break
    return max(noted, key=lambda beam: beam[0])[1]


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_search_is_that_of_slow_loops(beams: int) -> None:
    rules = Rules(start=7, end=3, beams=beams, shortest=1, longest=6)
    tables = [table(9, seed) for seed in range(30)]
    found = beam_search(batched(tables), len(tables), rules)
    assert found == [literal_search(of, 9, rules) for of in tables]
    alone = [beam_search(batched([of]), 1, rules)[0] for of in tables]
    assert found == alone
    assert all(answer[0] == 7 and answer[1] != 3 for answer in found)
