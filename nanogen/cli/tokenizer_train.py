"""`nanogen tokenizer train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nanogen.cli.options import Out, Overrides


def main(
    preset: Annotated[
        str | None,
        typer.Argument(
            help="A training of a tokenizer, such as animals/vae or imagenet/rae-dinov2-vit-b."
        ),
    ] = None,
    overrides: Overrides = None,
    out: Out = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A run.yaml to train instead of a preset.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over: remove what the folder holds of a run.")
    ] = False,
    max_minutes: Annotated[
        float | None, typer.Option(help="Save and stop after so many minutes.")
    ] = None,
) -> None:
    """Train a VAE, or the decoder of a RAE. The same command again resumes, bit for bit."""
    from nanogen import dist
    from nanogen.cli.choose import chosen
    from nanogen.errors import ConfigError
    from nanogen.run import pick_device
    from nanogen.stage1 import kinds

    if max_minutes is not None and not max_minutes >= 0:
        raise ConfigError(f"--max-minutes {max_minutes}: must be 0 or more")
    if preset is None and source is None:
        known = ", ".join(kinds.summaries())
        raise ConfigError(f"name a training, or a file with --from; known: {known}")
    run = chosen(kinds.preset, kinds.read, preset, source, overrides)
    folder = out or Path("runs") / run.name
    with dist.processes(pick_device(run.machine.device)):
        use = _trained(run, folder, fresh, max_minutes)
        if dist.rank() == 0 and use:
            print(f"done: {folder}; use it with: {use}")


def _trained(run: Any, folder: Path, fresh: bool, max_minutes: float | None) -> str:
    """The overrides that use what was trained; "" where the training did not come to its end.
    Nothing that it built is left after it.
    """
    from nanogen import dist, run_folder
    from nanogen.stage1 import hooks, kinds
    from nanogen.train.loop import train

    kind = kinds.kind_of(run)
    parts = kind.build(run)
    due = hooks.hooks(parts, folder)
    with run_folder.held(folder):
        run_folder.prepare(run, folder, fresh)
        if dist.rank() == 0:
            print(hooks.describe(parts, folder), flush=True)
        finished = train(kind.trainer(parts), folder, due, max_minutes)
    return " ".join(hooks.overrides(parts, folder)) if finished else ""
