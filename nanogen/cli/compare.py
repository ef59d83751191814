"""`nanogen compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanogen.cli.options import Json


def main(
    a: Annotated[Path, typer.Argument(help="A run folder, or the file of a record.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: Json = False,
) -> None:
    """What differs between two runs or records, and whether each difference is more than noise.

    Where a folder holds several results of a score, those of the same settings are compared; give
    two record files to compare others.
    """
    from nanogen.bench.compare import compare, side
    from nanogen.cli.output import show

    result = compare(side(a), side(b))
    show([result.conditions, result.scores], as_json)
    if not as_json:
        print("\n".join(result.lines))
