"""Files by name, wherever they lie: below a folder, or in an archive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

from nanogen.images.order import natural

FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
GRID = "grid.png"
"""a picture of many samples, which `nanogen sample` and GenEval write beside them"""


class Members(Protocol):
    """What can be read of a folder or archive."""

    @property
    def path(self) -> Path:
        """Of the folder or archive."""
        ...

    @property
    def stamps(self) -> Mapping[str, str]:
        """Name, with forward slashes -> what changes when the content does."""
        ...

    def data(self, name: str) -> bytes:
        """The whole file; DataError where it cannot be read."""
        ...

    def head(self, name: str, length: int) -> bytes:
        """Its first bytes, at most `length`; DataError where they cannot be read."""
        ...


def is_hidden(name: str) -> bool:
    """Whether it, or a folder above it, is nothing that a person put there."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def image_names(names: Iterable[str]) -> list[str]:
    """The images among files, in natural order; a grid of samples is none."""
    found = (
        name
        for name in names
        if name.lower().endswith(FORMATS) and PurePosixPath(name).name != GRID
    )
    return sorted(found, key=natural)


def instead(names: Iterable[str]) -> str:
    """What there is where images were looked for, in a few words."""
    kinds = Counter(PurePosixPath(name).suffix.lower() or "without suffix" for name in names)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3))
    return f"looked for {' '.join(FORMATS)}; found {found or 'no file'}"
