"""Which run a command is about: a preset or a run.yaml, with overrides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from nanogen import config, recipes
from nanogen.errors import ConfigError
from nanogen.run import Run

T = TypeVar("T")


def chosen_run(preset: str | None, source: Path | None, overrides: list[str] | None) -> Run:
    """The run that a command line names. With --from, the first argument may already be an
    override.
    """
    if preset is None and source is None:
        raise ConfigError(
            "name a preset, such as animals/pixels-v, or a file with --from; see nanogen ls presets"
        )
    return chosen(recipes.preset, lambda file: config.read(Run, file), preset, source, overrides)


def chosen(
    named: Callable[[str], T],
    read: Callable[[Path], T],
    preset: str | None,
    source: Path | None,
    overrides: list[str] | None,
) -> T:
    """The same of any kind of run, of which `named` gives a preset and `read` a file; one of
    `preset` and `source` must be given.
    """
    arguments = list(overrides or [])
    if source is None:
        base = named(preset or "")
    elif preset is not None and "=" not in preset:
        raise ConfigError(f"both a preset ({preset}) and --from {source}: give one of them")
    else:
        arguments = ([preset] if preset else []) + arguments
        base = read(source)
    return config.override(base, arguments) if arguments else base


def run_or_preset(name: str) -> Run:
    """The run of a preset name, a run folder, or a run.yaml."""
    path = Path(name)
    if path.is_dir() and (path / "run.yaml").exists():
        return config.read(Run, path / "run.yaml")
    if path.is_file():
        return config.read(Run, path)
    return recipes.preset(name)


def one_of(given: Mapping[str, object]) -> None:
    """ConfigError unless exactly one of the named things is given (not None)."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise ConfigError(
            f"give one of {', '.join(given)}" + (f", not {' and '.join(names)}" if names else "")
        )
