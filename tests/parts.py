"""Every registered part, built small: what the contract tests run on.

A new part is found by itself. One that cannot be built from its defaults gets a line here: fixture
data under `DATA`, or a reason under `ELSEWHERE`.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import chz
import numpy as np
import pytest
import torch
from PIL import Image
from random_vgg import random_vgg
from tiny_rae import tiny_folder as tiny_rae
from tiny_vae import KIND_OF, tiny_folder

from nanogen import registry
from nanogen.data.base import FiniteSource, Sample, Source
from nanogen.encoders.lpips import heads_file
from nanogen.errors import ConfigError, DataError, MissingExtra
from nanogen.registry import Entry
from nanogen.types import ConditionSpec, LatentSpec

ELSEWHERE = {
    ("conditioner", "hf-text"): "needs a model; tests/unit/test_conditioner_text.py makes tiny ones"
} | {
    ("tokenizer", entry.name): "for 256 px; tests/unit/test_rae_presets.py makes tiny ones"
    for entry in registry.entries("tokenizer")
    if entry.name.startswith("rae-")
}
"""parts that these tests leave out, and why"""


def entries(kind: str) -> list[Any]:
    """The parts of a kind as parameters of a test, by name."""
    return [
        pytest.param(
            entry,
            id=entry.name,
            marks=[pytest.mark.skip(reason=ELSEWHERE[kind, entry.name])]
            if (kind, entry.name) in ELSEWHERE
            else [],
        )
        for entry in registry.entries(kind)
    ]


def built(entry: Entry, make: Callable[[], Any]) -> Any:
    """What `make` returns; a part that says what it needs may be skipped where that is missing."""
    try:
        return make()
    except (MissingExtra, ConfigError, DataError) as problem:
        if not entry.needs:
            raise
        pytest.skip(f"{entry.name} needs {entry.needs}: {problem}")


def small(config: type, **more: object) -> Any:
    """A config class at the size of a test: the fields it has of those below."""
    sizes = {"depth": 2, "width": 32, "heads": 2}
    sizes |= {"decoder_depth": 1, "decoder_width": 48, "decoder_heads": 2}
    return config(**{k: v for k, v in (sizes | more).items() if k in config.__chz_fields__})


def open_data(name: str, folder: Path) -> Source:
    """A registered data set with its defaults, or with images made in `folder`."""
    target = registry.get("data", name)
    return DATA[name](target, folder).build() if name in DATA else target().build()


def _class_folders(target: type, folder: Path) -> Any:
    for number in range(60):
        path = folder / f"class-{number % 3}" / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_png(number))
        path.with_suffix(".txt").write_text(f"grey number {number}")
    return target(path=str(folder), size=8, held_out=0.2, validation=0.2)


def _shards(target: type, folder: Path) -> Any:
    for first in (0, 30):
        with tarfile.open(folder / f"{first:02}.tar", "w") as shard:
            for number in range(first, first + 30):
                members = {"png": _png(number), "cls": str(number % 3).encode()}
                members["txt"] = f"grey number {number}".encode()
                for kind, data in members.items():
                    member = tarfile.TarInfo(f"{number:04}.{kind}")
                    member.size = len(data)
                    shard.addfile(member, io.BytesIO(data))
    return target(path=str(folder), size=8, held_out=0.2, validation=0.2)


def _png(number: int) -> bytes:
    """An image of one grey level, that of its number: samples can be told apart."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


DATA: dict[str, Callable[[type, Path], Any]] = {"folder": _class_folders, "shards": _shards}
"""data sets that read files: their config, once the files are made"""


def tokenizer_config(entry: Entry) -> Any:
    """The config of a registered tokenizer, from its defaults, on tiny files where it reads any."""
    return with_tiny_files(entry.target())


def with_tiny_files(config: Any) -> Any:
    """The config of a tokenizer, on tiny files of its kind where it reads any."""
    name = registry.entry_of(type(config)).name
    return TINY_FILES[name](config) if name in TINY_FILES else config


def _tiny_vae(config: Any) -> Any:
    return chz.replace(config, model=str(tiny_folder(registry.entry_of(type(config)).name)))


def _tiny_rae(config: Any) -> Any:
    return chz.replace(config, decoder=str(tiny_rae(64)))


TINY_FILES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(KIND_OF, _tiny_vae),
    "rae": _tiny_rae,
}
"""tokenizers that read files: their config on tiny ones, which are made when asked for"""
IMAGE_SIZES = dict.fromkeys(("animals-vae", "animals-rae"), (28, 40))
"""tokenizers that are for images of these sizes, in pixels"""
UNTRAINED = set(TINY_FILES)
"""tokenizers whose tiny networks are random: they cannot be asked to give an image back"""


TERMS: dict[str, dict[str, Any]] = {
    "internal": {"block": 1},
    "lpips": {"normalise_by": "gated"},
    "pdino": {"encoder": "animals-vit"},
    "reg": {"encoder": "animals-vit"},
    "repa": {"block": 1, "encoder": "animals-vit", "resample": True},
}
"""fields of terms whose defaults are for the paper's size: what is here, and fits a small model"""


def term_config(entry: Entry) -> Any:
    """The config of a registered term at the size of a test; skips where a package is missing."""
    fields = TERMS.get(entry.name, {})
    if entry.name == "lpips":
        if heads_file() is None:
            pytest.skip("lpips needs a package with its heads")
        fields = fields | {"path": str(random_vgg())}
    return entry.target(**fields)


@dataclass(frozen=True)
class Excerpt:
    """A source with fewer samples, spread evenly: quicker to measure."""

    source: Source
    most: Mapping[str, int]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint}/{sorted(self.most.items())}"

    def count(self, split: str) -> int:
        return min(self.source.count(split), self.most.get(split, 10**9))

    def read(self, split: str, index: int, draw: int) -> Sample:
        return self.source.read(split, self._place(split, index), draw)

    def views(self, index: int) -> tuple[torch.Tensor, ...]:
        return cast(FiniteSource, self.source).views(self._place("train", index))

    def _place(self, split: str, index: int) -> int:
        return index * self.source.count(split) // self.count(split)


@dataclass(frozen=True)
class StandIn:
    """Data that are not here, as the parts that surround a model see them."""

    size: int
    classes: tuple[str, ...] = tuple(f"class {number}" for number in range(1000))
    captioned: bool = True
    fingerprint: str = "stand-in"

    def count(self, split: str) -> int:
        return 1000

    def prompts(self) -> tuple[str, ...]:
        return ("a red cow", "two blue dogs")


@dataclass(frozen=True)
class StandInTokenizer:
    """A tokenizer that is not here: only its space."""

    spec: LatentSpec
    fingerprint: str = "stand-in"
    raw_fingerprint: str = "stand-in"

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class StandInText:
    """A text encoder that is not here: only its sizes."""

    spec: ConditionSpec = ConditionSpec(width=1024, tokens=256)
    fingerprint: str = "stand-in"
    trainable: bool = False


def images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """float [count, 3, size, size] in [0, 1]."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
