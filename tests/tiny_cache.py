"""Small caches of latents: a random network, random images, and what is made of them.

cache = made(tmp_path / "cache", Convolution(), Pictures())
folder, tokenizer, source = complete(tmp_path)      # its tests may damage it
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from parts import images
from torch import Tensor, nn

from nanogen.cache.latents import LatentCache, open_latents
from nanogen.cache.write_latents import LatentJob, plan_latents, write_latents
from nanogen.data.base import Description, Sample
from nanogen.frozen import frozen
from nanogen.tokenizers.base import Autoencoder
from nanogen.types import LatentSpec, Tokenizer, to_float

CPU = torch.device("cpu")


class Convolution(Autoencoder):
    """A random network of stride 4, as small as one can be."""

    def __init__(self, size: int = 16, seed: int = 0) -> None:
        super().__init__(LatentSpec(2, size // 4, size // 4, 1), f"convolution-{seed}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = nn.Conv2d(3, 2, 4, 4)
        self.calls: list[int] = []
        frozen(self)

    def raw(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return self.network(images) * 3 + 1

    def from_raw(self, raw: Tensor) -> Tensor:
        return raw.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :1].expand(-1, 3, -1, -1)


@dataclass
class Pictures:
    """A source of random images with their mirror images."""

    total: int = 40
    size: int = 16
    variants: int = 2
    fingerprint: str = "pictures"
    seed: int = 0
    classes: tuple[str, ...] = ("a", "b", "c")
    captioned: bool = False
    reads: int = 0

    def __post_init__(self) -> None:
        found = images(self.total, self.size, self.seed)
        self.pictures = (found * 255).round().to(torch.uint8)

    def count(self, split: str) -> int:
        return self.total if split == "train" else 0

    def read(self, split: str, index: int, draw: int) -> Sample:
        self.reads += 1
        return Sample(self.views(index)[self.variant(index, draw)], index % 3)

    def variant(self, index: int, draw: int) -> int:
        return (index + draw) % self.variants

    def views(self, index: int) -> tuple[Tensor, ...]:
        return (self.pictures[index], self.pictures[index].flip(-1))[: self.variants]

    def describe(self, index: int) -> Description:
        return Description(index % 3)

    def prompts(self) -> tuple[str, ...]:
        return ()


def made(
    folder: Path, tokenizer: Tokenizer, source: Pictures, precision="fp32", **more
) -> LatentCache:
    """A cache, written and opened."""
    job = LatentJob(tokenizer, source, precision, CPU, **more)
    write_latents(job, plan_latents(job), folder)
    return open_latents(folder, tokenizer, source, precision, CPU)


def everything(cache: LatentCache) -> Tensor:
    """All records, in the order of their numbers."""
    plan = cache.plan
    numbers = np.arange(plan.items * plan.variants)
    return cache.raw(numbers // plan.variants, numbers % plan.variants)


def online(tokenizer: Tokenizer, source: Pictures) -> Tensor:
    """What the network makes of all variants, at once and without the groups of training."""
    views = torch.stack([view for i in range(source.total) for view in source.views(i)])
    with torch.no_grad():
        return tokenizer.raw(to_float(views))


def complete(folder: Path) -> tuple[Path, Convolution, Pictures]:
    """A complete cache in a folder."""
    tokenizer, source = Convolution(), Pictures()
    made(folder / "cache", tokenizer, source)
    return folder / "cache", tokenizer, source


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def opened(folder: Path, tokenizer: Tokenizer, source: Pictures, precision="fp32") -> LatentCache:
    return open_latents(folder, tokenizer, source, precision, CPU)
