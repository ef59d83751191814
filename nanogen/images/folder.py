"""A folder of images, whatever made them: png, jpg, webp and bmp, in natural order of their names.

    images = Folder(Path("samples"))

Captions and classes are found as captions.py says. Links are followed; hidden files are passed
over.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nanogen.errors import DataError
from nanogen.images.files import FileImages
from nanogen.images.members import is_hidden


class Folder(FileImages):
    """The images below a folder."""

    def __init__(
        self,
        path: Path,
        size: int | None = None,
        classes: Sequence[str] = (),
        batch: int = 100,
    ) -> None:
        """List the folder, once; DataError where it is none, or see FileImages."""
        super().__init__(Listed(path.expanduser()), size, classes, batch)
        self.name = path.expanduser().resolve().name


class Listed:
    """The files below a folder."""

    def __init__(self, path: Path) -> None:
        """DataError where it cannot be listed."""
        if not path.is_dir():
            what = "is not a folder" if path.exists() else "does not exist"
            raise DataError(f"{path} {what}; name a folder of images")
        self.path = path
        self.stamps: dict[str, str] = {}
        try:
            self._list("", ())
        except OSError as problem:
            raise DataError(
                f"cannot list {problem.filename}: {problem.strerror}; make it readable"
            ) from problem

    def data(self, name: str) -> bytes:
        return self._read(name, -1)

    def head(self, name: str, length: int) -> bytes:
        return self._read(name, length)

    def _read(self, name: str, length: int) -> bytes:
        try:
            with (self.path / name).open("rb") as file:
                return file.read(length)
        except OSError as problem:
            raise DataError(f"{name!r} cannot be read: {problem.strerror}") from problem

    def _list(self, folder: str, above: tuple[tuple[int, int], ...]) -> None:
        found = os.stat(self.path / folder)
        here = (found.st_dev, found.st_ino)
        if here in above:
            return  # a link that leads back
        with os.scandir(self.path / folder) as entries:
            for entry in entries:
                name = f"{folder}{entry.name}"
                if is_hidden(entry.name):
                    continue
                if _is_dir(entry):
                    self._list(f"{name}/", (*above, here))
                else:
                    self.stamps[name] = self._stamp(name)

    def _stamp(self, name: str) -> str:
        try:
            found = os.stat(self.path / name)
        except OSError:
            return "missing"  # a link that leads nowhere: it is reported when it is read
        return f"{found.st_size} {found.st_mtime_ns}"


def _is_dir(entry: os.DirEntry[str]) -> bool:
    """A link to itself is a file, which is reported when it is read."""
    try:
        return entry.is_dir()
    except OSError:
        return False
