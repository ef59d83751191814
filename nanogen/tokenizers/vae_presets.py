"""The autoencoders that published latent diffusion models use, by name.

    tokenizer=sdvae-mse
    tokenizer=flux tokenizer.model=/models/FLUX.1-dev           a folder in place of the hub

Each differs in its files, its licence, and what is known of its normalisation. "E2E" ones were
tuned end to end with a diffusion model (REPA-E, arXiv 2504.10483): their configs hold the mean and
deviation of each channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar

import chz

from nanogen.registry import register
from nanogen.tokenizers.base import TokenizerFacts
from nanogen.tokenizers.vae import VaeFields, check_epsilon
from nanogen.tokenizers.vae_statistics import EPSILON, Given, Known

T = TypeVar("T", bound=VaeFields)

STABILITY = "Stability AI Community"
FLUX = "FLUX [dev] non-commercial"
F8D4, F8D16, F16D32 = (4, 32, 32), (16, 32, 32), (32, 16, 16)
"""C, h, w for an image of 256 px"""


def preset(name: str, summary: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: register a tokenizer with the licence and the needs that its facts say."""

    def add(target: type[T]) -> type[T]:
        facts = target.facts
        needs = "pip install 'nanogen[latents]', and the model"
        if facts.status == "gated":
            needs += f" (accept its terms at https://huggingface.co/{facts.hub})"
        return register("tokenizer", name, summary=summary, licence=facts.licence, needs=needs)(
            target
        )

    return add


TUNED = Known("AutoencoderKL", tuned=True)


@preset("sdvae-ema", "SD-VAE fine-tuned, averaged weights: 4 channels, 8x")
@chz.chz
class SdVaeEma(VaeFields):
    # Its config is older than the field scaling_factor.
    known: ClassVar[Known] = Known("AutoencoderKL", shift=0.0, scale=0.18215)
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        "stabilityai/sd-vae-ft-ema", "MIT", F8D4, 83_653_863
    )
    model: str = facts.hub
    patch: int = 2


@preset("sdvae-mse", "SD-VAE fine-tuned on squared error: 4 channels, 8x")
@chz.chz
class SdVaeMse(VaeFields):
    known: ClassVar[Known] = SdVaeEma.known
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        "stabilityai/sd-vae-ft-mse", "MIT", F8D4, 83_653_863
    )
    model: str = facts.hub
    patch: int = 2


@preset("sdxl-vae", "SDXL-VAE, the repaired one for half precision: 4 channels, 8x")
@chz.chz
class SdxlVae(VaeFields):
    known: ClassVar[Known] = Known("AutoencoderKL", shift=0.0, scale=0.13025)
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        "madebyollin/sdxl-vae-fp16-fix", "MIT", F8D4, 83_653_863
    )
    model: str = facts.hub
    patch: int = 2


@preset("sd3.5", "SD3.5-VAE: 16 channels, 8x")
@chz.chz
class Sd35Vae(VaeFields):
    known: ClassVar[Known] = Known("AutoencoderKL")
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        "stabilityai/stable-diffusion-3.5-large", STABILITY, F8D16, 83_819_683, "gated"
    )
    model: str = facts.hub
    subfolder: str = "vae"
    patch: int = 2


@preset("flux", "FLUX.1-VAE: 16 channels, 8x")
@chz.chz
class FluxVae(VaeFields):
    known: ClassVar[Known] = Known("AutoencoderKL")
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        "black-forest-labs/FLUX.1-dev", FLUX, F8D16, 83_819_683, "gated"
    )
    model: str = facts.hub
    subfolder: str = "vae"
    patch: int = 2


@preset("flux2", "FLUX.2-VAE: 32 channels, 8x, packed into 128, 16x")
@chz.chz
class Flux2Vae(VaeFields):
    known: ClassVar[Known] = Known("AutoencoderKLFlux2")
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        "black-forest-labs/FLUX.2-dev", FLUX, (128, 16, 16), 84_046_115, "gated"
    )
    model: str = facts.hub
    subfolder: str = "vae"
    patch: int = 1
    eps: float = chz.field(default=EPSILON, doc="added to the variances of its batch statistics")

    @chz.validate
    def _epsilon(self) -> None:
        check_epsilon(self.eps)

    @property
    def given(self) -> Given:
        return Given(epsilon=self.eps)


@preset("qwen-vae", "Qwen-Image-VAE: 16 channels, 8x")
@chz.chz
class QwenVae(VaeFields):
    known: ClassVar[Known] = Known("AutoencoderKLQwenImage")
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        "Qwen/Qwen-Image", "Apache-2.0", F8D16, 126_892_531
    )
    model: str = facts.hub
    subfolder: str = "vae"
    patch: int = 2


@preset("vavae", "VA-VAE, aligned with DINOv2: 32 channels, 16x")
@chz.chz
class VaVae(VaeFields):
    known: ClassVar[Known] = TUNED
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        "REPA-E/vavae-hf", "unknown", F16D32, 69_836_067
    )
    model: str = facts.hub
    patch: int = 1


@preset("e2e-vavae", "VA-VAE tuned end to end: 32 channels, 16x")
@chz.chz
class E2eVaVae(VaeFields):
    known: ClassVar[Known] = TUNED
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        "REPA-E/e2e-vavae-hf", "unknown", F16D32, 69_836_067
    )
    model: str = facts.hub
    patch: int = 1


@preset("e2e-flux", "FLUX.1-VAE tuned end to end: 16 channels, 8x")
@chz.chz
class E2eFlux(VaeFields):
    known: ClassVar[Known] = TUNED
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        "REPA-E/e2e-flux-vae", "unknown", F8D16, 83_819_683
    )
    model: str = facts.hub
    patch: int = 2


@preset("e2e-sd3.5", "SD3.5-VAE tuned end to end: 16 channels, 8x")
@chz.chz
class E2eSd35(VaeFields):
    known: ClassVar[Known] = TUNED
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        "REPA-E/e2e-sd3.5-vae", "unknown", F8D16, 83_819_683
    )
    model: str = facts.hub
    patch: int = 2


@preset("e2e-qwen-vae", "Qwen-Image-VAE tuned end to end: 16 channels, 8x")
@chz.chz
class E2eQwen(VaeFields):
    known: ClassVar[Known] = Known("AutoencoderKLQwenImage", tuned=True)
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        "REPA-E/e2e-qwenimage-vae", "unknown", F8D16, 126_892_531
    )
    model: str = facts.hub
    patch: int = 2


@preset("e2e-sdvae-mse", "SD-VAE tuned end to end: 4 channels, 8x")
@chz.chz
class E2eSdVae(VaeFields):
    known: ClassVar[Known] = TUNED
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        "REPA-E/e2e-sdvae-hf", "unknown", F8D4, 83_653_863
    )
    model: str = facts.hub
    patch: int = 2


@preset("e2e-invae", "ImageNet VAE tuned end to end: 32 channels, 16x")
@chz.chz
class E2eInVae(VaeFields):
    known: ClassVar[Known] = TUNED
    facts: ClassVar[TokenizerFacts] = TokenizerFacts(
        "REPA-E/e2e-invae-hf", "MIT", F16D32, 69_836_067
    )
    model: str = facts.hub
    patch: int = 1
