"""Tables of what can be named: everything registered, the presets, and the methods."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nanogen import recipes, registry
from nanogen.bench.table import Cell, Column, Table

BUNDLED = "comes with it"
"""status of what needs no weights but those in the package"""
UNAVAILABLE = "not available"


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
    if kind == "encoder":
        return _encoders(title)
    if kind == "tokenizer":
        return _tokenizers(title)
    found = [(e.name, e.summary, e.licence, _needs(e)) for e in registry.entries(kind)]
    return _rows(title, (kind, "what", "licence", "needs"), found)


def _needs(entry: registry.Entry) -> str:
    """What must be installed or given; assets by the one command that prepares them all."""
    if not getattr(entry.target, "assets", ()):
        return entry.needs or "nothing"
    package = re.search(r"pip install '\S+'", entry.needs)
    return ", ".join(([package[0]] if package else []) + [f"nanogen prepare {entry.name}"])


def _encoders(title: str) -> Table:
    """One row for each encoder that can be named, a family together; notes say what is amiss."""
    from nanogen.encoders import vision

    columns = ("encoder", "hub", "licence", "width", "tokens", "side", "parameters", "status")
    rows, notes = [], {}
    for row in vision.rows():
        if row.unavailable:
            status = UNAVAILABLE
            notes[f"{row.name.partition('-')[0]}: {row.unavailable}"] = None
        elif row.hub:
            status = "gated" if row.gated else "ungated"
        else:
            status = BUNDLED
        grid = row.side // row.patch
        rows.append(
            (
                row.name,
                row.hub or None,
                row.licence,
                row.width,
                f"{grid} x {grid}" if row.side else None,
                row.side or None,
                row.parameters,
                status,
            )
        )
    sizes = "tokens, and side in pixels that the network is fed, are for images of 256 px"
    families = [f"{name}: {', '.join(f.options)}" for name, f in vision.families().items()]
    options = "; ".join(family for family in families if not family.endswith(": "))
    return _rows(title, columns, rows, (sizes, f"options, in brackets: {options}", *notes))


def _tokenizers(title: str) -> Table:
    """One row for each tokenizer, from its `facts` where it has them."""
    from nanogen.tokenizers.base import TokenizerFacts

    columns = ("tokenizer", "what", "hub", "licence", "latent", "parameters", "status")
    rows = []
    for entry in registry.entries("tokenizer"):
        default = TokenizerFacts(licence=entry.licence, status=entry.needs or BUNDLED)
        facts: TokenizerFacts = getattr(entry.target, "facts", default)
        latent = " x ".join(map(str, facts.latent)) if facts.latent else None
        rows.append(
            (
                entry.name,
                entry.summary,
                facts.hub or None,
                facts.licence or entry.licence,
                latent,
                facts.parameters,
                facts.status,
            )
        )
    return _rows(title, columns, rows, ("latents are channels x height x width for 256 px",))


def _rows(
    title: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[str | int | None, ...]],
    notes: tuple[str, ...] = (),
) -> Table:
    cells = tuple(tuple(Cell(value) for value in row) for row in rows)
    return Table(title, tuple(Column(name) for name in columns), cells, notes)
