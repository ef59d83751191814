"""Training a VAE further, from the weights of a tokenizer.

autoencoder=pretrained-vae autoencoder.start=sdvae-mse
autoencoder=pretrained-vae autoencoder.start=animals-vae        # in the package
autoencoder=pretrained-vae autoencoder.start=vae autoencoder.start.model=FOLDER
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chz

from nanogen.config import choice
from nanogen.errors import ConfigError
from nanogen.registry import register
from nanogen.stage1.kl_vae import KlVae
from nanogen.stage1.tuned_vae import DiffusersVae
from nanogen.tokenizers.vae import Vae, VaeConfig
from nanogen.tokenizers.vae_files import KINDS


@register(
    "autoencoder",
    "pretrained-vae",
    summary="VAE of a tokenizer, trained further",
    licence="that of the tokenizer",
    needs="pip install 'nanogen[latents]', and autoencoder.start",
)
@chz.chz
class PretrainedVaeConfig:
    start: Any = choice("tokenizer")
    kl: float = chz.field(default=1e-6, doc="weight of the divergence, a sum over a latent's dims")

    @chz.validate
    def _ranges(self) -> None:
        if self.kl < 0:
            raise ConfigError(f"autoencoder.kl={self.kl}: must not be negative")

    def check_alone(self) -> None:
        """Refuse what has no effect where the VAE is trained alone: no latent is normalised."""
        for name in ("shift", "scale"):
            self._unset(name, "statistics are measured at the end of training")

    def _unset(self, name: str, why: str) -> None:
        """ConfigError for a field of `start` that is not at its default."""
        value = getattr(self.start, name, None)
        if value != getattr(type(self.start)(), name, None):
            raise ConfigError(
                f"autoencoder.start.{name}={value} has no effect: {why}; leave it out"
            )

    def build(self, image_size: int, seed: int) -> PretrainedVae:
        """ConfigError for a tokenizer that is no VAE of diffusers, or cannot be had."""
        self._unset("posterior", "training draws from the posterior, and encodes by its mean")
        try:
            tokenizer = self.start.build(image_size)
        except ConfigError as problem:
            # It names its own fields, which lie below this one.
            raise ConfigError(f"autoencoder.start: {problem}") from problem
        if not isinstance(tokenizer, Vae):
            raise ConfigError(
                "autoencoder.start is no VAE of diffusers, and has nothing to train; choose "
                "sdvae-mse, or vae with autoencoder.start.model"
            )
        return PretrainedVae(tokenizer, self.kl, seed)

    def tokenizer(self, folder: Path, image_size: int) -> VaeConfig:
        return VaeConfig(model=str(folder), patch=self.start.patch)


class PretrainedVae(KlVae):
    """`shift` and `scale` are those that the tokenizer normalises by so far."""

    def __init__(self, tokenizer: Vae, kl: float, seed: int) -> None:
        network = tokenizer.network.requires_grad_(True)
        vae = DiffusersVae(network, KINDS[type(network).__name__])
        super().__init__(vae, tokenizer.spec, kl, seed)
        self.shift = tokenizer.shift.clone()
        self.scale = tokenizer.scale.clone()
