"""`nanogen correlate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanogen.cli.options import Json


def main(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder with records, at any depth.")
    ] = None,
    x: Annotated[str, typer.Option(help="Only this class-conditional score.")] = "",
    y: Annotated[str, typer.Option(help="Only this text-to-image score.")] = "",
    as_json: Json = False,
) -> None:
    """Does a rank on one task predict the rank on the other? Over your records, and as
    published.
    """
    from nanogen.bench import record
    from nanogen.bench.correlate import correlation_table, published_pairings, record_pairings
    from nanogen.cli.output import show

    tables = []
    if folder:
        tables.append(
            correlation_table(
                record_pairings(record.read(folder), x, y), f"Correlation in {folder}"
            )
        )
    tables.append(
        correlation_table(published_pairings(), "Published correlation with ImageNet FID")
    )
    show(tables, as_json)
