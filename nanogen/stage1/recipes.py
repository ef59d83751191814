"""Named trainings of tokenizers: `<data>/<kind>`.

animals/vae                  a small VAE of silhouettes, 28 px; minutes on a CPU
scenes/vae                   the same of coloured scenes, 40 px
animals/rae, scenes/rae      a decoder for the tokens of the embedded encoder
imagenet/rae-dinov2-vit-b    the published decoder of DINOv2-B, ImageNet-256; 8 GPUs of 80 GB
imagenet/vae                 a VAE of the size and factor of SD-VAE, from scratch
"""

from __future__ import annotations

from dataclasses import dataclass

from nanogen import config, registry
from nanogen.errors import ConfigError, suggest
from nanogen.recipes import Values
from nanogen.stage1.run import TokenizerRun

EPOCH = 2502 * 512
"""images of one epoch of ImageNet in steps of 512"""

PARTS = {
    "data": "data",
    "autoencoder": "autoencoder",
    "perceptual": "distance",
    "discriminator": "discriminator",
    "optimiser": "optimiser",
}
"""fields that hold a registered part, and its kind"""

SMALL: Values = {
    "optimiser": "adamw",
    "optimiser.lr": 2e-3,
    "schedule.warmup": 3_200,
    "schedule.shape": "cosine",
    "schedule.final": 0.0,
    "train.images": 64_000,
    "train.batch": 32,
    "train.ema": 0.998,
    "train.ema_warmup": True,
    "train.log_every": 1_600,
    "train.save_every": 16_000,
    "train.sample_every": 16_000,
    "statistics": 10_000,
    "perceptual": "none",
    "discriminator": "none",
}
"""what trains on two CPU cores"""

SMALL_VAE: Values = {
    "autoencoder": "kl-vae",
    "autoencoder.channels": 4,
    "autoencoder.widths": (16, 32, 48),
    "autoencoder.layers": 1,
    "autoencoder.groups": 8,
    "autoencoder.attention": False,
}

SMALL_RAE: Values = {
    "autoencoder": "rae",
    "autoencoder.encoder": "animals-vit",
    "autoencoder.width": 96,
    "autoencoder.depth": 3,
    "autoencoder.heads": 4,
    "autoencoder.hidden": 384,
    "autoencoder.noise": 0.2,
}

ENCODERS = (
    "dinov2-vit-b",
    "dinov3-vit-b16",
    "siglip2-vit-b",
    "pe-vit-l",
    "langpe-vit-l",
    "spatialpe-vit-l",
)
"""the six of the paper's tables"""

PAPER: Values = {
    "data": "folder",
    "data.path": "data/imagenet/train",
    "data.flip": False,
    "perceptual": "lpips",
    "discriminator": "dino",
    "discriminator.learns_from": 6 * EPOCH,
    "discriminator.judges_from": 8 * EPOCH,
    "discriminator.schedule_clock": "updates",
    "optimiser": "adamw",
    "optimiser.lr": 2e-4,
    "schedule.warmup": EPOCH,
    "schedule.shape": "cosine",
    "schedule.final": 0.1,
    "train.images": 16 * EPOCH,
    "train.batch": 512,
    "train.clip": float("inf"),
    "train.ema": 0.9978,
    "train.precision": "bf16",
    "train.log_every": 51_200,
    "train.save_every": EPOCH,
    "train.sample_every": EPOCH,
    "evaluation.quantise": "truncate",
}
"""as diffusion-bench trains its decoders: 16 epochs of AdamW, a discriminator from epoch 6 on,
against which the decoder plays from epoch 8 on
"""


@dataclass(frozen=True)
class TokenizerRecipe:
    summary: str
    values: Values


RECIPES: dict[str, TokenizerRecipe] = {
    "animals/vae": TokenizerRecipe(
        "VAE of 28 px silhouettes, 4 x 7 x 7 latents; minutes on a CPU",
        SMALL | SMALL_VAE | {"data": "animals"},
    ),
    "scenes/vae": TokenizerRecipe(
        "VAE of 40 px scenes, 4 x 10 x 10 latents; minutes on a CPU",
        SMALL | SMALL_VAE | {"data": "scenes"},
    ),
    "animals/rae": TokenizerRecipe(
        "decoder of the embedded encoder, 28 px; minutes on a CPU",
        SMALL | SMALL_RAE | {"data": "animals"},
    ),
    "scenes/rae": TokenizerRecipe(
        "decoder of the embedded encoder, 40 px; minutes on a CPU",
        SMALL | SMALL_RAE | {"data": "scenes"},
    ),
    **{
        f"imagenet/rae-{encoder}": TokenizerRecipe(
            f"the published decoder of {encoder}, XL, ImageNet-256; 8 GPUs of 80 GB",
            PAPER | {"autoencoder": "rae", "autoencoder.encoder": encoder},
        )
        for encoder in ENCODERS
    },
    "imagenet/vae": TokenizerRecipe(
        "VAE of the size of SD-VAE, 4 x 32 x 32 latents; 8 GPUs of 80 GB",
        PAPER | {"autoencoder": "kl-vae"},
    ),
}


def names() -> list[str]:
    """All presets."""
    return list(RECIPES)


def describe(name: str) -> str:
    """One line on a preset."""
    return RECIPES[name].summary


def preset(name: str) -> TokenizerRun:
    """The run of a preset; an unknown name is a ConfigError with the nearest ones."""
    if name not in RECIPES:
        raise ConfigError(f"unknown preset {name!r}; {suggest(name, RECIPES)}")
    values = {
        path: registry.get(PARTS[path], value) if path in PARTS else value
        for path, value in RECIPES[name].values.items()
    }
    return config.make(TokenizerRun, {"name": f"tokenizers/{name}"} | values)
