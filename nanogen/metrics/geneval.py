"""GenEval: does an image show the objects, counts, colours and places that its prompt asks for?

    nanogen eval RUN --metrics geneval                       # as GenEval was published
    nanogen eval RUN --metrics geneval[compat=reference]     # as DiffusionBench evaluates it

Ghosh et al. 2023, "GenEval: An object-focused framework for evaluating text-to-image alignment",
arXiv 2310.11513. A detector finds objects (`mask2former`), CLIP names their colours
(`colour_clip`), and rules compare both with the scene of the prompt (`geneval_rules`): an image is
right or wrong.

Why an image is wrong:

    metric = GenEval(context)
    metric.verdicts(images, texts)        # [Verdict(False, "expected 2 bear, found 1"), ...]
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor

from nanogen.encoders.contrastive import open_contrastive
from nanogen.encoders.fit_square import crop_square
from nanogen.metrics import geneval_rules
from nanogen.metrics.base import Option, Outcomes, Score
from nanogen.metrics.clip_score import CLIP_L
from nanogen.metrics.colour_clip import ColourClip, Cut
from nanogen.metrics.geneval_rules import Verdict
from nanogen.metrics.instances import OFFICIAL, REFERENCE
from nanogen.metrics.mask2former import MASK2FORMER, Mask2Former
from nanogen.metrics.prompted import PromptedMetric
from nanogen.metrics.uncertainty import Judged, spread
from nanogen.prompts.geneval import TAGS, GenEvalPrompts
from nanogen.registry import register
from nanogen.store import find

COMPAT = {"official": OFFICIAL, "reference": REFERENCE}


@register(
    "metric",
    "geneval",
    summary="GenEval: objects, counts, colours and places, by Mask2Former and CLIP",
    needs="pip install 'nanogen[t2i]', nanogen prepare geneval",
)
class GenEval(PromptedMetric):
    """Shares of correct images:

    * `geneval`: the mean over the tags, as GenEval reports it;
    * `geneval/image-mean`: over all images alike, as DiffusionBench reports it;
    * `geneval/TAG`: over the images of one of the six tags;
    * `geneval/any-correct`: the share of prompts with at least one correct image.

    All standard errors are of prompts drawn anew within their tags.
    """

    name = "geneval"
    transformers = True
    takes_precision = True
    version = 1
    prompts = "geneval"
    options = {
        "compat": Option(
            "whose masks, boxes and rounding: GenEval's or DiffusionBench's",
            "official",
            tuple(COMPAT),
        ),
        "background": Option(
            "what CLIP sees around an object whose colour it names", "grey", ("grey", "original")
        ),
        "crop": Option("whether CLIP sees the object's box alone", "yes", ("yes", "no")),
    }
    assets = (MASK2FORMER, CLIP_L)

    @cached_property
    def scenes(self) -> GenEvalPrompts:
        """The prompts, with what they ask for."""
        return cast(GenEvalPrompts, self.prompt_set)

    @cached_property
    def detector(self) -> Mask2Former:
        folder, context = find(MASK2FORMER).path, self.context
        compat = COMPAT[self.chosen["compat"]]
        return Mask2Former(folder, context.device, context.precision, compat)

    @cached_property
    def colours(self) -> ColourClip:
        folder, context = find(CLIP_L).path, self.context
        # GenEval's own code centres by torchvision, that of DiffusionBench by transformers.
        official = self.chosen["compat"] == "official"
        fit = functools.partial(crop_square, torchvision=official)
        tokenizer = folder / "tokenizer.json"
        clip = open_contrastive(folder, tokenizer, fit, context.device, context.precision)
        background = "original" if self.chosen["background"] == "original" else "grey"
        return ColourClip(clip, Cut(background, self.chosen["crop"] == "yes"))

    def close(self) -> None:
        for name in ("detector", "colours"):
            self.__dict__.pop(name, None)

    def verdicts(self, images: Tensor, texts: Sequence[str]) -> list[Verdict]:
        """Whether each image, uint8 [B, 3, H, W], shows the scene of its prompt, and why not."""
        return [
            geneval_rules.judge(
                found, self.scenes.scene_of(text), functools.partial(self.colours.colour, image)
            )
            for image, found, text in zip(images, self.detector.detect(images), texts, strict=True)
        ]

    def judge(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        verdicts = self.verdicts(images, texts)
        return torch.tensor([verdict.correct for verdict in verdicts], dtype=torch.float64)

    def tag_of(self, text: str) -> str:
        return self.scenes.tag_of(text)

    def scores(self, judged: Judged, extra: Tensor) -> dict[str, Score]:
        images = Counter(judged.outcomes.prompts)
        self.require_all(images)
        fewest, most = min(images.values()), max(images.values())
        tags = [tag for tag in TAGS if tag in judged.tags()]
        facts = self.facts() | {
            "prompts": len(images),
            "images_per_prompt": most if fewest == most else f"{fewest} to {most}",
            "tags": ", ".join(tags),
        }
        return {
            self.name: judged.score_of_tags(facts),
            f"{self.name}/image-mean": _mean_of_all(judged, facts),
            **{f"{self.name}/{tag}": judged.score_of_images(facts, tag) for tag in tags},
            f"{self.name}/any-correct": _mean_of_all(_best(judged), facts),
        }

    def facts(self) -> dict[str, str | int | float]:
        return {
            **self.chosen,
            "detector": MASK2FORMER.hub,
            "detector_hash": find(MASK2FORMER).sha256,
            "clip": CLIP_L.hub,
            "clip_hash": find(CLIP_L).sha256,
            "prompts_hash": self.prompt_set.fingerprint,
            "precision": self.context.precision,
        }


def _mean_of_all(judged: Judged, facts: dict[str, str | int | float]) -> Score:
    """The mean over images, whatever their tag; its error is of a bootstrap within each tag."""
    tags = Counter(judged.outcomes.tags)
    total = sum(tags.values())
    parts = [tags[tag] / total * judged.resampled(tag) for tag in judged.tags()]
    error = spread(np.sum(parts, axis=0))
    return Score(judged.mean_of_images(), error, total, True, facts, judged.outcomes)


def _best(judged: Judged) -> Judged:
    """One value for each prompt: the best of its images."""
    seen = judged.outcomes
    tags = dict(zip(seen.prompts, seen.tags, strict=True))
    best = dict.fromkeys(tags, 0.0)
    for prompt, value in zip(seen.prompts, seen.values, strict=True):
        best[prompt] = max(best[prompt], value)
    return Judged(Outcomes(tuple(tags), tuple(tags.values()), tuple(best.values())))
