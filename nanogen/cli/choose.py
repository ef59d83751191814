"""Which run a command is about: a preset or a run.yaml, with overrides."""

from __future__ import annotations

from pathlib import Path

from nanogen import config, recipes
from nanogen.errors import ConfigError
from nanogen.run import Run


def chosen_run(preset: str | None, source: Path | None, overrides: list[str] | None) -> Run:
    """The run that a command line names. With --from, the first argument may already be an
    override.
    """
    arguments = list(overrides or [])
    if source is not None:
        if preset is not None and "=" not in preset:
            raise ConfigError(f"both a preset ({preset}) and --from {source}: give one of them")
        arguments = ([preset] if preset else []) + arguments
        base = config.read(Run, source)
    elif preset is None:
        raise ConfigError(
            "name a preset, such as animals/pixels-v, or a file with --from; see nanogen ls presets"
        )
    else:
        base = recipes.preset(preset)
    return config.override(base, arguments) if arguments else base


def run_or_preset(name: str) -> Run:
    """The run of a preset name, a run folder, or a run.yaml."""
    path = Path(name)
    if path.is_dir() and (path / "run.yaml").exists():
        return config.read(Run, path / "run.yaml")
    if path.is_file():
        return config.read(Run, path)
    return recipes.preset(name)
