"""The published recipe of decoders (arXiv 2510.11690, and the configs of diffusion-bench): all six
have each of its numbers.
"""

from __future__ import annotations

import math
from functools import reduce

import pytest

from nanogen.stage1 import recipes

EPOCH = 2_502 * 512

PUBLISHED = {
    "autoencoder.noise": 0.8,
    "autoencoder.width": 1152,
    "autoencoder.depth": 28,
    "autoencoder.heads": 16,
    "autoencoder.hidden": 4096,
    "data.size": 256,
    "data.flip": False,
    "perceptual.weight": 1.0,
    "discriminator.recipe": "S_8",
    "discriminator.weight": 0.75,
    "discriminator.adaptive": True,
    "discriminator.loss": "hinge",
    "discriminator.learns_from": 6 * EPOCH,
    "discriminator.judges_from": 8 * EPOCH,
    "discriminator.schedule_clock": "updates",
    "discriminator.augmentation.probability": 1.0,
    "discriminator.augmentation.translation": 0.125,
    "discriminator.augmentation.colour": True,
    "discriminator.augmentation.cutout": 0.0,
    "optimiser.lr": 2e-4,
    "optimiser.betas": (0.9, 0.95),
    "optimiser.weight_decay": 0.0,
    "optimiser.eps": 1e-8,
    "discriminator.optimiser.lr": 2e-4,
    "discriminator.optimiser.betas": (0.9, 0.95),
    "discriminator.optimiser.weight_decay": 0.0,
    "discriminator.optimiser.eps": 1e-8,
    "schedule.warmup": EPOCH,
    "schedule.shape": "cosine",
    "schedule.final": 0.1,
    "schedule.decay_start": None,
    "schedule.decay_end": None,
    "train.images": 16 * EPOCH,
    "train.batch": 512,
    "train.clip": math.inf,
    "train.ema": 0.9978,
    "train.ema_warmup": False,
    "train.precision": "bf16",
    "evaluation.quantise": "truncate",
}

NAMES = [name for name in recipes.names() if name.startswith("imagenet/rae-")]


def test_there_are_six():
    assert len(NAMES) == 6
    for name in NAMES:
        assert recipes.preset(name).autoencoder.encoder == name.removeprefix("imagenet/rae-")


@pytest.mark.parametrize("name", NAMES)
def test_published_numbers(name):
    run = recipes.preset(name)
    found = {path: reduce(getattr, path.split("."), run) for path in PUBLISHED}
    assert found == PUBLISHED
