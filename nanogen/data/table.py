"""Tables of captions: .jsonl files with a JSON object for each image."""

from __future__ import annotations

import json
from collections.abc import Iterator

from nanogen.data.catalogue import decode_text
from nanogen.errors import DataError

TABLES = ("metadata.jsonl", "captions.jsonl")
FILE = ("file_name", "file")
"""fields that mean the path of an image, relative to its table"""

Row = dict[str, object]


def rows(data: bytes, path: str) -> Iterator[tuple[str, Row]]:
    """The objects of a .jsonl file, each with `path:line` for messages; skips empty lines.

    DataError for a line that is no JSON object.
    """
    for number, line in enumerate(data.split(b"\n"), start=1):
        where = f"{path}:{number}"
        text = decode_text(line, where).strip()
        if not text:
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise DataError(f"{where}: not a line of JSON ({problem}); correct it") from problem
        if not isinstance(row, dict):
            raise DataError(f"{where}: not a JSON object; correct it")
        yield where, row


def value(row: Row, keys: tuple[str, ...], where: str) -> object:
    """The first of some fields that a row has; DataError, naming `where`, if it has none."""
    for key in keys:
        if key in row:
            return row[key]
    raise DataError(f"{where}: has neither {' nor '.join(map(repr, keys))}; add one of them")
