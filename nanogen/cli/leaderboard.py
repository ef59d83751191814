"""`nanogen leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanogen.cli.options import Json


def main(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder with records, at any depth.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Methods by metrics over both tasks: your records first, then the published tables."""
    from nanogen.bench import record
    from nanogen.bench.leaderboard import (
        leaderboards,
        published_leaderboard,
        published_reproduction,
    )
    from nanogen.cli.output import show
    from nanogen.errors import DataError

    records = record.read(folder) if folder else []
    if folder and not records:
        raise DataError(f"{folder} has no records; evaluate a run first")
    tables = [*leaderboards(records), published_leaderboard(), published_reproduction()]
    if markdown:
        print("\n".join(table.to_markdown() for table in tables))
    else:
        show(tables, as_json)
