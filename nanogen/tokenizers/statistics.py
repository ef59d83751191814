"""Mean and variance of a tokenizer's raw latents, per channel and position, over a stream.

    moments = Moments()
    for images in batches:
        moments.add(tokenizer.raw(images))
    found = moments.across()            # over all processes; the same on each
    save(found, Path("statistics.safetensors"))

Accumulated in float64 by the update of Chan, Golub and LeVeque (1983): batches and processes merge
by the same formula, in any sizes. The variance is that of the population (divided by n).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from nanogen import dist
from nanogen.data.base import SPLITS, Source, as_stored
from nanogen.encoders.weights import read_tensors
from nanogen.errors import ConfigError, suggest
from nanogen.files import whole_file
from nanogen.types import to_float

EPSILON = 1e-5
"""added to the variance before its root, as published"""
WHITE = 0.1
"""how far the mean of a channel may be from 0, and its deviation from 1, to be called whitened"""


@dataclass(frozen=True)
class Statistics:
    """Of n raw latents."""

    mean: Tensor
    """float32 [C, h, w]"""
    variance: Tensor
    """float32 [C, h, w], of the population"""

    @property
    def scale(self) -> Tensor:
        """1 / standard deviation, [C, h, w]."""
        return (self.variance + EPSILON).rsqrt()

    @property
    def power(self) -> float:
        """Mean of var + mean^2, over channels and positions: the mean square of a raw value.

        It is 1 for features that leave an affine-free LayerNorm, so it says which norm a file of
        statistics was made with.
        """
        return self.powers.mean().item()

    @property
    def powers(self) -> Tensor:
        """The same at each position, float64 [h, w]: the norm makes each of them 1."""
        return (self.variance.double() + self.mean.double().square()).mean(0)

    def normalised(self, shift: Tensor, scale: Tensor) -> Statistics:
        """Of (raw - shift) * scale; both broadcast to [C, h, w]."""
        return Statistics((self.mean - shift) * scale, self.variance * scale.square())

    def channels(self) -> Channels:
        """Over images and positions."""
        mean = self.mean.double().mean((1, 2))
        square = (self.variance.double() + self.mean.double().square()).mean((1, 2))
        return Channels(mean, (square - mean.square()).clamp(min=0).sqrt())


@dataclass(frozen=True)
class Channels:
    """Mean and deviation of each channel."""

    mean: Tensor
    """float64 [C]"""
    std: Tensor
    """float64 [C]"""

    @property
    def whitened(self) -> bool:
        """Whether every channel is about 0 and 1."""
        return bool((self.mean.abs() <= WHITE).all() and ((self.std - 1).abs() <= WHITE).all())


class Moments:
    """Running moments of `[C, h, w]`."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)
        """sum of squared deviations from the mean"""

    def add(self, raw: Tensor) -> None:
        """Take in raw latents [B, C, h, w]."""
        if not len(raw):
            return
        values = raw.detach().to("cpu", torch.float64)
        other = Moments()
        other.count, other.mean = len(values), values.mean(0)
        other.squares = (values - other.mean).square().sum(0)
        self.merge(other)

    def merge(self, other: Moments) -> None:
        """Take in what another stream gave."""
        total = self.count + other.count
        if not total:
            return
        gap = other.mean - self.mean
        self.mean = self.mean + gap * (other.count / total)
        self.squares = (
            self.squares + other.squares + gap.square() * (self.count * other.count / total)
        )
        self.count = total

    def across(self) -> Statistics:
        """Over all processes; each must have taken in something, or none of them can say a shape.

        ConfigError where fewer than two latents were seen.
        """
        weighted = {
            "count": torch.tensor(self.count, dtype=torch.float64),
            "total": self.mean * self.count,
        }
        summed = dist.sum_across(weighted)
        count = summed["count"].item()
        if count < 2:
            raise ConfigError(f"statistics need at least 2 images, not {int(count)}; take more")
        mean = summed["total"] / count
        own = self.squares + self.count * (self.mean - mean).square()
        squares = dist.sum_across({"squares": own})["squares"]
        return Statistics(mean.float(), (squares / count).float())


@dataclass(frozen=True)
class Images:
    """Which images of a data set statistics are taken over."""

    split: str = "train"
    samples: int | None = None
    """evenly spaced over the split; None: all"""
    batch: int = 32
    """images at once; changes speed and memory only"""


@torch.no_grad()
def measure(
    raw: Callable[[Tensor], Tensor], source: Source, images: Images, device: torch.device
) -> Statistics:
    """Statistics of `raw` over images of a data set, each process taking its share of them.

    `raw` maps images [B, 3, H, W] in [0, 1] to [B, C, h, w]. None is mirrored, whatever training
    does.
    """
    if images.split not in SPLITS:
        raise ConfigError(f"unknown split {images.split!r}; {suggest(images.split, SPLITS)}")
    total = source.count(images.split)
    n = total if images.samples is None else images.samples
    rank, world = dist.rank(), dist.world()
    if not max(2, world) <= n <= total:
        raise ConfigError(
            f"{n} images of a {images.split} split of {total}: statistics need at least 2, and one "
            "for each process; choose another number or split"
        )
    numbers = [i * total // n for i in range(n * rank // world, n * (rank + 1) // world)]
    moments = Moments()
    for start in range(0, len(numbers), images.batch):
        part = numbers[start : start + images.batch]
        samples = [as_stored(source, images.split, number) for number in part]
        moments.add(raw(to_float(torch.stack(samples).to(device))))
    return moments.across()


def save(statistics: Statistics, file: Path) -> None:
    """Write statistics as safetensors, `mean` and `var`."""
    tensors = {"mean": statistics.mean.contiguous(), "var": statistics.variance.contiguous()}
    with whole_file(file) as part:
        save_file(tensors, part)


def load(file: Path, shape: tuple[int, int, int]) -> Statistics:
    """Statistics of latents `[C, h, w]` from a .safetensors file, or from a .pt of diffusion-bench.

    ConfigError for any other shape: [C] or a transposed table would broadcast without a word.
    """
    tensors = read_tensors(file)
    if set(tensors) != {"mean", "var"}:
        raise ConfigError(
            f"{file} holds {', '.join(sorted(tensors)[:3]) or 'nothing'}, not mean and var; give "
            "a file of latent statistics"
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shape:
            raise ConfigError(
                f"{name} in {file} is {list(tensor.shape)}, but the latents are {list(shape)}; "
                "give the statistics of this encoder at this image size"
            )
        if not tensor.isfinite().all() or (name == "var" and (tensor < 0).any()):
            raise ConfigError(
                f"{name} in {file} has values that no {name} has; make the file anew with "
                "nanogen tokenizer stats"
            )
    return Statistics(tensors["mean"].float(), tensors["var"].float())
