"""Metrics in which one network says of an image and its prompt how well they go together.

    class PickScore(CosineMetric):
        def opened(self): ...                  # the network, once it is needed

Each image is judged by its own prompt, each alone: the score is the mean, its error that of a
bootstrap over prompts. What the network cannot read of long prompts is counted beside it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from nanogen.encoders.contrastive import Contrastive, cosines
from nanogen.encoders.text_tokens import Tokens
from nanogen.metrics.base import Score
from nanogen.metrics.prompted import PromptedMetric
from nanogen.metrics.uncertainty import Judged
from nanogen.store import find

Facts = dict[str, str | int | float]

NEEDS = "pip install 'nanogen[t2i]', and the model"


class AlignmentMetric(PromptedMetric):
    """Subclass with `opened`, `tokens` and `values`; the first of `assets` is the network."""

    takes_precision = True
    resize: ClassVar[str]
    """how images come to the square of the network, for the facts"""

    @abstractmethod
    def opened(self) -> Any:
        """The network, on the device of the context."""

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Prompts as the network reads them."""

    @abstractmethod
    def values(self, images: Tensor, tokens: Tokens) -> Tensor:
        """float64 [B] on the CPU, for images uint8 [B, 3, H, W] on the device of the context."""

    @cached_property
    def network(self) -> Any:
        return self.opened()

    def judge(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """float64 [B, 2]: the value, and 1 where the prompt was cut."""
        found = []
        for start in range(0, len(texts), self.context.batch):
            rows = slice(start, start + self.context.batch)
            tokens = self.tokens(texts[rows])
            values = self.values(images[rows].to(self.context.device), tokens)
            found.append(torch.stack([values, tokens.cut.double()], dim=1))
        return torch.cat(found)

    def scores(self, judged: Judged, extra: Tensor) -> dict[str, Score]:
        cut = dict(zip(judged.outcomes.prompts, extra[:, 0].tolist(), strict=True))
        shares: Facts = {"prompts": len(cut), "prompts_cut": sum(cut.values()) / len(cut)}
        return {self.name: judged.score_of_images(self.facts() | shares)}

    def facts(self) -> Facts:
        network, *others = self.assets
        return {
            "model": network.hub,
            "model_sha256": find(network).sha256,
            **{f"{other.name}_sha256": find(other).sha256 for other in others},
            "precision": self.context.precision,
            "resize": self.resize,
        }

    def close(self) -> None:
        self.__dict__.pop("network", None)


class CosineMetric(AlignmentMetric):
    """By the cosine of an image and its prompt in the space of a contrastive network."""

    transformers = True

    @abstractmethod
    def opened(self) -> Contrastive: ...

    def tokens(self, texts: Sequence[str]) -> Tokens:
        return self.network.tokens(texts)

    def values(self, images: Tensor, tokens: Tokens) -> Tensor:
        return cosines(self.network.images(images), self.network.texts(tokens))
