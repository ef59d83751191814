"""`nanogen bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanogen.cli.options import Json, Out


def main(
    name: Annotated[str, typer.Argument(help="A benchmark: animals.")] = "animals",
    methods: Annotated[
        str | None, typer.Option(help="Methods to run, such as pixels-v,pixels-x; all if left out.")
    ] = None,
    budget: Annotated[str, typer.Option(help="smoke, quick or full.")] = "quick",
    jobs: Annotated[
        int | None, typer.Option(help="Runs at the same time; one for each core if left out.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train and measure every method on both tasks, then print the tables and write the report.

    Each run is a folder of its own; what is finished is not done again.
    """
    from nanogen.bench import matrix, page
    from nanogen.cli.output import show

    folder = out or Path("runs") / f"bench-{name}-{budget}"
    matrix.run(name, methods.split(",") if methods else None, budget, jobs, folder)
    written = page.write(folder, command=f"nanogen bench {name} --budget {budget}")
    show(page.result(folder).tables, as_json)
    if not as_json:
        print(f"report: {written}")
