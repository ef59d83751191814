"""`nanogen train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanogen.cli.options import Out, Overrides

if TYPE_CHECKING:
    from nanogen.run import Run


def main(
    preset: Annotated[
        str | None,
        typer.Argument(help="A preset, such as animals/pixels-v (see nanogen ls presets)."),
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
    """Train a preset. The same command again resumes, bit for bit."""
    from nanogen import dist
    from nanogen.cli.choose import chosen_run
    from nanogen.errors import ConfigError
    from nanogen.run import pick_device

    if max_minutes is not None and not max_minutes >= 0:
        raise ConfigError(f"--max-minutes {max_minutes}: must be 0 or more")
    run = chosen_run(preset, source, overrides)
    folder = out or Path("runs") / run.name
    with dist.processes(pick_device(run.machine.device)):
        finished = _trained(run, folder, fresh, max_minutes)
        if dist.rank() == 0 and finished:
            print(f"done: {folder}; draw from it with: nanogen sample {folder}")


def _trained(run: Run, folder: Path, fresh: bool, max_minutes: float | None) -> bool:
    """Whether the training came to its end. Nothing that it built is left after it."""
    from nanogen import dist, run_folder
    from nanogen.evaluation import online
    from nanogen.run import build
    from nanogen.train.diffusion import DiffusionTrainer
    from nanogen.train.loop import train

    parts = build(run)
    if fresh or not run_folder.begun(folder):
        run_folder.start(parts)
    hooks = online.hooks(parts, folder)
    # A cache that does not fit is refused before the folder is this run's.
    trainer = DiffusionTrainer(parts)
    with run_folder.held(folder):
        run_folder.prepare(run, folder, fresh)
        if dist.rank() == 0:
            print(run_folder.describe(parts, folder), flush=True)
        return train(trainer, folder, hooks, max_minutes)
