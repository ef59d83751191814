"""Representation autoencoders (RAE, arXiv 2510.11690): the tokens of a frozen vision encoder as
latents, and a decoder that was trained to make images of them.

    tokenizer=rae-dinov2-vit-b                                    as published, from the hub
    tokenizer=rae tokenizer.decoder=runs/tokenizers/my-rae/tokenizer      one of your own

    f = encoder(x)                           [B, N, C]
    z = (f - mean) / sqrt(var + 1e-5)        mean and var by channel and position
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import ClassVar

import chz
import torch
from torch import Tensor, nn

from nanogen.encoders.vision import VisionEncoder, open_encoder
from nanogen.errors import ConfigError
from nanogen.fingerprint import digest_of_module
from nanogen.frozen import frozen
from nanogen.registry import register
from nanogen.tokenizers import statistics as latent_statistics
from nanogen.tokenizers.base import Autoencoder, TokenizerFacts
from nanogen.tokenizers.rae_decoder import RaeDecoder
from nanogen.tokenizers.rae_files import (
    Files,
    OutputSpace,
    open_rae,
    published_statistics,
)
from nanogen.tokenizers.statistics import Statistics
from nanogen.types import LatentSpec

NEEDS = "pip install 'nanogen[latents]', and the files"
PLAIN = 0.02
"""how far from 1 the mean square of affine-free features may be measured"""
XL = 415_352_704
"""parameters of the published decoder of 768 channels"""


@chz.chz
class RaeFields:
    """What all of them have. A published one is a subclass that names its encoder."""

    published: ClassVar[str] = ""
    """the encoder whose decoder and statistics are on the hub"""
    facts: ClassVar[TokenizerFacts]

    encoder: str = chz.field(default="", doc="see nanogen ls encoders; empty: as the folder says")
    encoder_path: str = chz.field(default="", doc="folder or file in place of the hub")
    decoder: str = chz.field(default="", doc="exported folder, or decoder.pt of diffusion-bench")
    statistics: str = chz.field(default="", doc="file; empty: what lies beside the decoder")
    output_space: OutputSpace | None = chz.field(
        default=None,
        doc="unit: the decoder gives [0, 1]; encoder: pixels as its encoder is fed them; None: as "
        "the folder says, unit for published files",
    )

    @chz.validate
    def _choices(self) -> None:
        if self.output_space not in (None, "unit", "encoder"):
            raise ConfigError(f"tokenizer.output_space={self.output_space!r}: choose unit, encoder")

    def build(self, image_size: int) -> Rae:
        """Load encoder, decoder and statistics; ConfigError says what to do where one is missing
        or two of them do not fit each other.
        """
        local = open_rae(self.decoder) if self.decoder or not self.published else None
        encoder = open_encoder(self._encoder_name(local), image_size, self.encoder_path)
        # The hub gives the decoder last: a gated encoder is refused before gigabytes are fetched.
        files = local or open_rae("", self.published)
        decoder = files.weights.module()
        _check_fit(files, encoder, image_size)
        _check_encoder(files, encoder)
        statistics = self._statistics(files, encoder)
        check_norm(encoder, statistics)
        space = self.output_space or (files.about.output_space if files.about else "unit")
        return Rae(encoder, decoder, statistics, space)

    def _encoder_name(self, local: Files | None) -> str:
        """Of the encoder to open; `local` is the decoder at a path of one's own."""
        there = local.about.encoder if local and local.about else ""
        if self.encoder and self.published and _plain(self.encoder) != self.published:
            raise ConfigError(
                f"tokenizer.encoder={self.encoder}, but this tokenizer is that of "
                f"{self.published}; use tokenizer=rae for others"
            )
        asked = self.encoder or self.published
        if local and asked and there and _plain(asked) != _plain(there):
            fix = "leave the encoder out" if self.encoder else "use tokenizer=rae"
            raise ConfigError(
                f"{asked} is asked for, but {local.weights.where} was trained on {there}; {fix}, "
                "or give a decoder of its own"
            )
        if local and not asked and not there:
            raise ConfigError(
                f"tokenizer.encoder is not set, and {local.weights.where} does not say what it was "
                "trained on; name it (see nanogen ls encoders)"
            )
        # Options that a folder names hold for its preset too.
        return self.encoder or there or self.published

    def _statistics(self, files: Files, encoder: VisionEncoder) -> Statistics:
        if self.statistics:
            file = Path(self.statistics).expanduser()
        elif files.statistics is not None:
            file = files.statistics
        elif self.published and not self.decoder:
            file = published_statistics(self.published, "tokenizer.statistics")
        else:
            raise ConfigError(
                f"there are no statistics beside {files.weights.where}; set tokenizer.statistics, "
                "and make the file with nanogen tokenizer stats if need be"
            )
        return latent_statistics.load(file, (encoder.width, encoder.grid, encoder.grid))


class Rae(Autoencoder):
    """A frozen encoder with its decoder, for square images of one size. It never adds noise to the
    features: that is for the training of the decoder.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        decoder: RaeDecoder,
        statistics: Statistics,
        output_space: OutputSpace = "unit",
    ) -> None:
        spec = LatentSpec(encoder.width, encoder.grid, encoder.grid, patch=1)
        name = f"rae-{encoder.fingerprint}"
        super().__init__(spec, name, statistics.mean, statistics.scale)
        self.encoder = encoder
        self.decoder = decoder
        self.output = _output(encoder, output_space)
        self._decoding = f"{digest_of_module(decoder)}-{output_space}"
        frozen(self)

    @property
    def fingerprint(self) -> str:
        # Another decoder leaves the latents as they are: a cache of them stays valid.
        return f"{super().fingerprint}/{self._decoding}"

    @torch.no_grad()
    def raw(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> features [B, C, h, w] of the encoder."""
        return as_grid(self.encoder(images).patches)

    def from_raw(self, raw: Tensor) -> Tensor:
        """Features [B, C, h, w] -> [B, 3, H, W], not clamped; differentiable."""
        return self.output(self.decoder(raw))


class _Denormalised(nn.Module):
    """Pixels as an encoder is fed them, back to [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone(), persistent=False)
        self.register_buffer("std", std.clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.std + self.mean


def _output(encoder: VisionEncoder, space: OutputSpace) -> nn.Module:
    if space == "unit":
        return nn.Identity()
    preprocess = getattr(encoder, "preprocess", None)
    if preprocess is None:
        raise ConfigError(
            f"tokenizer.output_space=encoder: no mean and deviation of pixels are known of "
            f"{encoder.name}; use unit"
        )
    return _Denormalised(preprocess.mean, preprocess.std)


def _plain(encoder: str) -> str:
    """A name without its options."""
    return encoder.partition("[")[0]


def as_grid(patches: Tensor) -> Tensor:
    """[B, N, C], row by row -> [B, C, h, w] of a square grid."""
    side = round(patches.shape[1] ** 0.5)
    return patches.transpose(1, 2).unflatten(2, (side, side))


def check_norm(encoder: VisionEncoder, statistics: Statistics) -> None:
    """Warn where statistics were made with another final norm than the encoder's.

    After a LayerNorm without affine the mean square of a token is 1; with one it is not.
    """
    norm, reading = getattr(encoder, "norm", None), getattr(encoder, "reading", None)
    if not isinstance(norm, nn.LayerNorm) or (reading is not None and reading.layers):
        return
    plain = abs(statistics.power - 1) < PLAIN
    if plain == norm.elementwise_affine:
        made = "without its affine" if plain else "with an affine"
        warnings.warn(
            f"the statistics (mean square {statistics.power:.3f}) seem to be made {made} in the "
            f"final norm, unlike {encoder.name}; choose its option norm or strip, or the "
            "statistics of this very encoder",
            stacklevel=2,
        )


def _check_fit(files: Files, encoder: VisionEncoder, image_size: int) -> None:
    config = files.weights.config
    if config.channels != encoder.width:
        raise ConfigError(
            f"{files.weights.where} decodes {config.channels} channels, but {encoder.name} has "
            f"{encoder.width}; give the decoder of this encoder"
        )
    if config.image_size != image_size:
        raise ConfigError(
            f"{files.weights.where} makes images of {config.image_size} px, not {image_size}; give "
            f"it images of that size (task.data.size={config.image_size} in a run, --size "
            f"{config.image_size} on the command line), or a decoder for {image_size} px"
        )


def _check_encoder(files: Files, encoder: VisionEncoder) -> None:
    """A decoder makes nothing of the tokens of other weights."""
    there = files.about.encoder_fingerprint if files.about else ""
    if there and there != encoder.fingerprint:
        raise ConfigError(
            f"{files.weights.where} was trained on other weights of {encoder.name}, or on other "
            f"options of it ({there} there, {encoder.fingerprint} here); give those with "
            "tokenizer.encoder_path and tokenizer.encoder, or train a decoder for these"
        )


@register(
    "tokenizer",
    "rae",
    summary="tokens of any vision encoder, and a decoder trained for them",
    licence="that of the files",
    needs="pip install 'nanogen[latents]', and tokenizer.decoder",
)
@chz.chz
class RaeConfig(RaeFields):
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(licence="that of the files")
