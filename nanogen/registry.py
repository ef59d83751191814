"""Names for the things a user can choose or add: one file in the right folder is all it takes.

    @register("tokenizer", "my-ae", summary="16x autoencoder", licence="MIT")
    @chz.chz
    class MyAe:
        ...

A kind is a folder of the package. `names` and `get` import every module of that folder, so a new
file is found by itself, by the command line and by the contract tests alike.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from nanogen.errors import ConfigError, suggest

FOLDERS = {
    "task": "tasks",
    "data": "data",
    "tokenizer": "tokenizers",
    "conditioner": "conditioners",
    "encoder": "encoders",
    "network": "encoders",
    "backbone": "backbones",
    "objective": "objectives",
    "term": "objectives",
    "optimiser": "train",
    "metric": "metrics",
    "prompts": "prompts",
    "reconstruction": "metrics",
    "autoencoder": "stage1",
    "distance": "stage1",
    "discriminator": "stage1",
}

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One registered thing, with what `nanogen ls` prints of it."""

    kind: str
    name: str
    target: type
    summary: str
    licence: str
    needs: str
    """what must be installed or given, empty when nothing"""


_entries: dict[tuple[str, str], Entry] = {}


def register(
    kind: str, name: str, *, summary: str, licence: str = "Apache-2.0", needs: str = ""
) -> Callable[[type[T]], type[T]]:
    """Class decorator: make the class known as `name` among things of `kind`."""

    def add(target: type[T]) -> type[T]:
        if kind not in FOLDERS:
            raise ValueError(f"unknown kind {kind!r}; {suggest(kind, FOLDERS)}")
        old = _entries.get((kind, name))
        if old and _origin(old.target) != _origin(target):
            raise ValueError(f"{kind} {name!r} is registered twice: {old.target} and {target}")
        _entries[kind, name] = Entry(kind, name, target, summary, licence, needs)
        return target

    return add


def _origin(target: type) -> tuple[str, str]:
    """Where a class is defined: the same for a module that is loaded again, no other."""
    return target.__module__, target.__qualname__


def entries(kind: str) -> list[Entry]:
    """All things of a kind, by name."""
    package = importlib.import_module(f"nanogen.{FOLDERS[kind]}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return sorted((e for e in _entries.values() if e.kind == kind), key=lambda e: e.name)


def get(kind: str, name: str) -> type:
    """The class known as `name`; an unknown name is a ConfigError with the nearest ones."""
    for entry in entries(kind):
        if entry.name == name:
            return entry.target
    raise ConfigError(f"unknown {kind} {name!r}; {suggest(name, [e.name for e in entries(kind)])}")


def entry_of(target: type) -> Entry:
    """The entry of a registered class."""
    return next(entry for entry in _entries.values() if entry.target is target)
