"""Tables of what can be named: everything registered, the presets, and the methods."""

from __future__ import annotations

from collections.abc import Sequence

from nanogen import recipes, registry
from nanogen.bench.table import Cell, Column, Table


def table(title: str, kind: str) -> Table:
    """What `nanogen ls <title>` prints."""
    if kind == "preset":
        return _rows(
            title, ("preset", "what"), [(name, recipes.describe(name)) for name in recipes.names()]
        )
    if kind == "method":
        return _rows(
            title,
            ("method", "what", "tasks"),
            [
                (name, recipe.summary, ", ".join(recipe.tasks))
                for name, recipe in recipes.METHODS.items()
            ],
        )
    found = [(e.name, e.summary, e.licence, e.needs or "nothing") for e in registry.entries(kind)]
    return _rows(title, (kind, "what", "licence", "needs"), found)


def _rows(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    cells = tuple(tuple(Cell(text) for text in row) for row in rows)
    return Table(title, tuple(Column(name) for name in columns), cells)
