"""`nanogen sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanogen.cli.options import Out, Overrides, Weights


def main(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    overrides: Overrides = None,
    classes: Annotated[
        str | None, typer.Option(help="Class numbers or names: 3,7 or cat,dog; ranges as 0-9.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="One caption.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A UTF-8 text file with one caption a line.")
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Noise seeds for each class or caption: 0-15 or 1,5,9.")
    ] = "0-7",
    out: Out = None,
    weights: Weights = "ema",
) -> None:
    """Draw images from a trained run: PNG files, a grid, and a JSON. All settings are read from
    the run.
    """
    from nanogen import run_folder
    from nanogen.sampling import draw

    wanted = draw.Wanted(classes, prompt, prompts, seeds)
    wanted.check()
    opened = run_folder.open_run(run, weights, overrides or [])
    about = {"seen": opened.seen, "weights": opened.weights}
    folder = draw.draw(opened.parts, wanted, out or run / "drawn", about)
    print(f"{folder}: {len(draw.rows(folder))} images, grid.png and samples.json")
