"""VQAScore: how sure a model that answers questions is that an image shows its caption.

    nanogen eval RUN --metrics vqascore,vqascore[model=clip-flant5-xl]

Lin et al. 2024 (arXiv 2404.01291), as their code computes it. The model is asked `Does this figure
show "{caption}"? Please answer yes or no.`, and the score of an image is the exponential of the
mean log-probability of the two tokens of the answer,

    VQAScore = sqrt(P("Yes" | image, question) P(end | image, question, "Yes")),

which is more than the P("Yes") of the paper's text. The mean of that is the fact `p_yes`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from nanogen.encoders import clip_flant5
from nanogen.metrics.base import Context, Option, Score
from nanogen.metrics.prompted import PromptedMetric
from nanogen.metrics.uncertainty import Judged
from nanogen.registry import register
from nanogen.store import Asset, find

TOGETHER = 16
"""images that a model is asked about at once, as in the published code"""
NEEDS = "pip install 'nanogen[t2i]', and the model"

Facts = dict[str, str | int | float]
Asked = Callable[[Tensor, Sequence[str]], Tensor]
"""images uint8 [B, 3, H, W] and their texts -> [B] or [B, K], the first column of which counts"""


def _checkpoint(size: str, weight: str) -> Asset:
    return Asset(
        f"clip-flant5-{size}",
        f"CLIP-FlanT5-{size.upper()}, the model of VQAScore",
        "Apache-2.0",
        hub=f"zhiqiulin/clip-flant5-{size}",
        files=("config.json", "*model*"),
        size=weight,
    )


MODELS = {asset.name: asset for asset in (_checkpoint("xxl", "23 GB"), _checkpoint("xl", "6.3 GB"))}
TOKENIZER = Asset(
    "flan-t5-tokenizer",
    "the tokenizer of FLAN-T5",
    "Apache-2.0",
    hub="google/flan-t5-xxl",
    files=("tokenizer.json",),
    size="2 MB",
)
VISION = Asset(
    "clip-vit-l-336-config",
    "the shape of CLIP ViT-L/14-336",
    "MIT",
    hub="openai/clip-vit-large-patch14-336",
    files=("config.json",),
    size="5 kB",
)


class VqaMetric(PromptedMetric):
    """Subclass with `models`, an option `model` among their names, `template` and `opened`: the
    score of an image is what the chosen model says to its prompt.
    """

    findings = ("std_over_prompts", "p_yes")
    transformers = True
    takes_precision = True

    models: ClassVar[Mapping[str, Asset]]
    template: ClassVar[str]
    """the question; {} is the prompt"""

    def __init__(self, context: Context, chosen: Mapping[str, str] | None = None) -> None:
        super().__init__(context, chosen)
        self.assets = (self.asset, *self.assets)

    @abstractmethod
    def opened(self) -> Asked:
        """The chosen model, on the device and in the precision of the context."""

    @cached_property
    def model(self) -> Asked:
        return self.opened()

    @property
    def asset(self) -> Asset:
        return self.models[self.chosen["model"]]

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.context.precision == "bf16" else torch.float32

    def judge(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        starts = range(0, len(texts), TOGETHER)
        asked = [self.model(images[i : i + TOGETHER], texts[i : i + TOGETHER]) for i in starts]
        return torch.cat(asked).double()

    def scores(self, judged: Judged, extra: Tensor) -> dict[str, Score]:
        return {self.name: judged.score_of_images(self.facts() | spread_of(judged))}

    def facts(self) -> Facts:
        return {
            "vqa_model": self.asset.name,
            "vqa_hash": find(self.asset).sha256,
            "template": self.template,
            "precision": self.context.precision,
        }

    def close(self) -> None:
        self.__dict__.pop("model", None)


@register("metric", "vqascore", summary="VQAScore of CLIP-FlanT5", needs=NEEDS)
class VqaScore(VqaMetric):
    """The mean over images, each judged by its own caption."""

    name = "vqascore"
    version = 1
    options = {"model": Option("the model that is asked", "clip-flant5-xxl", tuple(MODELS))}
    assets = (TOKENIZER, VISION)
    models = MODELS
    template = clip_flant5.QUESTION

    def opened(self) -> Asked:
        files = clip_flant5.Files(*(find(asset).path for asset in (self.asset, TOKENIZER, VISION)))
        model = clip_flant5.ClipFlanT5(files, self.context.device, self.dtype)

        def asked(images: Tensor, texts: Sequence[str]) -> Tensor:
            """float64 [B, 2]: VQAScore, and P("Yes")."""
            likely = model(images, texts).double()
            return torch.stack([likely.mean(dim=1), likely[:, 0]], dim=1).exp()

        return asked

    def scores(self, judged: Judged, extra: Tensor) -> dict[str, Score]:
        facts = self.facts() | spread_of(judged) | {"p_yes": float(extra.mean())}
        return {self.name: judged.score_of_images(facts)}

    def facts(self) -> Facts:
        hashes = {"tokenizer_hash": find(TOKENIZER).sha256, "vision_hash": find(VISION).sha256}
        return super().facts() | hashes


def spread_of(judged: Judged) -> Facts:
    """How many prompts there are, and the standard deviation of their scores: how unlike they are,
    as published beside the mean, which is no error of it.
    """
    prompts, places = np.unique(judged.outcomes.prompts, return_inverse=True)
    means = np.bincount(places, judged.outcomes.values) / np.bincount(places)
    spread = {"std_over_prompts": float(means.std(ddof=1))} if len(prompts) > 1 else {}
    return {"prompts": len(prompts), **spread}
