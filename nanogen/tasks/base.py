"""What a task is: where training samples come from, and what an evaluation asks a model to draw.

A task is one file in this folder: a chz config registered as a task, with `build() -> Task`.
Training position p, the number of images before it, names a sample for ever: which one of the data
set, in which order, with which augmentation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from nanogen.cache.latents import LatentCache
from nanogen.data.base import Description, Sample, Source, finite
from nanogen.data.order import items
from nanogen.errors import DataError
from nanogen.types import Batch, Request, to_float


@dataclass(frozen=True)
class Stored:
    """Where the stream finds the latents of its images."""

    latents: LatentCache
    images: bool
    """whether images are read as well"""


@dataclass(frozen=True)
class Task(ABC):
    """A data set, seen as one kind of problem."""

    source: Source
    seed: int
    stored: Stored | None = None
    """None: batches hold images, to be encoded; else they hold raw latents"""

    kind: ClassVar[str]
    """"class_conditional" or "text_to_image": which metrics apply"""

    def __post_init__(self) -> None:
        if not self.source.count("train"):
            raise DataError("the data set has no training images")

    def batch(self, positions: np.ndarray) -> Batch:
        """The samples at `positions` (int64 [B]) of the endless training stream."""
        indices = items(positions, self.source.count("train"), self.seed)
        keys = torch.from_numpy(positions)
        if self.stored is None:
            return collate(self._read(indices, positions), keys)
        source = finite(self.source, "latents")
        places = zip(indices.tolist(), positions.tolist(), strict=True)
        variants = np.array([source.variant(index, draw) for index, draw in places], np.int64)
        if self.stored.images:
            found = collate(self._read(indices, positions), keys)
        else:
            found = described([source.describe(int(index)) for index in indices], keys)
        return replace(found, raw=self.stored.latents.raw(indices, variants))

    def _read(self, indices: np.ndarray, positions: np.ndarray) -> list[Sample]:
        return [
            self.source.read("train", int(index), int(position))
            for index, position in zip(indices, positions, strict=True)
        ]

    @abstractmethod
    def request(self, start: int, stop: int) -> Request:
        """Samples start .. stop of the evaluation: a fixed, endless, balanced list of labels or
        prompts.
        """

    @abstractmethod
    def captions(self, request: Request) -> list[str]:
        """What each sample of a request shows, in words."""


def collate(samples: Sequence[Sample], keys: torch.Tensor) -> Batch:
    """Samples and their stream positions (int64 [B]) as one batch."""
    images = to_float(torch.stack([sample.image for sample in samples]))
    return replace(described(samples, keys), pixels=images)


def described(samples: Sequence[Sample | Description], keys: torch.Tensor) -> Batch:
    """The same without images."""
    labels = [sample.label for sample in samples if sample.label is not None]
    texts = [sample.text for sample in samples if sample.text is not None]
    return Batch(
        None,
        keys,
        torch.tensor(labels) if len(labels) == len(samples) else None,
        tuple(texts) if len(texts) == len(samples) else None,
    )
