"""Metrics that give each image a value for its prompt, one image at a time."""

from __future__ import annotations

import hashlib
import importlib.util
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, cast

import torch
from torch import Tensor

from nanogen import registry
from nanogen.errors import MetricError, MissingExtra
from nanogen.metrics.base import Metric, Observation, Outcomes, Score, Unfit
from nanogen.metrics.uncertainty import Judged
from nanogen.prompts.base import PromptSet
from nanogen.types import Request


class PromptedMetric(Metric):
    """Subclass with `judge`, and with `tag_of` and `scores` where prompts are of several kinds."""

    task = "text_to_image"

    transformers: ClassVar[bool] = False
    """whether its models are those of transformers"""

    def check(self, samples: int) -> None:
        """Besides: MissingExtra where the library of its models is not installed; MetricError where
        there are fewer samples than published prompts, for whose whole set the name stands.
        """
        super().check(samples)
        if self.transformers and importlib.util.find_spec("transformers") is None:
            raise MissingExtra("transformers", "pip install 'nanogen[t2i]'")
        if not self.prompts:
            return
        prompts, images = len(self.prompt_set.texts), self.prompt_set.images
        if samples < prompts:
            raise Unfit(
                f"{self.title} needs at least one image of each of its {prompts} prompts "
                f"(published: {images} of each, {prompts * images}), not {samples} samples",
                prompts,
            )

    def check_request(self, request: Request) -> None:
        texts = self.texts_of(request)
        if self.prompts:
            self.require_all(texts)

    def require_all(self, texts: Collection[str]) -> None:
        """MetricError where a prompt of the set has no image: the name of the metric stands for all
        of them.
        """
        prompts, drawn = len(set(self.prompt_set.texts)), len(set(texts))
        if drawn < prompts:
            raise MetricError(
                f"{self.title} needs at least one image of each of its {prompts} prompts, and only "
                f"{drawn} of them have any; add the others"
            )

    @abstractmethod
    def judge(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """float64 [B] (more columns: [B, K], the first of which is the value) for images uint8
        [B, 3, H, W] and the prompts that they were drawn for.
        """

    def tag_of(self, text: str) -> str:
        """The kind of a prompt, over which the score is averaged; "" where there are none."""
        return ""

    def scores(self, judged: Judged, extra: Tensor) -> dict[str, Score]:
        """Scores by name; `extra` are the further columns of `judge`, float64 [n, K - 1]."""
        return {self.name: judged.score_of_images(self.facts())}

    def facts(self) -> dict[str, str | int | float]:
        """What a reader must know beside the value: models, their hashes, templates."""
        return {}

    @cached_property
    def prompt_set(self) -> PromptSet:
        """The set that samples are drawn for, of a metric that names one."""
        return cast(PromptSet, registry.get("prompts", self.prompts)())

    @cached_property
    def known(self) -> dict[int, str]:
        """Prompts by key; those that were seen are added."""
        if self.prompts:
            texts = self.prompt_set.texts
        else:
            texts = self.context.captions or self.context.source.prompts()
        return {key_of(text): text for text in texts}

    def place_of(self, index: int, text: str) -> int:
        """The place in the prompt set of what sample `index` shows. Samples that are drawn go
        through the set in its order, and so it is known of a text that comes twice which one it is;
        of images in another order, the first of its kind is meant.
        """
        texts = self.prompt_set.texts
        place = index % len(texts)
        return place if texts[place] == text else texts.index(text)

    def texts_of(self, request: Request) -> tuple[str, ...]:
        """What samples were drawn for; MetricError where there are no captions, or others than the
        prompts of the metric.
        """
        if request.texts is None:
            raise MetricError(
                f"{self.title} needs images with captions; these have none (a samples.json beside "
                "them holds some)"
            )
        if self.prompts:
            foreign = [text for text in request.texts if key_of(text) not in self.known]
            if foreign:
                raise MetricError(
                    f"{self.title}: {foreign[0]!r} is not one of its {len(self.known)} prompts; "
                    "measure images that were drawn for them"
                )
        return request.texts

    def update(self, seen: Observation) -> None:
        texts = self.texts_of(seen.request)
        keys = [key_of(text) for text in texts]
        self.known.update(zip(keys, texts, strict=True))
        found = self.judge(seen.images, texts).to("cpu", torch.float64)
        self.rows.setdefault("keys", []).append(torch.tensor(keys))
        if self.prompts:
            shown = zip(seen.request.indices.tolist(), texts, strict=True)
            places = [self.place_of(index, text) for index, text in shown]
            self.rows.setdefault("places", []).append(torch.tensor(places))
        self.rows.setdefault("values", []).append(found.reshape(len(texts), -1))

    def compute(self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Score]:
        # Prompts that only another process saw, of data that cannot list them, keep their key.
        texts = tuple(self.known.get(int(key), f"{int(key):014x}") for key in rows["keys"])
        values = rows["values"]
        tags = tuple(self.tag_of(text) for text in texts)
        outcomes = Outcomes(texts, tags, tuple(values[:, 0].tolist()))
        judged = Judged(outcomes, tuple(rows["places"].tolist()) if "places" in rows else ())
        found = self.scores(judged, values[:, 1:])
        # Published sets say which they are; of all others only their texts tell.
        told = {} if self.prompts else {"captions_hash": judged.captions_hash()}
        return {name: replace(one, facts={**one.facts, **told}) for name, one in found.items()}


def key_of(text: str) -> int:
    """A prompt as a number that is the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
