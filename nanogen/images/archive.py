"""Images in a tar or zip, read in place: nothing is ever extracted.

    images = Archive(Path("samples.tar"))

The headers are read once; an image is then read directly from its place. What a member is called
and where it lies decides its caption or class, as in a folder: see captions.py.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from nanogen.data.shards import MOST_BYTES, members_of, read_at
from nanogen.errors import DataError
from nanogen.images.files import FileImages
from nanogen.images.members import Members, is_hidden

PACKED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}
"""the first bytes of a compressed file -> the command that unpacks it"""
WIDTH = 120
"""characters of a foreign reason that are shown"""


class Archive(FileImages):
    """The images of a tar or zip file."""

    def __init__(
        self,
        path: Path,
        size: int | None = None,
        classes: Sequence[str] = (),
        batch: int = 100,
    ) -> None:
        """Read the headers; DataError where they are damaged or unsafe, or see FileImages."""
        super().__init__(_members(path.expanduser()), size, classes, batch)


def _members(path: Path) -> Members:
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise DataError(f"{path} {what}; name a .tar or .zip of images")
    if zipfile.is_zipfile(path):
        return Zipped(path)
    if path.suffix.lower() == ".zip":
        raise DataError(f"{path} is no zip, or it is cut off; write or fetch it again")
    start = read_at(path, 0, min(2, path.stat().st_size))
    if start in PACKED:
        raise DataError(
            f"{path} is compressed, so that no image can be read from its place; unpack it once: "
            f"{PACKED[start]} {path}"
        )
    return Tarred(path)


class Tarred:
    """The files of an uncompressed tar."""

    def __init__(self, path: Path) -> None:
        """DataError for a damaged one, and for one with links or names that lead outside."""
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}
        self.stamps: dict[str, str] = {}
        written = path.stat().st_mtime_ns
        for member in members_of(path):
            name = _plain(member.name)
            if is_hidden(name):
                continue
            # Of two members with one name the later counts, as when it is unpacked.
            self._places[name] = member.offset_data, member.size
            self.stamps[name] = f"{member.size} {member.mtime} {written}"

    def data(self, name: str) -> bytes:
        return read_at(self.path, *self._places[name])

    def head(self, name: str, length: int) -> bytes:
        start, size = self._places[name]
        return read_at(self.path, start, min(size, length))


class Zipped:
    """The files of a zip."""

    def __init__(self, path: Path) -> None:
        """DataError for a damaged one."""
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as problem:
            raise DataError(f"cannot read {path} as a zip ({problem}); fetch it again") from problem
        entries = [entry for entry in self._zip.infolist() if not entry.is_dir()]
        self._entries = {_plain(entry.filename): entry for entry in entries}
        self._entries = {n: entry for n, entry in self._entries.items() if not is_hidden(n)}
        self.stamps = {n: f"{entry.file_size} {entry.CRC}" for n, entry in self._entries.items()}

    def data(self, name: str) -> bytes:
        return self._read(name, -1)

    def head(self, name: str, length: int) -> bytes:
        return self._read(name, length)

    def _read(self, name: str, length: int) -> bytes:
        entry = self._entries[name]
        if entry.file_size > MOST_BYTES:
            raise DataError(f"{name!r} is larger than {MOST_BYTES:,} bytes")
        try:
            with self._zip.open(entry) as file:
                return file.read(length)
        # RuntimeError: it needs a password; NotImplementedError: packed in an unusual way.
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as problem:
            raise DataError(f"{name!r} cannot be read: {str(problem)[:WIDTH]}") from problem


def _plain(name: str) -> str:
    """`./a/1.png` as `a/1.png`."""
    return name.removeprefix("./")
