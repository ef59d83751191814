"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanogen.bench.table import Table


def show(tables: list[Table], as_json: bool) -> None:
    """Print tables to stdout, as JSON (a list) or as text that fits the terminal."""
    if as_json:
        print(json.dumps([table.to_json() for table in tables], indent=1))
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        # A pipe has no width: let no table be folded to 80 columns there.
        console = Console(width=200)
    for table in tables:
        console.print(table.to_rich())
