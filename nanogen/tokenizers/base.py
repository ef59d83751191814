"""What a tokenizer with weights or statistics is built on.

    images --raw--> raw --latents--> latents        encode is both
    latents --decode--> images

`raw` is the expensive half: a deterministic function of each image, which a cache may store.
`latents` is the cheap half: it draws from a posterior where there is one, and normalises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from nanogen.fingerprint import digest_of
from nanogen.types import LatentSpec


@dataclass(frozen=True)
class TokenizerFacts:
    """What `nanogen ls tokenizers` prints of a registered config class: its `facts`."""

    hub: str = ""
    """name on the Hugging Face hub; empty where nothing is fetched"""
    licence: str = ""
    """that of the weights"""
    latent: tuple[int, int, int] | None = None
    """C, h, w for an image of 256 px; None where it depends on the fields"""
    parameters: int | None = None
    status: str = "ungated"
    """ungated, or gated: terms to accept before the hub gives the weights"""


class Autoencoder(nn.Module, ABC):
    """A frozen tokenizer. Subclass it, implement `raw` and `from_raw`, and call `frozen` at the end
    of the constructor where there are weights.

    `latents = (raw - shift) * scale`, with `shift` and `scale` broadcastable to `[C, h, w]`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        spec: LatentSpec,
        raw_fingerprint: str,
        shift: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
    ) -> None:
        """`raw_fingerprint` changes whenever `raw` changes; that of the whole follows from it."""
        super().__init__()
        self.spec = spec
        self.raw_fingerprint = raw_fingerprint
        self.register_buffer("shift", _statistic(shift), persistent=False)
        self.register_buffer("scale", _statistic(scale), persistent=False)

    @property
    def fingerprint(self) -> str:
        """Changes whenever encode or decode changes."""
        return f"{self.raw_fingerprint}/{digest_of({'shift': self.shift, 'scale': self.scale})}"

    @abstractmethod
    def raw(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, R, h, w], not normalised: R is C, or 2 C for the mean and
        the standard deviation of a posterior.
        """

    @abstractmethod
    def from_raw(self, raw: Tensor) -> Tensor:
        """[B, C, h, w], not normalised -> [B, 3, H, W]; differentiable."""

    def latents(self, raw: Tensor, keys: Tensor | None = None) -> Tensor:
        """What `raw` returned -> latents [B, C, h, w], about zero mean and unit variance.

        `keys` int64 [B] name the samples, for a tokenizer that draws from a posterior.
        """
        return (raw - self.shift) * self.scale

    @torch.no_grad()
    def encode(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> latents [B, C, h, w]."""
        return self.latents(self.raw(images), keys)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, H, W]; differentiable; values may leave [0, 1] slightly."""
        return self.from_raw(latents / self.scale + self.shift)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever is asked: a frozen network."""
        return super().train(False)


def _statistic(value: Tensor | float) -> Tensor:
    """A number, [C] or [C, h, w] as float32 that broadcasts over [B, C, h, w]."""
    tensor = torch.as_tensor(value, dtype=torch.float32)
    return tensor[:, None, None] if tensor.ndim == 1 else tensor
