"""Named runs of REPA-E, for `nanogen tokenizer train`.

animals/vae-e2e     the VAE in the package, of animals/vae, tuned by a small transformer; on a CPU
repa-e/sdvae        SD-VAE on ImageNet-256, as published but for the transformer; 8 GPUs of 80 GB
repa-e/vavae        VA-VAE likewise
"""

from __future__ import annotations

from dataclasses import dataclass

from nanogen import config, registry
from nanogen.recipes import Values
from nanogen.stage1.repa_e_run import RepaERun

PARTS = {
    "task": "task",
    "task.data": "data",
    "autoencoder": "autoencoder",
    "autoencoder.start": "tokenizer",
    "conditioner": "conditioner",
    "backbone": "backbone",
    "perceptual": "distance",
    "discriminator": "discriminator",
    "optimiser": "optimiser",
}
"""fields that hold a registered part, and its kind"""

SHARED: Values = {
    "task": "class_conditional",
    "conditioner": "labels",
    "backbone": "ddt",
    "autoencoder": "pretrained-vae",
    "discriminator": "patch",
    "discriminator.weight": 0.1,
    "discriminator.adaptive": False,
    "discriminator.augmentation.probability": 0.0,
    "optimiser": "adamw",
}

PAPER: Values = SHARED | {
    "task.data": "folder",
    "task.data.path": "data/imagenet/train",
    "task.data.flip": False,
    "perceptual": "lpips",
    "optimiser.lr": 1e-4,
    "optimiser.betas": (0.9, 0.999),
    "discriminator.optimiser.lr": 1e-4,
    "discriminator.optimiser.betas": (0.9, 0.999),
    "train.images": 400_000 * 256,
    "train.batch": 256,
    "train.ema": 0.9999,
    "train.precision": "bf16",
    "train.log_every": 25_600,
    "train.save_every": 20_000 * 256,
    "train.sample_every": 20_000 * 256,
}
"""the published numbers; bf16 stands for the half precision of the authors' code"""

SMALL: Values = SHARED | {
    "task.data": "animals",
    "autoencoder.start": "animals-vae",
    "autoencoder.start.patch": 1,
    "backbone.depth": 4,
    "backbone.width": 128,
    "backbone.heads": 4,
    "backbone.decoder_depth": 1,
    "backbone.decoder_width": 160,
    "backbone.decoder_heads": 4,
    "alignment.encoder": "animals-vit",
    "alignment.block": 2,
    "alignment.hidden": 256,
    "perceptual": "none",
    "discriminator.channels": 16,
    "discriminator.layers": 2,
    "discriminator.optimiser.lr": 5e-4,
    "optimiser.lr": 5e-4,
    "train.images": 32_000,
    "train.batch": 32,
    "train.ema": 0.998,
    "train.ema_warmup": True,
    "train.log_every": 1_600,
    "train.save_every": 16_000,
    "train.sample_every": 16_000,
}
"""what trains on two CPU cores"""


@dataclass(frozen=True)
class Recipe:
    summary: str
    values: Values


RECIPES: dict[str, Recipe] = {
    "animals/vae-e2e": Recipe("the VAE in the package, tuned end to end; minutes on a CPU", SMALL),
    "repa-e/sdvae": Recipe(
        "SD-VAE tuned end to end on ImageNet-256; 8 GPUs of 80 GB",
        PAPER | {"autoencoder.start": "sdvae-mse"},
    ),
    "repa-e/vavae": Recipe(
        "VA-VAE tuned end to end on ImageNet-256; 8 GPUs of 80 GB",
        PAPER | {"autoencoder.start": "vavae"},
    ),
}


def summaries() -> dict[str, str]:
    """One line on each preset, by its name."""
    return {name: recipe.summary for name, recipe in RECIPES.items()}


def preset(name: str) -> RepaERun:
    """The run of one of `RECIPES`."""
    values = {
        path: registry.get(PARTS[path], value) if path in PARTS else value
        for path, value in RECIPES[name].values.items()
    }
    return config.make(RepaERun, {"name": f"tokenizers/{name}"} | values)
