"""`nanogen report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def main(
    folder: Annotated[Path, typer.Argument(help="A folder that `nanogen bench` made.")],
) -> None:
    """Write report.html: tables, correlation, samples and curves of a benchmark folder on one
    page.
    """
    from nanogen.bench import page

    print(page.write(folder))
