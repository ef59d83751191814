"""What the tests of terms share: facts of a small run on embedded images, and steps to look at."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nanogen.data.animals import Animals
from nanogen.encoders.teachers import Teachers
from nanogen.encoders.vision import VisionEncoder, open_encoder
from nanogen.objectives import path
from nanogen.objectives.base import Facts, Inputs, Step, squared_error
from nanogen.tokenizers.pixels import PixelsConfig
from nanogen.types import Batch, LabelCondition, Prediction, State, to_float

SIZE = 28
WIDTH = 16
"""of the backbone's features"""
TOKENIZER = PixelsConfig(patch=4).build(SIZE)
TOKENS = 49


def facts(**fields: Any) -> Facts:
    """Pixels of 28 px in 7 x 7 tokens, as many as `animals-vit` gives."""
    known = Facts(
        seed=3,
        latent=TOKENIZER.spec,
        image_size=SIZE,
        feature_width=WIDTH,
        decode=TOKENIZER.decode,
        blocks=4,
        batch=6,
        teachers=Teachers(SIZE),
    )
    return replace(known, **fields)


@cache
def encoder(size: int = SIZE) -> VisionEncoder:
    """The embedded one, opened beside all teachers."""
    return open_encoder("animals-vit", size)


@cache
def silhouettes(count: int = 6) -> Tensor:
    """float [count, 3, 28, 28]: real ones, of different classes."""
    source = Animals().build()
    pick = range(0, source.count("train"), source.count("train") // count)
    return to_float(torch.stack([source.read("train", i, 0).image for i in pick][:count]))


def batch(count: int = 6, first: int = 0) -> Batch:
    keys = torch.arange(first, first + count)
    return Batch(silhouettes()[:count], keys, labels=keys % 3)


def inputs(given: Batch) -> Inputs:
    assert given.labels is not None
    condition, null = LabelCondition(given.labels), LabelCondition(torch.full_like(given.labels, 3))
    kept = torch.ones(len(given), dtype=torch.bool)
    return Inputs(given, given.images * 2 - 1, condition, kept, null)


def step(t: Tensor, x_hat: Tensor, features: Tensor | None = None, **leaves: Tensor) -> Step:
    """A step of x-prediction on `batch()`, whose times are `t` [B] and predicted data `x_hat`."""
    given = batch(len(t))
    clean: State = dict(leaves) | {"image": given.images * 2 - 1}
    generator = torch.Generator().manual_seed(1)
    noise = {n: torch.randn(x.shape, generator=generator) for n, x in clean.items()}
    noisy = path.leafwise(lambda x, e: path.mix(x, e, t), clean, noise)
    target = path.leafwise(path.velocity, clean, noise)

    def errors(other: State) -> State:
        return squared_error(other, {name: target[name] for name in other})

    return Step(
        given,
        clean,
        noisy,
        t,
        Prediction({"image": x_hat}, {} if features is None else {"block2": features}),
        velocity=target,
        target=target,
        errors=errors,
        data={"image": x_hat},
        times=lambda keys: t[keys % len(t)],
    )
