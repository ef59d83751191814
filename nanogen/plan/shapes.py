"""The shapes of what surrounds a network, known without its files: data, latents, captions.

surroundings(run).latent        LatentSpec(channels=128, height=16, width=16, patch=1)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nanogen.encoders.teachers import Teachers
from nanogen.errors import ConfigError, DataError
from nanogen.objectives.base import Objective
from nanogen.registry import entry_of
from nanogen.run import Run, objective_of
from nanogen.tokenizers.base import TokenizerFacts
from nanogen.tokenizers.embedded import AnimalsVae
from nanogen.types import ConditionSpec, LatentSpec

IMAGENET_CLASSES = 1000
"""of data in class folders that are not here yet"""
TEXT_WIDTHS = {"Qwen/Qwen3-0.6B": 1024, "Qwen/Qwen3-1.7B": 2048, "Qwen/Qwen3-4B": 2560}
"""D of text encoders on the hub that can be planned for without them"""


@dataclass(frozen=True)
class Surroundings:
    """What a network is built between."""

    image_size: int
    latent: LatentSpec
    condition: ConditionSpec
    assumed: tuple[str, ...] = ()
    """what was taken for granted, since it is not here"""


def surroundings(run: Run) -> Surroundings:
    """ConfigError for a tokenizer or a text encoder whose shape is not known without its files."""
    assumed: list[str] = []
    size, classes = _data(run, assumed)
    return Surroundings(size, _latent(run, size), _condition(run, classes, assumed), tuple(assumed))


def objective_on_meta(run: Run, around: Surroundings) -> Objective:
    """The objective of a run with its terms, which say how its network is wired; no teacher is
    opened.
    """
    with torch.device("meta"):
        return objective_of(run, Teachers(around.image_size), around.latent, decode=nn.Identity())


def _data(run: Run, assumed: list[str]) -> tuple[int, int]:
    """Pixels a side, and classes (0 where there are none)."""
    data = run.task.data
    try:
        source = data.build()
        return source.size, len(source.classes)
    except DataError:
        # Data that must be fetched first: its own field says how large images will be.
        classes = IMAGENET_CLASSES if entry_of(type(run.task)).name == "class_conditional" else 0
        if classes:
            assumed.append(f"{classes} classes: {data.path} is not here")
        return data.size, classes


def _latent(run: Run, size: int) -> LatentSpec:
    facts: TokenizerFacts | None = getattr(run.tokenizer, "facts", None)
    if isinstance(run.tokenizer, AnimalsVae):
        return run.tokenizer.space(size)
    if facts is None or facts.latent is None:
        return run.tokenizer.build(size).spec
    channels, height, width = facts.latent
    if size * height % 256:
        raise ConfigError(f"task.data.size={size} does not suit a latent grid of {height} at 256")
    patch = getattr(run.tokenizer, "patch", 1)
    return LatentSpec(channels, height * size // 256, width * size // 256, patch)


def _condition(run: Run, classes: int, assumed: list[str]) -> ConditionSpec:
    name, conditioner = entry_of(type(run.conditioner)).name, run.conditioner
    if name == "labels":
        return ConditionSpec(classes=classes)
    if name == "hf-text":
        return ConditionSpec(width=_text_width(conditioner.model), tokens=conditioner.tokens)
    return _built(conditioner, run.task, run.seed)


@functools.cache
def _built(conditioner: Any, task: Any, seed: int) -> ConditionSpec:
    """Of one that comes with the package; a table of words learns them from the data."""
    try:
        source: Any = task.build(seed).source
    except DataError:
        source = _Captions()
    return conditioner.build(source).spec


def _text_width(model: str) -> int:
    if model in TEXT_WIDTHS:
        return TEXT_WIDTHS[model]
    try:
        from transformers import AutoConfig

        found: Any = AutoConfig.from_pretrained(
            model, trust_remote_code=False, local_files_only=True
        )
    except (ImportError, OSError, ValueError, KeyError) as problem:
        known = ", ".join(TEXT_WIDTHS)
        raise ConfigError(
            f"conditioner.model={model}: its width is not known here; known without files: {known}"
        ) from problem
    return found.get_text_config().hidden_size


@dataclass(frozen=True)
class _Captions:
    """A source without images, for conditioners that need only know that there are captions."""

    classes: tuple[str, ...] = ()
    size: int = 0

    def prompts(self) -> tuple[str, ...]:
        return ()
