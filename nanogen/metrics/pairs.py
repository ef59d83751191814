"""Metrics of reconstructions: sums over pairs of an image and what an autoencoder made of it.

A metric is one class registered as a reconstruction:

    @register("reconstruction", "psnr", summary="...")
    class Psnr(MeanOfPairs):
        name, version, higher_is_better = "psnr", 1, True

        def values(self, images, others):
            return psnr(images, others)

Like those of samples, it keeps float64 `sums` that are added over processes, so that no score
depends on batch size, order, or the number of processes. Unlike them it sees pairs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nanogen.encoders.inception import NAME as INCEPTION
from nanogen.encoders.inception import WEIGHTS
from nanogen.encoders.lpips import open_lpips
from nanogen.metrics.base import Score
from nanogen.metrics.frechet import frechet_distance
from nanogen.metrics.gaussian import Gaussian, accumulate
from nanogen.metrics.reference import load_encoder
from nanogen.metrics.similarity import psnr, ssim
from nanogen.registry import register
from nanogen.store import find


@dataclass(frozen=True)
class PairContext:
    """What a metric of pairs may need to be built."""

    device: torch.device
    trunk: str = ""
    """file or folder with the VGG16 of LPIPS; empty asks the hub"""
    trunk_field: str = "evaluation.trunk"
    """what sets the trunk, for messages"""


class PairMetric(ABC):
    """Subclass, register as a reconstruction, and implement two methods."""

    name: ClassVar[str]
    version: ClassVar[int]
    """raised whenever the same images would get another value"""
    higher_is_better: ClassVar[bool]
    minimum: ClassVar[int] = 1
    """fewest images for which the value means anything; fewer are refused"""

    def __init__(self, context: PairContext) -> None:
        self.context = context
        self.sums: dict[str, Tensor] = {}
        """float64 tensors, added over processes"""

    @abstractmethod
    def update(self, images: Tensor, others: Tensor) -> None:
        """Add one batch to `sums`: originals and reconstructions, uint8 [B, 3, H, W] each, on the
        device of the context.
        """

    @abstractmethod
    def compute(self, sums: Mapping[str, Tensor]) -> Score:
        """The score from the totals over all processes."""

    def add(self, name: str, amount: Tensor) -> None:
        """Add an amount to a sum."""
        amount = amount.detach().to("cpu", torch.float64)
        self.sums[name] = self.sums[name] + amount if name in self.sums else amount


class MeanOfPairs(PairMetric):
    """A value for each pair, and their mean. Its standard error is that of a mean of independent
    images.
    """

    @abstractmethod
    def values(self, images: Tensor, others: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] each -> [B]."""

    def facts(self) -> Mapping[str, str | int | float]:
        """What a reader must know beside the value."""
        return {}

    @torch.no_grad()
    def update(self, images: Tensor, others: Tensor) -> None:
        values = self.values(images, others).double()
        self.add("n", torch.tensor(len(values)))
        self.add("total", values.sum())
        self.add("squares", values.square().sum())

    def compute(self, sums: Mapping[str, Tensor]) -> Score:
        n, mean = int(sums["n"]), (sums["total"] / sums["n"]).item()
        spread = max(0.0, sums["squares"].item() - n * mean * mean)
        error = math.sqrt(spread / (n - 1) / n) if n > 1 else None
        return Score(mean, error, n, self.higher_is_better, self.facts())


@register("reconstruction", "psnr", summary="peak signal-to-noise ratio in dB, mean over images")
class Psnr(MeanOfPairs):
    name = "psnr"
    version = 1
    higher_is_better = True

    def values(self, images: Tensor, others: Tensor) -> Tensor:
        return psnr(images, others)


@register("reconstruction", "ssim", summary="structural similarity, mean over images")
class Ssim(MeanOfPairs):
    name = "ssim"
    version = 1
    higher_is_better = True

    def values(self, images: Tensor, others: Tensor) -> Tensor:
        return ssim(images, others)


@register(
    "reconstruction",
    "lpips",
    summary="perceptual distance on VGG16, mean over images",
    needs="pip install 'nanogen[stage1]', and the weights of VGG16",
)
class LpipsOfPairs(MeanOfPairs):
    name = "lpips"
    version = 1
    higher_is_better = False

    def __init__(self, context: PairContext) -> None:
        super().__init__(context)
        self._lpips = open_lpips(context.trunk, field=context.trunk_field).to(context.device)

    def values(self, images: Tensor, others: Tensor) -> Tensor:
        return self._lpips(images.float() / 255, others.float() / 255)

    def facts(self) -> Mapping[str, str | int | float]:
        return {"network_hash": self._lpips.fingerprint}


class ReconstructionFrechet(PairMetric):
    """Fréchet distance of the reconstructions from their own originals, on a feature network.

    Subclass with a registered network and one of its outputs. Originals and reconstructions show
    the same scenes, so it has less of the bias of a small n than a distance of independent samples.
    """

    higher_is_better = False
    network: ClassVar[str]
    feature: ClassVar[str] = "pool"

    def extracted(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, d]."""
        return load_encoder(self.network, self.context.device)(images)[self.feature]

    @torch.no_grad()
    def update(self, images: Tensor, others: Tensor) -> None:
        for side, given in (("images", images), ("others", others)):
            accumulate(self.sums, self.extracted(given), f"{side} ")

    def compute(self, sums: Mapping[str, Tensor]) -> Score:
        images, others = (Gaussian.of_sums(sums, f"{side} ") for side in ("images", "others"))
        facts = {
            "network": self.network,
            "network_hash": load_encoder(self.network, self.context.device).fingerprint,
            "reference": "the originals",
        }
        # Resampling images would bias the distance itself: one evaluation has no honest error.
        value = frechet_distance(others, images)
        return Score(value, None, images.n, self.higher_is_better, facts)


@register(
    "reconstruction",
    "rfd-animals",
    summary="Fréchet distance from the originals on a small CNN of animals (not rFID)",
)
class RfdAnimals(ReconstructionFrechet):
    """On the 128 pooled features of `animals-cnn`; at least twice as many images as features."""

    name = "rfd-animals"
    version = 1
    minimum = 256
    network = "animals-cnn"


@register(
    "reconstruction",
    "rfid",
    summary="FID of the reconstructions from their own originals",
    needs="nanogen prepare inception-2015",
)
class Rfid(ReconstructionFrechet):
    """On the 2,048 pooled features of `inception-2015`, without any stored statistics; published of
    the 50,000 validation images of ImageNet at 256 px.
    """

    name = "rfid"
    version = 1
    minimum = 2 * 2048
    network = INCEPTION

    def __init__(self, context: PairContext) -> None:
        """ConfigError where the network is not in the store."""
        super().__init__(context)
        find(WEIGHTS)
