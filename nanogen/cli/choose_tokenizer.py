"""Which tokenizer and which images a command is about: by registered name, as in a preset, or as in
a folder.

    choice = measured("runs/tokenizers/animals/vae", [])
    tokenizer = choice.tokenizer.build(choice.data.build().size)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chz
from torch import Tensor, nn

from nanogen import config, recipes, registry
from nanogen.config import choice
from nanogen.data.animals import Animals
from nanogen.data.base import Source
from nanogen.encoders.vision import VisionEncoder, open_encoder, rows
from nanogen.errors import ConfigError, suggest
from nanogen.tokenizers.base import Autoencoder
from nanogen.tokenizers.pixels import PixelsConfig
from nanogen.tokenizers.rae import as_grid
from nanogen.tokenizers.statistics import Statistics

PIXELS = "pixels"
RUN, TOKENIZER, CONFIG = "run.yaml", "tokenizer", "config.json"
"""in the folder of a training: what it is, what it exported, and what that is"""


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
    """The tokenizer `name` with overrides such as `model=PATH`, that of a run preset, or that in a
    folder: of a training that has ended, or of what it exported.

    A preset is overridden as a run (`tokenizer.model=PATH`) and brings its own data, as the folder
    of a training does; others are measured on the embedded animals. `data`, `path` and `size`
    choose other images.
    """
    base, given = _named(name, overrides)
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


def measured(
    name: str,
    overrides: Sequence[str],
    data: str | None = None,
    path: Path | None = None,
    size: int | None = None,
) -> Choice:
    """The same on data that mirror nothing: what training shows at random, no measurement does."""
    found = chosen(name, overrides, data, path, size)
    if "flip" not in chz.chz_fields(found.data):
        return found
    return chz.replace(found, data=chz.replace(found.data, flip=False))


def described(tokenizer: object) -> str:
    """The overrides of a run that choose a tokenizer."""
    rows = config.differences(type(tokenizer)(), tokenizer)
    fields = [f"tokenizer.{path}={config.shown(value)}" for path, _, value in rows]
    return " ".join([f"tokenizer={registry.entry_of(type(tokenizer)).name}", *fields])


def exported(name: str) -> Path | None:
    """The folder of the tokenizer that `name` is, or that a training in the folder `name` ended in;
    None for registered names and presets, which come first, and for everything else.
    """
    if name in (*_tokenizers(), *recipes.names()):
        return None
    folder = Path(name).expanduser()
    places = (folder / TOKENIZER, folder)
    return next((place for place in places if (place / CONFIG).is_file()), None)


def _tokenizers() -> list[str]:
    return [entry.name for entry in registry.entries("tokenizer")]


def _named(name: str, overrides: Sequence[str]) -> tuple[Choice, list[str]]:
    """What `name` stands for, and the overrides that are still to be applied to it."""
    own = [one if one.startswith("tokenizer.") else f"tokenizer.{one}" for one in overrides]
    if name in _tokenizers():
        # Patches are for those who diffuse: nothing that is measured depends on them.
        base = Choice(tokenizer=PixelsConfig(patch=1), data=Animals())
        return base, own if name == PIXELS else [f"tokenizer={name}", *own]
    if name in recipes.names():
        run = config.override(recipes.preset(name), overrides)
        return Choice(tokenizer=run.tokenizer, data=run.task.data), []
    folder = Path(name).expanduser()
    if folder.is_dir():
        base = Choice(tokenizer=PixelsConfig(), data=_data_of(folder))
        return base, [*_tokenizer_of(folder, exported(name)), *own]
    raise _unknown(name)


def _unknown(name: str, encoders: Sequence[str] = ()) -> ConfigError:
    if name.startswith(("/", ".", "~")):
        return ConfigError(f"there is no folder {name}; give one that exists")
    what = "tokenizer, preset or encoder" if encoders else "tokenizer or preset"
    known = [*_tokenizers(), *recipes.names(), *encoders]
    return ConfigError(f"unknown {what} {name!r}; {suggest(name, known)}")


def _tokenizer_of(folder: Path, place: Path | None) -> list[str]:
    """The overrides that choose the tokenizer in a folder: diffusers names a class, ours describes
    a decoder.
    """
    if place is None and (folder / RUN).is_file():
        raise ConfigError(
            f"{folder} holds no tokenizer yet: the training of one writes it at its end; go on "
            "with nanogen tokenizer train, or name the preset of a run"
        )
    try:
        text = json.loads(((place or folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        text = None  # what is wrong with the folder is said below
    if isinstance(text, dict) and "decoder" in text:
        return ["tokenizer=rae", f"tokenizer.decoder={place}"]
    if isinstance(text, dict) and "_class_name" in text:
        return ["tokenizer=vae", f"tokenizer.model={place}"]
    raise ConfigError(
        f"{folder} holds no tokenizer: no {CONFIG} of a VAE of diffusers or of a decoder of ours; "
        "give the folder of a training, or what it exported"
    )


def _data_of(folder: Path) -> Any:
    """The data that the training in a folder saw; the embedded animals where there is none."""
    from nanogen.stage1 import kinds

    if not (folder / RUN).is_file() or not (folder / TOKENIZER).is_dir():
        return Animals()
    run = kinds.read(folder / RUN)
    return run.data if hasattr(run, "data") else run.task.data


class Raw(nn.Module):
    """Images [B, 3, H, W] in [0, 1] to raw latents [B, C, h, w], of a tokenizer or an encoder."""

    module: VisionEncoder | Autoencoder

    def __init__(self, module: VisionEncoder | Autoencoder, about: str) -> None:
        """`about`: what it is, in words."""
        super().__init__()
        self.module, self.about = module, about

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
    """The data and the raw latents that a command is about: of a tokenizer, preset or folder as in
    `measured`, or of a vision encoder, whose one override is `path=PATH`.
    """
    encoders = {row.name: row for row in rows()}
    row = encoders.get(name.partition("[")[0])
    if row is None:
        if name not in (*_tokenizers(), *recipes.names()) and not Path(name).expanduser().is_dir():
            raise _unknown(name, list(encoders))
        choice = measured(name, overrides, data, path, size)
        source = choice.data.build()
        tokenizer = choice.tokenizer.build(source.size)
        return source, Raw(tokenizer, f"{described(choice.tokenizer)}, {tokenizer.fingerprint}")
    unknown = [one for one in overrides if not one.startswith("path=")]
    if unknown:
        raise ConfigError(f"{unknown[0]!r}: an encoder takes path=PATH and nothing else")
    source = measured(PIXELS, [], data, path, size).data.build()
    if data is None and row.hub and not row.unavailable:
        raise ConfigError(
            f"{name} is not for the embedded animals of {source.size} px; add --data folder --path "
            "IMAGES --size 256"
        )
    where = overrides[-1].removeprefix("path=") if overrides else ""
    encoder = open_encoder(name, source.size, where)
    return source, Raw(encoder, f"encoder={name}, {encoder.fingerprint}")
