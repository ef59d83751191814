"""The ways to train a tokenizer, behind one command: alone, or end to end with a transformer.

run = preset("animals/vae")                     # or read(Path("run.yaml"))
kind = kind_of(run)
parts = kind.build(run)
train(kind.trainer(parts), folder, hooks(parts, folder))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nanogen import config
from nanogen.errors import ConfigError, suggest
from nanogen.stage1 import recipes, repa_e_recipes, repa_e_run
from nanogen.stage1 import run as alone
from nanogen.stage1.repa_e_run import RepaERun
from nanogen.stage1.repa_e_trainer import RepaETrainer
from nanogen.stage1.run import TokenizerRun
from nanogen.stage1.trainer import TokenizerTrainer
from nanogen.train.trainer import Trainer


@dataclass(frozen=True)
class Kind:
    """One way: its configs, and what they are built into."""

    run: type
    summaries: Callable[[], dict[str, str]]
    """one line on each of its presets"""
    preset: Callable[[str], Any]
    build: Callable[[Any], Any]
    """a run to its parts"""
    trainer: Callable[[Any], Trainer]
    """parts to what the loop trains"""


ALONE = Kind(
    TokenizerRun,
    lambda: {name: recipes.describe(name) for name in recipes.names()},
    recipes.preset,
    alone.build,
    TokenizerTrainer,
)
END_TO_END = Kind(
    RepaERun,
    repa_e_recipes.summaries,
    repa_e_recipes.preset,
    repa_e_run.build,
    RepaETrainer,
)
KINDS = (ALONE, END_TO_END)


def summaries() -> dict[str, str]:
    """One line on each preset, by its name."""
    return {name: text for kind in KINDS for name, text in kind.summaries().items()}


def preset(name: str) -> Any:
    """The run of a preset; an unknown name is a ConfigError with the nearest ones."""
    for kind in KINDS:
        if name in kind.summaries():
            return kind.preset(name)
    raise ConfigError(f"unknown preset {name!r}; {suggest(name, summaries())}")


def read(file: Path) -> Any:
    """The run of a run.yaml, of whichever kind it is."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        tree = None  # what is wrong with the file is said below
    end_to_end = isinstance(tree, dict) and "alignment" in tree
    return config.read((END_TO_END if end_to_end else ALONE).run, file)


def kind_of(run: object) -> Kind:
    """The kind that a run is of."""
    return next(kind for kind in KINDS if type(run) is kind.run)
