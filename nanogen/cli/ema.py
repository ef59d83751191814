"""`nanogen ema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def main(
    run: Annotated[Path, typer.Argument(help="A run folder, trained with train.posthoc.")],
    width: Annotated[
        float, typer.Option(help="Of the average, relative to the length of the run, such as 0.07.")
    ],
) -> None:
    """Make the average of the weights of a length chosen after training, from what the run kept."""
    from nanogen.train import posthoc

    made = posthoc.reconstruct(run, width)
    print(
        f"{made.file}: from {made.snapshots} snapshots, {made.error:.2%} from the exact profile; "
        f"use it with --weights {posthoc.name_of(width)}"
    )
