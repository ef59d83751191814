"""Variational autoencoders of diffusers as tokenizers, normalised as each was meant to be.

    tokenizer=sdvae-mse                                       a known one, see vae_presets
    tokenizer=vae tokenizer.model=some/folder                 any other, from a folder or the hub
    tokenizer=vae tokenizer.model=... tokenizer.posterior=sample

`nanogen tokenizer probe` says whether another one fits, and measures what it needs.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import chz
import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from nanogen import rng
from nanogen.errors import ConfigError
from nanogen.fingerprint import digest_of
from nanogen.frozen import frozen
from nanogen.registry import register
from nanogen.tokenizers.base import Autoencoder, TokenizerFacts
from nanogen.tokenizers.vae_files import Files, Kind, Place, open_files
from nanogen.tokenizers.vae_statistics import Given, Known, Statistics, statistics
from nanogen.types import LatentSpec

DECODING = ("decoder.", "post_quant_conv.", "bn.")
"""weights that `raw` does not see"""
TOKEN = 16
"""pixels a side of a token, where the patch is not chosen"""


@chz.chz
class VaeFields:
    """What all of them have. A preset is a subclass with other defaults, facts, and `known`."""

    known: ClassVar[Known] = Known()
    facts: ClassVar[TokenizerFacts]

    model: str = chz.field(default="", doc="name on the hub, or a folder")
    subfolder: str = chz.field(default="", doc="folder of the autoencoder within the model")
    posterior: Literal["mode", "sample"] = chz.field(
        default="mode", doc="mode: the mean; sample: another draw each time an image is seen"
    )
    patch: int | None = chz.field(
        default=None, doc="latents a side of a token; None: 16 px, or what fits"
    )

    @chz.validate
    def _ranges(self) -> None:
        if self.posterior not in ("mode", "sample"):
            raise ConfigError(f"tokenizer.posterior={self.posterior!r}: choose mode or sample")
        if self.patch is not None and self.patch < 1:
            raise ConfigError(f"tokenizer.patch={self.patch}: must be at least 1")

    def build(self, image_size: int) -> Vae:
        """Load the network for images of `image_size` px; ConfigError says what to do where that
        fails.
        """
        files = self.files()
        spec = self._spec(files, image_size)
        network = files.network()
        found = statistics(files, network, self.known, self.given)
        return Vae(network, files.kind, spec, self.posterior, found)

    def files(self) -> Files:
        """The opened files; their weights are not read."""
        if not self.model:
            raise ConfigError(
                "tokenizer.model is not set; give a name on the hub or a folder, or choose a "
                "known tokenizer (nanogen ls tokenizers)"
            )
        gated = self.facts.status == "gated" and self.model == self.facts.hub
        usual = self.subfolder == type(self)().subfolder
        return open_files(Place(self.model, self.subfolder, self.known.network, gated, usual))

    @property
    def given(self) -> Given:
        """What the user gives for the normalisation."""
        return Given()

    def _spec(self, files: Files, image_size: int) -> LatentSpec:
        patch = self.patch or self._usual_patch(files.factor, image_size)
        step = files.factor * patch
        if image_size < step or image_size % step:
            raise ConfigError(
                f"images of {image_size} px do not fit {self.model}: their side must be a multiple "
                f"of {step} px ({files.factor} for a latent, times tokenizer.patch={patch}), such "
                f"as {max(1, round(image_size / step)) * step}"
            )
        side = image_size // files.factor
        return LatentSpec(files.channels, side, side, patch)

    def _usual_patch(self, factor: int, image_size: int) -> int:
        """Where the patch is not chosen."""
        return max(1, TOKEN // factor)


@register(
    "tokenizer",
    "vae",
    summary="any autoencoder of diffusers, from the hub or a folder",
    licence="that of the model",
    needs="pip install 'nanogen[latents]', and tokenizer.model",
)
@chz.chz
class VaeConfig(VaeFields):
    """Any other autoencoder. `shift` and `scale` replace what its config.json says."""

    facts: ClassVar[TokenizerFacts] = TokenizerFacts(licence="that of the model")

    shift: float | None = chz.field(default=None, doc="mean of raw latents; None: by config.json")
    scale: float | None = chz.field(default=None, doc="1 / deviation; None: by config.json")
    eps: float | None = chz.field(
        default=None, doc="added to the variances of FLUX.2, which has no other choice; None: 1e-5"
    )

    @chz.validate
    def _numbers(self) -> None:
        if self.shift is not None and not math.isfinite(self.shift):
            raise ConfigError(f"tokenizer.shift={self.shift}: must be finite")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise ConfigError(f"tokenizer.scale={self.scale}: must be above 0")
        check_epsilon(self.eps)

    @property
    def given(self) -> Given:
        return Given(self.shift, self.scale, self.eps)

    def _usual_patch(self, factor: int, image_size: int) -> int:
        """The largest of at most 16 px that divides the latents of these images."""
        side, most = image_size // factor, super()._usual_patch(factor, image_size)
        return max(patch for patch in range(1, most + 1) if side % patch == 0)


def check_epsilon(value: float | None) -> None:
    if value is not None and not 0 <= value < 1:
        raise ConfigError(f"tokenizer.eps={value}: must lie in [0, 1)")


class Vae(Autoencoder):
    """A frozen autoencoder for square images of one size."""

    def __init__(
        self,
        network: nn.Module,
        kind: Kind,
        spec: LatentSpec,
        posterior: Literal["mode", "sample"],
        statistics: Statistics,
    ) -> None:
        """`spec` and the statistics are those of packed latents, where the kind packs."""
        weights = network.state_dict()
        decoding = {name: w for name, w in weights.items() if name.startswith(DECODING)}
        encoding = {name: w for name, w in weights.items() if name not in decoding}
        name = f"{type(network).__name__}-{digest_of(encoding)}-{posterior}"
        super().__init__(
            spec,
            f"{name}-{spec.height}x{spec.width}",
            statistics.shift.value,
            statistics.scale.value,
        )
        self.network = network
        self.posterior = posterior
        self._kind = kind
        self._decoding = digest_of(decoding)
        frozen(self)

    @property
    def fingerprint(self) -> str:
        # A decoder may be tuned without a change of latents: a cache of them stays valid.
        return f"{super().fingerprint}/{self._decoding}"

    def raw(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> the posterior's mean [B, C, h, w]; with posterior=sample the
        mean and the standard deviation, [B, 2 C, h, w].
        """
        inputs = images * 2 - 1
        if self._kind.video:
            inputs = inputs[:, :, None]
        found = self.network.encode(inputs).latent_dist  # ty: ignore[not-callable]
        parts = [found.mean] if self.posterior == "mode" else [found.mean, found.std]
        if self._kind.video:
            parts = [part[:, :, 0] for part in parts]
        raw = torch.cat([pixel_unshuffle(part, self._kind.pack) for part in parts], dim=1)
        if raw.shape[2:] != (self.spec.height, self.spec.width):
            raise ConfigError(
                f"images of {tuple(images.shape[2:])} px give latents of {tuple(raw.shape[2:])}, "
                f"but the tokenizer was built for {(self.spec.height, self.spec.width)}; give it "
                "images of the size it was built for"
            )
        return raw

    def latents(self, raw: Tensor, keys: Tensor | None = None) -> Tensor:
        """What `raw` returned -> latents [B, C, h, w]. With posterior=sample each is drawn by its
        key, int64 [B]; ConfigError without keys.
        """
        if self.posterior == "mode":
            return super().latents(raw)
        if keys is None:
            raise ConfigError(
                "tokenizer.posterior=sample draws each latent by the key of its sample, but none "
                "were given; give keys, or use tokenizer.posterior=mode"
            )
        mean, deviation = raw.chunk(2, dim=1)
        noise = rng.normal(0, "posterior", keys.to(raw.device), tuple(mean.shape[1:]))
        return super().latents(mean + deviation * noise.to(raw.dtype))

    def from_raw(self, raw: Tensor) -> Tensor:
        """[B, C, h, w], not normalised -> [B, 3, H, W], clamped to [0, 1]; differentiable, without
        a gradient where it was clamped.
        """
        inputs = pixel_shuffle(raw, self._kind.pack)
        if self._kind.video:
            inputs = inputs[:, :, None]
        images = self.network.decode(inputs).sample  # ty: ignore[not-callable]
        if self._kind.video:
            images = images[:, :, 0]
        return ((images + 1) / 2).clamp(0, 1)
