"""Which tokenizer and which images a command is about: by registered name, or as in a preset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chz
from torch import Tensor, nn

from nanogen import config, recipes, registry
from nanogen.config import choice
from nanogen.data.animals import Animals
from nanogen.data.base import Source
from nanogen.encoders.vision import VisionEncoder, open_encoder, parse, rows
from nanogen.errors import ConfigError, suggest
from nanogen.tokenizers.base import Autoencoder
from nanogen.tokenizers.pixels import PixelsConfig
from nanogen.tokenizers.rae import as_grid
from nanogen.tokenizers.statistics import Statistics


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


class Raw(nn.Module):
    """Images [B, 3, H, W] in [0, 1] to raw latents [B, C, h, w], of a tokenizer or an encoder."""

    module: VisionEncoder | Autoencoder

    def __init__(self, module: VisionEncoder | Autoencoder) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """ConfigError where raw latents hold more than a mean."""
        if isinstance(self.module, VisionEncoder):
            return as_grid(self.module(images).patches)
        raw = self.module.raw(images)
        if raw.shape[1] != self.module.spec.channels:
            raise ConfigError(
                "raw latents hold a mean and a deviation; statistics are of the means: use "
                "tokenizer.posterior=mode"
            )
        return raw

    def normalised(self, statistics: Statistics) -> Statistics | None:
        """Statistics of what a tokenizer makes of its raw latents, None for an encoder."""
        if not isinstance(self.module, Autoencoder):
            return None
        return statistics.normalised(self.module.shift.cpu(), self.module.scale.cpu())


def raw_latents(
    name: str,
    overrides: Sequence[str],
    data: str | None = None,
    path: Path | None = None,
    size: int | None = None,
) -> tuple[Source, Raw]:
    """The data and the raw latents that a command is about: of a tokenizer or preset as in
    `chosen`, or of a vision encoder, whose one override is `path=PATH`.
    """
    if "/" in name or parse(name)[0] not in {row.name for row in rows()}:
        choice = chosen(name, overrides, data, path, size)
        source = choice.data.build()
        return source, Raw(choice.tokenizer.build(source.size))
    unknown = [one for one in overrides if not one.startswith("path=")]
    if unknown:
        raise ConfigError(f"{unknown[0]!r}: an encoder takes path=PATH and nothing else")
    source = chosen("pixels", ["patch=1"], data, path, size).data.build()
    where = overrides[-1].removeprefix("path=") if overrides else ""
    return source, Raw(open_encoder(name, source.size, where))
