"""A VAE whose weights are trained, and the folder that it is published in.

vae = DiffusersVae(files.network(), files.kind)
mean, log_variance = vae.moments(images)            # images in [-1, 1]
export(vae, Path("tuned"), shift, deviation)        # tokenizer=vae tokenizer.model=tuned
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nanogen.errors import ConfigError
from nanogen.files import whole_folder, write_text
from nanogen.tokenizers.vae_files import Kind

CONFIG = "config.json"


class TunedVae(nn.Module, ABC):
    """The trained networks of a VAE, for images in [-1, 1]."""

    @abstractmethod
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> mean and logarithm of the variance, [B, C, h, w] each."""

    @abstractmethod
    def reconstruct(self, raw: Tensor) -> Tensor:
        """[B, C, h, w], not normalised -> [B, 3, H, W], not clamped."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Put config.json and the weights into an empty folder, as the tokenizer reads them."""


class DiffusersVae(TunedVae):
    """One of diffusers' autoencoders."""

    def __init__(self, network: Any, kind: Kind) -> None:
        """ConfigError for FLUX.2's: its own batch statistics whiten packed latents already."""
        super().__init__()
        if kind.packed:
            raise ConfigError(
                f"{type(network).__name__} normalises by batch statistics of its own, which this "
                "training would replace; choose another autoencoder"
            )
        self.network, self._kind = network, kind

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        inputs = images[:, :, None] if self._kind.video else images
        found = self.network.encode(inputs).latent_dist
        if self._kind.video:
            return found.mean[:, :, 0], found.logvar[:, :, 0]
        return found.mean, found.logvar

    def reconstruct(self, raw: Tensor) -> Tensor:
        inputs = raw[:, :, None] if self._kind.video else raw
        images = self.network.decode(inputs).sample
        return images[:, :, 0] if self._kind.video else images

    def write(self, folder: Path) -> None:
        self.network.save_pretrained(folder, safe_serialization=True)


def export(vae: TunedVae, folder: Path, shift: Tensor, deviation: Tensor) -> None:
    """The VAE as a folder that replaces `folder`, whole or not at all, with `latents_mean` and
    `latents_std`, [C] each, in its config.json.
    """
    with whole_folder(folder, replace=True) as part:
        vae.write(part)
        config = json.loads((part / CONFIG).read_text(encoding="utf-8"))
        config |= {"latents_mean": shift.tolist(), "latents_std": deviation.tolist()}
        write_text(part / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
