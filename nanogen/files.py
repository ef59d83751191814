"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from nanogen.errors import UserError


@contextlib.contextmanager
def whole_file(target: Path) -> Generator[Path, None, None]:
    """A temporary path to write to; it takes the name `target` when the block ends without an
    error.
    """
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        _flush(part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    _flush(target.parent)


@contextlib.contextmanager
def whole_folder(target: Path, *, replace: bool = False) -> Generator[Path, None, None]:
    """A temporary folder to fill; it takes the name `target` when the block ends without an
    error. With `replace` it may be that of another folder, which stands until then.
    """
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        yield part
        part.chmod(0o755)
        for file in part.iterdir():
            _flush(file)
        _swap(part, target) if replace and target.is_dir() else part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _flush(target.parent)


def _swap(part: Path, target: Path) -> None:
    """Give the name of a folder to another; where that fails the old one keeps it."""
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        target.rename(old)
        part.rename(target)
    except BaseException:
        if not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    with whole_file(target) as part:
        part.write_text(text, encoding="utf-8")


def remove_parts(folder: Path) -> None:
    """Remove what an interrupted write left behind."""
    for part in folder.glob(".*.part"):
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def writable_folder(folder: Path, fix: str = "choose another folder with --out") -> Path:
    """The folder, made if need be; one clear error, which ends in `fix`, where nothing can be
    written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; {fix}") from None
    return folder


def _flush(path: Path) -> None:
    """Ask the disk to have it: without this a power cut can leave a named but empty file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
