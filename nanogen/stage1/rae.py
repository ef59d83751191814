"""Training the decoder of a representation autoencoder (RAE, arXiv 2510.11690): the encoder is
frozen, and the decoder learns to see through noise on its features.

    autoencoder=rae autoencoder.encoder=dinov2-vit-b
    autoencoder=rae autoencoder.encoder=animals-vit autoencoder.width=128 autoencoder.depth=4 ...

Training knows no statistics of the features; those of what is exported are measured at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Self

import chz
import torch
from torch import Tensor, nn

from nanogen import dist, rng
from nanogen.data.base import Source
from nanogen.encoders.vision import VisionEncoder, open_encoder
from nanogen.errors import ConfigError
from nanogen.files import whole_folder
from nanogen.registry import register
from nanogen.stage1.autoencoder import Reconstruction, TrainableAutoencoder, latent_statistics
from nanogen.tokenizers.rae import RaeConfig, as_grid
from nanogen.tokenizers.rae_decoder import SIZES, DecoderConfig, RaeDecoder
from nanogen.tokenizers.rae_files import About, save_rae
from nanogen.train.signals import Check
from nanogen.types import Batch, LatentSpec


@register(
    "autoencoder",
    "rae",
    summary="decoder of a frozen vision encoder (arXiv 2510.11690)",
    needs="the weights of the encoder",
)
@chz.chz
class RaeTraining:
    """The decoder is of the published size XL unless it is said otherwise."""

    encoder: str = chz.field(default="dinov2-vit-b", doc="nanogen ls encoders")
    path: str = chz.field(default="", doc="the encoder's weights in place of the hub")
    width: int = chz.field(default=SIZES["XL"]["width"], doc="of the decoder")
    depth: int = SIZES["XL"]["depth"]
    heads: int = SIZES["XL"]["heads"]
    hidden: int = chz.field(default=SIZES["XL"]["hidden"], doc="units of a block's MLP")
    noise: float = chz.field(
        default=0.8,
        doc="largest deviation of the noise on features, uniform from 0 for each sample; 0: none",
    )

    @chz.validate
    def _ranges(self) -> None:
        if self.noise < 0:
            raise ConfigError(f"autoencoder.noise={self.noise}: must not be negative")

    def build(self, image_size: int, seed: int) -> Rae:
        """A decoder with random weights, by torch's generator; ConfigError where encoder and images
        do not fit.
        """
        encoder = open_encoder(self.encoder, image_size, self.path)
        if image_size % encoder.grid:
            raise ConfigError(
                f"{self.encoder} sees {encoder.grid} x {encoder.grid} tokens, which do not divide "
                f"images of {image_size} px; choose another data.size"
            )
        decoder = DecoderConfig(
            channels=encoder.width,
            grid=encoder.grid,
            patch=image_size // encoder.grid,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            hidden=self.hidden,
        )
        return Rae(encoder, RaeDecoder(decoder), self.noise, seed)

    def tokenizer(self, folder: Path, image_size: int) -> RaeConfig:
        return RaeConfig(decoder=str(folder), encoder_path=self.path)


class Rae(TrainableAutoencoder):
    """A frozen encoder, and the decoder that is trained."""

    def __init__(
        self, encoder: VisionEncoder, decoder: RaeDecoder, noise: float, seed: int
    ) -> None:
        super().__init__()
        # A frozen network must not become a submodule: a tuple hides it.
        self._encoder = (encoder,)
        self.decoder, self.noise, self.seed = decoder, noise, seed
        self.spec = LatentSpec(encoder.width, encoder.grid, encoder.grid, 1)

    @property
    def encoder(self) -> VisionEncoder:
        return self._encoder[0]

    def forward(self, batch: Batch) -> Reconstruction:
        features = self.raw(batch.images)
        if self.noise:
            features = noisy(features, self.noise, batch.keys, self.seed)
        return Reconstruction(self.from_raw(features))

    @torch.no_grad()
    def raw(self, images: Tensor) -> Tensor:
        return as_grid(self.encoder(images).patches)

    def from_raw(self, raw: Tensor) -> Tensor:
        return self.decoder(raw)

    @property
    def last(self) -> nn.Parameter:
        return self.decoder.get_parameter("out_proj.weight")

    def export(self, folder: Path, source: Source, most: int, check: Check) -> None:
        found = latent_statistics(self, source, most, check)
        if dist.rank() == 0:
            about = About(
                self.encoder.name,
                self.decoder.config.image_size,
                encoder_fingerprint=self.encoder.fingerprint,
            )
            with whole_folder(folder, replace=True) as part:
                save_rae(part, self.decoder, about, found)
        dist.barrier()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """The encoder moves along to another device or type."""
        self.encoder._apply(fn, recurse)
        return super()._apply(fn, recurse)


def noisy(features: Tensor, most: float, keys: Tensor, seed: int) -> Tensor:
    """[B, C, h, w] + s n, with n ~ N(0, 1) and s ~ U(0, most) for each sample, by its key: E s^2 is
    most^2 / 3. Published code draws s so; the paper describes the modulus of a normal.
    """
    scale = most * rng.uniform(seed, "noise/scale", keys, 1)[:, :, None, None]
    return features + scale * rng.normal(seed, "noise/features", keys, tuple(features.shape[1:]))
