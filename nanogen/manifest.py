"""What a folder of foreign files held when it was made: their hashes, sizes and times.

files = take({"config.json": Path("/models/x/config.json")}, folder)   # linked, or copied
manifest = Manifest("x", "/models/x", now(), tree_hash(files), files)
manifest.check(folder)                                                 # cheap: size and time
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nanogen.download import progress
from nanogen.errors import DataError

LINKED = 1 << 20
"""bytes from which a file is linked instead of copied, on the same file system"""
CHUNK = 1 << 22


@dataclass(frozen=True)
class File:
    """One file as it was."""

    sha256: str
    size: int
    modified: int
    """ns since 1970: a file with the size and the time of before is not read again"""


@dataclass(frozen=True)
class Manifest:
    """The files of a folder, and where they came from."""

    asset: str
    source: str
    date: str
    """UTC"""
    sha256: str
    files: Mapping[str, File]
    """relative path -> what it was"""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read from a JSON file; DataError where it has another form."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            found["files"] = {name: File(**file) for name, file in found["files"].items()}
            return cls(**found)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise DataError(f"{path} is broken") from None

    def dump(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    def check(self, folder: Path) -> Self:
        """The manifest with the times of now; DataError where a file is not what it was.

        Only files with another time are read.
        """
        files = {}
        for name, known in self.files.items():
            path = folder / name
            try:
                stat = path.stat()
                same = (stat.st_size, stat.st_mtime_ns) == (known.size, known.modified)
                if not same and (stat.st_size != known.size or hash_file(path) != known.sha256):
                    raise DataError(f"{path} has changed since it was prepared on {self.date}")
            except OSError as problem:
                raise DataError(f"{path} cannot be read: {problem.strerror}") from None
            files[name] = dataclasses.replace(known, modified=stat.st_mtime_ns)
        return dataclasses.replace(self, files=files)


def take(chosen: Mapping[str, Path], folder: Path) -> dict[str, File]:
    """Link or copy files into a folder under the given relative paths, and hash them on the way."""
    total = sum(path.stat().st_size for path in chosen.values())
    taken = {}
    with progress("checking", total) as advance:
        for name, path in chosen.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path = path.resolve()  # a link in the hub's cache is not what is to be kept
            if _linked(path, target):
                digest = hash_file(target, lambda chunk: advance(len(chunk)))
            else:
                digest = _copy(path, target, advance)
            stat = target.stat()
            taken[name] = File(digest, stat.st_size, stat.st_mtime_ns)
    return taken


def hash_file(path: Path, each: Callable[[bytes], object] = len) -> str:
    """The sha256 of a file in hexadecimal digits; `each` is shown every piece of it."""
    digest = hashlib.sha256()
    with path.open("rb") as reader:
        while chunk := reader.read(CHUNK):
            digest.update(chunk)
            each(chunk)
    return digest.hexdigest()


def tree_hash(files: Mapping[str, File]) -> str:
    """The sha256 of the lines that `sha256sum` prints of the files, sorted by name."""
    lines = [f"{file.sha256}  {name}\n" for name, file in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _linked(path: Path, target: Path) -> bool:
    if path.stat().st_size < LINKED:
        return False
    try:
        os.link(path, target)
    except OSError:  # another file system, or one that has no such links
        return False
    return True


def _copy(path: Path, target: Path, advance: Callable[[int], object]) -> str:
    with target.open("wb") as writer:
        digest = hash_file(path, lambda chunk: advance(writer.write(chunk)))
        writer.flush()
        os.fsync(writer.fileno())
    return digest
