"""`nanogen ls`."""

from __future__ import annotations

from typing import Annotated

import typer

from nanogen.cli.options import Json

KINDS = {
    "presets": "preset",
    "methods": "method",
    "tasks": "task",
    "data": "data",
    "tokenizers": "tokenizer",
    "conditioners": "conditioner",
    "encoders": "encoder",
    "networks": "network",
    "backbones": "backbone",
    "objectives": "objective",
    "terms": "term",
    "optimisers": "optimiser",
    "metrics": "metric",
    "prompts": "prompts",
    "reconstructions": "reconstruction",
}


def main(
    kind: Annotated[
        str | None, typer.Argument(help=f"One of: {', '.join(KINDS)}. All if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tables of what can be named, with licence and what each needs."""
    from nanogen.bench import catalogue
    from nanogen.cli.output import show
    from nanogen.errors import ConfigError, suggest

    if kind is not None and kind not in KINDS:
        raise ConfigError(f"nothing is called {kind!r}; {suggest(kind, KINDS)}")
    tables = [catalogue.table(title, KINDS[title]) for title in ([kind] if kind else KINDS)]
    show([table for table in tables if table.rows or kind], as_json)
