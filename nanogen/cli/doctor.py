"""`nanogen doctor`."""

from __future__ import annotations

from nanogen.cli.options import Json


def main(as_json: Json = False) -> None:
    """What is installed, what is missing, and how to get it."""
    from nanogen.bench.doctor import table
    from nanogen.cli.output import show

    show([table()], as_json)
