"""The beam search that mPLUG answers with, for a whole batch of questions at once.

    words = beam_search(next_logits, questions=8, rules=Rules(start=101, end=102))

Two of its rules are unlike the textbook and decide rare answers. A beam that has ended, but is not
the best, is noted as an answer and also goes on, beyond its end. And the search stops as soon as
the best beam ends: then the best of all that were noted is taken, with all beams of that step among
them. Scores are log-likelihoods divided by ((5 + length) / 6)^0.6 (Wu et al. 2016, arXiv
1609.08144, eq. 14, without coverage).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rules:
    """How words are searched."""

    start: int
    """the token that every answer begins with"""
    end: int
    """the token that ends an answer"""
    beams: int = 5
    shortest: int = 1
    """new tokens before an answer may end"""
    longest: int = 10
    """new tokens after which it does"""
    power: float = 0.6

    def penalty(self, length: int) -> float:
        """What the log-likelihood of `length` new tokens is divided by."""
        return ((5 + length) / 6) ** self.power


def beam_search(
    next_logits: Callable[[Tensor], Tensor], questions: int, rules: Rules
) -> list[list[int]]:
    """The best answer to each question as tokens: `start`, the words, mostly `end`.

    `next_logits` maps tokens int64 [Q, K, T] of K beams to logits [Q, K, V] of what comes next; the
    device of its result is where the search runs.
    """
    count, k = questions, rules.beams
    tokens = torch.full((count, k, 1), rules.start)
    # All beams start alike: only the first of them counts, or the best word would be taken k times.
    totals = torch.tensor([0.0] + [float("-inf")] * (k - 1)).expand(count, k)
    best = torch.full((count,), float("-inf"))
    answers: list[Tensor] = [tokens[0, 0]] * count
    done = torch.zeros(count, dtype=torch.bool)
    for length in range(1, rules.longest + 1):
        likely = next_logits(tokens).float().log_softmax(dim=-1)
        if length <= rules.shortest:
            likely[..., rules.end] = float("-inf")
        vocabulary = likely.shape[-1]
        penalty = rules.penalty(length)
        scores = (totals.to(likely.device)[..., None] + likely) / penalty
        top = scores.flatten(1).topk(k)
        # From here on there are few numbers, and all are needed on the host.
        values, places = top.values.cpu(), top.indices.cpu()
        totals = values * penalty
        origin, word = places // vocabulary, places % vocabulary
        kept = tokens.gather(1, origin[..., None].expand_as(tokens))
        tokens = torch.cat([kept, word[..., None]], dim=2)
        ended = word == rules.end
        stops = ended[:, 0] | (length == rules.longest)
        ended |= stops[:, None]
        # The beams are sorted: the first that has ended is the best of those.
        first = ended.int().argmax(dim=1)
        value = values.gather(1, first[:, None])[:, 0]
        better = ended.any(dim=1) & ~done & (value > best)
        best = torch.where(better, value, best)
        for row in better.nonzero()[:, 0].tolist():
            answers[row] = tokens[row, first[row]]
        done |= stops
        if done.all():
            break
    return [answer.tolist() for answer in answers]
