"""`nanogen plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanogen.cli.options import Json, Overrides


def main(
    preset: Annotated[
        str | None, typer.Argument(help="A preset, such as imagenet/flux2@1x24gb.")
    ] = None,
    overrides: Overrides = None,
    every: Annotated[bool, typer.Option("--all", help="Every preset.")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="A run.yaml instead of a preset.")
    ] = None,
    gpus: Annotated[int, typer.Option(help="How many GPUs.")] = 8,
    gpu: Annotated[str, typer.Option(help="Which, such as h100, a100, rtx4090.")] = "h100",
    utilisation: Annotated[
        float, typer.Option(help="Share of the GPU's speed that training reaches.")
    ] = 0.35,
    as_json: Json = False,
) -> None:
    """Parameters, FLOPs, memory, hours and disk of a run, before it is started."""
    from nanogen import config, recipes
    from nanogen.cli.choose import chosen_run
    from nanogen.cli.output import show
    from nanogen.errors import ConfigError
    from nanogen.plan.table import Hardware, table

    hardware = Hardware(gpus, gpu, utilisation)
    if every and source is not None:
        raise ConfigError("--all and --from contradict each other; give one of them")
    if not every:
        runs = [chosen_run(preset, source, overrides)]
    else:
        if preset is not None and "=" not in preset:
            raise ConfigError(f"both a preset ({preset}) and --all: give one of them")
        given = ([preset] if preset else []) + list(overrides or [])
        plain = [name for name in recipes.names() if "@" not in name]
        runs = [config.override(recipes.preset(name), given) for name in plain]
    show([table(runs, hardware)], as_json)
