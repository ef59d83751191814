"""Training a variational autoencoder (arXiv 2112.10752), of the blocks of diffusers' AutoencoderKL.

    autoencoder=kl-vae autoencoder.widths=32,64,96 autoencoder.channels=4      each latent is 4 px

What is exported is a folder that diffusers loads, with `latents_mean` and `latents_std` in its
config.json: `tokenizer=vae tokenizer.model=FOLDER`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chz
import torch
from torch import Tensor, nn

from nanogen import dist, rng
from nanogen.data.base import Source
from nanogen.errors import ConfigError, MissingExtra
from nanogen.registry import register
from nanogen.stage1.autoencoder import Reconstruction, TrainableAutoencoder, latent_statistics
from nanogen.stage1.tuned_vae import DiffusersVae, export
from nanogen.tokenizers.vae import TOKEN, VaeConfig
from nanogen.tokenizers.vae_files import KINDS
from nanogen.train.signals import Check
from nanogen.types import Batch, LatentSpec

CLASS = "AutoencoderKL"


@register(
    "autoencoder",
    "kl-vae",
    summary="variational autoencoder of diffusers' blocks",
    needs="pip install 'nanogen[latents]'",
)
@chz.chz
class KlVaeConfig:
    channels: int = chz.field(default=4, doc="of a latent")
    widths: tuple[int, ...] = chz.field(
        default=(128, 256, 512, 512), doc="channels of each level, half as many px as the last"
    )
    layers: int = chz.field(default=2, doc="residual blocks of a level")
    groups: int = chz.field(default=32, doc="of every group norm; divides the widths")
    attention: bool = chz.field(default=True, doc="between the levels and the latents")
    kl: float = chz.field(default=1e-6, doc="weight of the divergence, a sum over a latent's dims")

    @chz.validate
    def _ranges(self) -> None:
        if min(self.channels, self.layers, self.groups) < 1:
            raise ConfigError("autoencoder: channels, layers and groups must be at least 1")
        if not self.widths or any(w < 1 or w % self.groups for w in self.widths):
            raise ConfigError(
                f"autoencoder.widths={','.join(map(str, self.widths))}: must be multiples of "
                f"autoencoder.groups={self.groups}"
            )
        if self.kl < 0:
            raise ConfigError(f"autoencoder.kl={self.kl}: must not be negative")

    @property
    def factor(self) -> int:
        """Pixels a side of a latent."""
        return 2 ** (len(self.widths) - 1)

    def build(self, image_size: int, seed: int) -> KlVae:
        """Random weights, by torch's generator; ConfigError for images that no grid fits."""
        if image_size % self.factor:
            raise ConfigError(
                f"images of {image_size} px do not fit {len(self.widths)} autoencoder.widths: "
                f"their side must be a multiple of {self.factor} px"
            )
        side = image_size // self.factor
        spec = LatentSpec(self.channels, side, side, 1)
        return KlVae(DiffusersVae(_network(self, image_size), KINDS[CLASS]), spec, self.kl, seed)

    def tokenizer(self, folder: Path, image_size: int) -> VaeConfig:
        usual, side = max(1, TOKEN // self.factor), image_size // self.factor
        fits = [patch for patch in range(1, usual + 1) if side % patch == 0]
        return VaeConfig(model=str(folder), patch=None if usual in fits else fits[-1])


class KlVae(TrainableAutoencoder):
    """Encoder and decoder are trained; a latent is drawn from its posterior."""

    shift: Tensor | float = 0.0
    scale: Tensor | float = 1.0
    """how raw latents are normalised so far: (raw - shift) * scale"""

    def __init__(self, vae: DiffusersVae, spec: LatentSpec, kl: float, seed: int) -> None:
        """`kl`: weight of the divergence."""
        super().__init__()
        self.vae, self.spec, self.kl, self.seed = vae, spec, kl, seed

    def forward(self, batch: Batch) -> Reconstruction:
        mean, log_variance = (x.float() for x in self.vae.moments(batch.images * 2 - 1))
        noise = rng.normal(self.seed, "posterior", batch.keys, tuple(mean.shape[1:]))
        drawn = mean + (log_variance / 2).exp() * noise
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2
        return Reconstruction(self.from_raw(drawn), {"kl": divergence}, {"kl": self.kl})

    def raw(self, images: Tensor) -> Tensor:
        return self.vae.moments(images * 2 - 1)[0]

    def from_raw(self, raw: Tensor) -> Tensor:
        return (self.vae.reconstruct(raw).float() + 1) / 2

    @property
    def last(self) -> nn.Parameter:
        return self.vae.network.decoder.conv_out.weight

    @torch.no_grad()
    def export(self, folder: Path, source: Source, most: int, check: Check) -> None:
        found = latent_statistics(self, source, most, check)
        # Of a channel, over its places: the mean of the squares less the square of the mean.
        mean = found.mean.double().mean((1, 2))
        squares = (found.variance.double() + found.mean.double().square()).mean((1, 2))
        deviation = (squares - mean.square()).clamp(min=0).sqrt()
        if dist.rank() == 0:
            export(self.vae, folder, mean, deviation)
        dist.barrier()


def _network(config: KlVaeConfig, image_size: int) -> Any:
    try:
        import diffusers
    except ImportError as problem:
        raise MissingExtra("diffusers", "pip install 'nanogen[latents]'") from problem
    levels = len(config.widths)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.widths,
        layers_per_block=config.layers,
        latent_channels=config.channels,
        norm_num_groups=config.groups,
        mid_block_add_attention=config.attention,
        sample_size=image_size,
    )
