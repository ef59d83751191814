"""`nanogen diff`."""

from __future__ import annotations

from typing import Annotated

import typer

from nanogen.cli.options import Json


def main(
    a: Annotated[str, typer.Argument(help="A preset, a run folder, or a run.yaml.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    as_json: Json = False,
) -> None:
    """What differs between two presets or runs, one field a line."""
    from nanogen import config
    from nanogen.bench.table import Cell, Column, Table
    from nanogen.cli.choose import run_or_preset
    from nanogen.cli.output import show

    rows = [
        row for row in config.differences(run_or_preset(a), run_or_preset(b)) if row[0] != "name"
    ]
    table = Table(
        f"{len(rows)} fields differ" if rows else "nothing differs",
        (Column("field"), Column(a), Column(b)),
        tuple(tuple(Cell(config.shown(value)) for value in row) for row in rows),
    )
    show([table], as_json)
