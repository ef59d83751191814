"""Scores of the same metrics on images that were drawn again with other noise, as one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from nanogen.metrics.base import Outcomes
from nanogen.metrics.harness import Scores


def averaged(found: Sequence[Scores]) -> Scores:
    """The mean over repeats with other noise.

    Its error: of the mean over repeats, or what the score itself knows (which prompts there are,
    say), whichever is larger. The values stand in the facts.
    """
    scores: Scores = {}
    for name, first in found[0].items():
        each = [scores[name].score for scores in found]
        values = [score.value for score in each]
        deviation = statistics.stdev(values)
        errors = [deviation / len(values) ** 0.5]
        errors += [score.standard_error for score in each if score.standard_error is not None]
        facts = {
            **first.score.facts,
            "repeats": len(values),
            "deviation_of_repeats": deviation,
            "values_of_repeats": ", ".join(f"{value:.6g}" for value in values),
        }
        score = replace(
            first.score,
            value=statistics.fmean(values),
            standard_error=max(errors) or None,
            facts=facts,
            outcomes=together([one.outcomes for one in each if one.outcomes is not None]),
        )
        skipped = sum(scores[name].skipped for scores in found)
        scores[name] = replace(first, score=score, skipped=skipped)
    return scores


def together(found: Sequence[Outcomes]) -> Outcomes | None:
    """The outcomes of all repeats, one after another; None where there are none."""
    if not found:
        return None
    return Outcomes(
        tuple(prompt for one in found for prompt in one.prompts),
        tuple(tag for one in found for tag in one.tags),
        tuple(value for one in found for value in one.values),
    )
