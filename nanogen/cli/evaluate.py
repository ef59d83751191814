"""`nanogen eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanogen.cli.options import Json, Out, Overrides, Weights


def main(
    run: Annotated[Path | None, typer.Argument(help="A run folder.")] = None,
    overrides: Overrides = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder of images to measure instead of a run.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Names of metrics, such as fd-animals,is-animals.")
    ] = None,
    reference: Annotated[
        str, typer.Option(help="With --images: a preset whose data the images are compared with.")
    ] = "animals/pixels-v",
    out: Out = None,
    weights: Weights = "ema",
    as_json: Json = False,
) -> None:
    """Measure a run, or a folder of images, and write one record for each score."""
    from nanogen import evaluation
    from nanogen.bench.leaderboard import leaderboards
    from nanogen.cli.output import show
    from nanogen.errors import ConfigError

    if (run is None) == (images is None):
        raise ConfigError("give a run folder, or a folder of images with --images")
    names = tuple(metrics.split(",")) if metrics else ()
    if run is not None:
        records = evaluation.of_run(run, names, weights, overrides or [], out)
    else:
        assert images is not None
        records = evaluation.of_images(images, names, reference, out or Path("records"))
    show(leaderboards(records), as_json)
