"""GenAI-Bench: VQAScore on 1,600 prompts of professional designers, in all and by skill.

    nanogen eval RUN --metrics genai-bench,genai-bench[set=527]

Li et al. 2024 (arXiv 2406.13743); the smaller set is that of Lin et al. 2024 (arXiv 2404.01291). A
prompt asks for several skills at once, so the tags overlap.

    genai-bench              mean over all images: the number of the DiffusionBench paper
    genai-bench/all          over those of prompts with a tag: "all" in the benchmark's own tables
    genai-bench/basic        and /advanced: its two groups; the mean of the two is none of the above
    genai-bench/<skill>      such as counting, negation, spatial-relation
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, cast

from torch import Tensor

from nanogen.metrics.base import Context, Option, Outcomes, Score
from nanogen.metrics.uncertainty import Judged
from nanogen.metrics.vqascore import NEEDS, Facts, VqaMetric, VqaScore, spread_of
from nanogen.registry import register

SETS = {"1600": "genai", "527": "genai-527"}
"""value of the option `set` -> registered prompts"""
SET = {"set": Option("how many of the prompts", "1600", tuple(SETS))}
UNION = "all"
"""the part over every prompt that has a tag"""


class Skilled(Protocol):
    """Prompts of which it is known what they ask for."""

    fingerprint: str
    skills: Mapping[str, Sequence[int]]
    """tag -> places among `texts`; they overlap"""

    @property
    def texts(self) -> tuple[str, ...]: ...


class BySkill(VqaMetric):
    """Before another metric among the bases of a class: its scores on GenAI-Bench, by skill."""

    prompts = SETS["1600"]

    def __init__(self, context: Context, chosen: Mapping[str, str] | None = None) -> None:
        super().__init__(context, chosen)
        self.prompts = SETS[self.chosen["set"]]

    def scores(self, judged: Judged, extra: Tensor) -> dict[str, Score]:
        parts = by_skill(judged, cast(Skilled, self.prompt_set))
        return super().scores(judged, extra) | {f"{self.name}/{t}": s for t, s in parts.items()}

    def facts(self) -> Facts:
        whole = len(self.prompt_set.texts)
        found = {"prompts_hash": self.prompt_set.fingerprint, "prompts_in_set": whole}
        return super().facts() | found


@register("metric", "genai-bench", summary="VQAScore on GenAI-Bench, by skill", needs=NEEDS)
class GenAiBench(BySkill, VqaScore):
    """VQAScore of images that were drawn for the benchmark's prompts."""

    name = "genai-bench"
    version = 1
    options = {**VqaScore.options, **SET}


def by_skill(judged: Judged, prompts: Skilled) -> dict[str, Score]:
    """A score for each tag of which there is an image, and `all` for those of all tags together.

    By the place of each image's prompt: two prompts of the same text may differ in their tags.
    The error of each is of a bootstrap over its own prompts.
    """
    groups = {tag.replace(" ", "-"): set(places) for tag, places in prompts.skills.items()}
    groups = {UNION: set().union(*groups.values()), **groups}
    parts = {tag: _among(judged, places) for tag, places in groups.items()}
    # Their outcomes are not kept: all are among those of the whole.
    return {
        tag: dataclasses.replace(part.score_of_images(spread_of(part)), outcomes=None)
        for tag, part in parts.items()
        if part.outcomes.values
    }


def _among(judged: Judged, places: Collection[int]) -> Judged:
    """Only the images of some prompts."""
    whole = judged.outcomes
    kept = [image for image, place in enumerate(judged.places) if place in places]
    return Judged(
        Outcomes(
            tuple(whole.prompts[image] for image in kept),
            tuple(whole.tags[image] for image in kept),
            tuple(whole.values[image] for image in kept),
        )
    )
