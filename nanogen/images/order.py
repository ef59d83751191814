"""The order of file names: numbers by their value, so that 2.png comes before 10.png."""

from __future__ import annotations

import re

Key = tuple[tuple[int, str], ...]


def natural(name: str) -> tuple[Key, str]:
    """A sorting key. Names that differ in leading zeros alone keep a fixed order."""
    parts = re.split(r"([0-9]+)", name)
    # Digits and other text take turns, so that like is compared with like. A number is compared by
    # its length, then digit by digit: it may be longer than an int can be parsed.
    key = tuple(
        (len(digits := part.lstrip("0")), digits) if place % 2 else (0, part)
        for place, part in enumerate(parts)
    )
    return key, name
