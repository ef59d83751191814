"""`nanogen eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanogen.cli.options import Json, Out, Overrides, Weights

if TYPE_CHECKING:
    from nanogen.bench.compare import Side
    from nanogen.bench.record import Record


def main(
    run: Annotated[str | None, typer.Argument(help="A run folder.")] = None,
    overrides: Overrides = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Images to measure: a folder, .tar, .zip, .npz or .npy."),
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(help="A text-to-image pipeline of diffusers: hub id or folder.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Such as fid,is or geneval[compat=reference].")
    ] = None,
    reference: Annotated[
        str, typer.Option(help="With --images: a preset whose data the images are compared with.")
    ] = "",
    prompts: Annotated[
        Path | None, typer.Option(help="With --pipeline: captions, one a line.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Records to compare the new ones with.")
    ] = None,
    out: Out = None,
    weights: Weights = "ema",
    as_json: Json = False,
) -> None:
    """Measure a run, images or a pipeline, and write one record for each score."""
    from nanogen.cli.choose import one_of
    from nanogen.errors import ConfigError
    from nanogen.metrics import harness
    from nanogen.metrics.names import listed

    given = list(overrides or [])
    if run is not None and "=" in run and (images or pipeline):
        given, run = [run, *given], None
    one_of({"a run folder": run, "--images": images, "--pipeline": pipeline})
    if prompts is not None and pipeline is None:
        raise ConfigError("--prompts has no effect without --pipeline; leave it out")
    names = listed(metrics) if metrics is not None else ()
    titles = {metric.title for metric in harness.named(names)}
    before = None if compare is None else _before(compare, titles)
    if run is not None:
        if reference:
            raise ConfigError("--reference has no effect on a run; leave it out")
        target = out or Path(run) / "records"
        records = _of_run(Path(run), names, weights, given, target)
    else:
        if weights != "ema":
            raise ConfigError(f"--weights {weights} has no effect without a run; leave it out")
        given += [f"reference={reference}"] if reference else []
        target = out or Path("records")
        records = _foreign(images, pipeline or "", names, given, target, prompts)
    if records:
        _report(records, target, before, as_json)


def _before(folder: Path, titles: set[str]) -> Side:
    """What new records will be compared with, as it is now: they may take its place. DataError
    where it has no score of the named metrics.
    """
    from nanogen.bench.compare import side
    from nanogen.errors import DataError
    from nanogen.metrics.names import metric_of

    before = side(folder).now()
    known = {metric_of(record.metric) for record in before.records}
    if titles and not titles & known:
        raise DataError(
            f"--compare {folder} has no score of {', '.join(sorted(titles))}, only of "
            f"{', '.join(sorted(known))}; measure one of these, or compare with other records"
        )
    return before


def _report(records: list[Record], out: Path, before: Side | None, as_json: bool) -> None:
    """Print scores, and what differs from those of before. DataError, once the scores are printed,
    where nothing can be compared.
    """
    from nanogen.bench.compare import Side, compare
    from nanogen.bench.leaderboard import leaderboards
    from nanogen.cli.output import show
    from nanogen.errors import DataError

    tables, lines = leaderboards(records), []
    if before is not None:
        try:
            found = compare(before, Side(str(out), records, out))
        except DataError:
            show(tables, as_json)
            raise
        tables += [found.conditions, found.scores]
        lines = found.lines
    show(tables, as_json)
    for line in [] if as_json else lines:
        print(line)


def _of_run(
    folder: Path, names: tuple[str, ...], weights: str, overrides: list[str], out: Path
) -> list[Record]:
    """On every process; records on the first only."""
    from nanogen import dist
    from nanogen.evaluation import runs
    from nanogen.run import pick_device

    with dist.processes(pick_device(runs.device_of(folder, overrides))):
        records = runs.of_run(folder, names, weights, overrides, out)
        return records if dist.rank() == 0 else []


def _foreign(
    images: Path | None,
    pipeline: str,
    names: tuple[str, ...],
    overrides: list[str],
    out: Path,
    prompts: Path | None,
) -> list[Record]:
    from nanogen import config, dist
    from nanogen.evaluation import foreign
    from nanogen.run import pick_device

    settings = config.override(foreign.Foreign(), overrides)
    with dist.processes(pick_device(settings.machine.device)):
        if images is not None:
            records = foreign.of_images(images, names, settings, out)
        else:
            records = foreign.of_pipeline(pipeline, names, settings, out, prompts)
        return records if dist.rank() == 0 else []
