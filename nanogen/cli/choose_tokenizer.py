"""Which tokenizer and which images a command is about: by registered name, or as in a preset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chz

from nanogen import config, recipes, registry
from nanogen.config import choice
from nanogen.data.animals import Animals
from nanogen.errors import ConfigError, suggest
from nanogen.tokenizers.pixels import PixelsConfig


@chz.chz
class Choice:
    """A tokenizer and a data set."""

    tokenizer: Any = choice("tokenizer")
    data: Any = choice("data")


def chosen(
    name: str,
    overrides: Sequence[str],
    data: str | None = None,
    path: Path | None = None,
    size: int | None = None,
) -> Choice:
    """The tokenizer `name` with overrides such as `model=PATH`, or that of a run preset.

    A preset is overridden as a run (`tokenizer.model=PATH`) and brings its own data; others are
    measured on the embedded animals. `data`, `path` and `size` choose other images.
    """
    tokenizers = [entry.name for entry in registry.entries("tokenizer")]
    if name in tokenizers:
        base = Choice(tokenizer=PixelsConfig(), data=Animals())
        own = [one if one.startswith("tokenizer.") else f"tokenizer.{one}" for one in overrides]
        given = [f"tokenizer={name}", *own]
    elif name in recipes.names():
        run = config.override(recipes.preset(name), overrides)
        base, given = Choice(tokenizer=run.tokenizer, data=run.task.data), []
    else:
        known = [*tokenizers, *recipes.names()]
        raise ConfigError(f"unknown tokenizer or preset {name!r}; {suggest(name, known)}")
    given += [] if data is None else [f"data={data}"]
    reader = type(base.data) if data is None else registry.get("data", data)
    reads_files = "path" in chz.chz_fields(reader)
    if reads_files and path is None and data is not None:
        raise ConfigError(f"--data {data} needs --path: where its images are")
    if not reads_files and path is not None:
        raise ConfigError(f"--path {path}: this data set reads no files; add --data folder")
    given += [] if path is None else [f"data.path={path}"]
    given += [] if size is None else [f"data.size={size}"]
    return config.override(base, given)
