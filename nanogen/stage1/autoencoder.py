"""What is trained to become a tokenizer: an encoder, frozen or not, and a decoder.

    made = autoencoder(batch)          # reconstructions with a gradient, and losses of its own
    autoencoder.from_raw(autoencoder.raw(batch.images))     # without noise, for whoever looks on
    autoencoder.export(folder, source, most=50_000)         # what a tokenizer is loaded from

A kind of autoencoder is one file in this folder: a chz config registered as an autoencoder, with
`build(image_size, seed) -> TrainableAutoencoder` and `tokenizer(folder, image_size)`, the config of
the tokenizer that reads what was exported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nanogen import dist
from nanogen.data.base import Source
from nanogen.errors import ConfigError
from nanogen.tokenizers.base import Autoencoder
from nanogen.tokenizers.statistics import Moments, Statistics
from nanogen.train.gradients import trained
from nanogen.train.signals import Check
from nanogen.types import Batch, LatentSpec, to_float

BATCH = 32
"""images at once while statistics are taken"""


@dataclass(frozen=True)
class Reconstruction:
    """What an autoencoder makes of a batch in training."""

    images: Tensor
    """[B, 3, H, W] about [0, 1], not clamped, with a gradient"""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """further losses by name, [B] each"""
    weights: Mapping[str, float] = field(default_factory=dict)
    """of those losses"""


class TrainableAutoencoder(nn.Module, ABC):
    """An autoencoder in training. What is frozen of it must be no submodule: it is neither averaged
    nor saved.
    """

    spec: LatentSpec
    weights: str = "ema"
    """"ema" or "raw": which of its weights are measured and exported"""

    @abstractmethod
    def forward(self, batch: Batch) -> Reconstruction:
        """Reconstructions as training makes them, with noise; draws follow from the keys."""

    @abstractmethod
    def raw(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, C, h, w]: not normalised, and without noise."""

    @abstractmethod
    def from_raw(self, raw: Tensor) -> Tensor:
        """[B, C, h, w], not normalised -> [B, 3, H, W] about [0, 1], not clamped."""

    @property
    @abstractmethod
    def last(self) -> nn.Parameter:
        """The weight of the decoder's last layer."""

    @abstractmethod
    def export(self, folder: Path, source: Source, most: int, check: Check) -> None:
        """Write the present weights, and statistics of at most `most` train images, so that the
        folder appears whole or not at all. Collective; the first process writes. `check` is called
        between batches.
        """

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that receive gradients, by name."""
        return trained(self)


class AutoencoderConfig(Protocol):
    """What is registered as an autoencoder."""

    def build(self, image_size: int, seed: int) -> TrainableAutoencoder: ...

    def tokenizer(self, folder: Path, image_size: int) -> Any:
        """The config of the tokenizer that reads an exported folder, for images of a size."""
        ...


class Preview(Autoencoder):
    """The present weights as a tokenizer, not normalised: to look at, not to diffuse in."""

    def __init__(self, autoencoder: TrainableAutoencoder, name: str) -> None:
        super().__init__(autoencoder.spec, name)
        self.autoencoder = autoencoder

    def raw(self, images: Tensor) -> Tensor:
        return self.autoencoder.raw(images)

    def from_raw(self, raw: Tensor) -> Tensor:
        return self.autoencoder.from_raw(raw)


@torch.no_grad()
def latent_statistics(
    autoencoder: TrainableAutoencoder, source: Source, most: int, check: Check
) -> Statistics:
    """Of the raw latents of at most `most` train images, evenly spaced; the same on every process.

    `check` is called before each batch, equally often on every process.
    """
    total, rank, world = source.count("train"), dist.rank(), dist.world()
    n = min(most, total)
    if n < world:
        raise ConfigError(
            f"statistics of {n} images give {world} processes less than one each; raise "
            "statistics or start fewer"
        )
    numbers = [i * total // n for i in range(n * rank // world, n * (rank + 1) // world)]
    device, moments = autoencoder.last.device, Moments()
    for start in range(0, -(-n // world), BATCH):
        check()
        part = numbers[start : start + BATCH]
        if part:
            images = [source.read("train", number, number).image for number in part]
            moments.add(autoencoder.raw(to_float(torch.stack(images).to(device))))
    return moments.across()
