"""Images in an npz of ADM's layout: `arr_0`, uint8 [N, H, W, 3], and labels `arr_1` where known.

    images = Arrays(Path("admnet_imagenet256.npz"))

A file of 10 GB is not loaded: rows are read from their place where the array is stored as it is
(`numpy.savez`), and unpacked in order where it is compressed (`numpy.savez_compressed`). A plain
.npy file with such an array will do as well.

Layout: Dhariwal and Nichol 2021, evaluations of openai/guided-diffusion.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from nanogen.bench.record import Plain
from nanogen.errors import DataError
from nanogen.images.files import changes, check_options, sizes_of
from nanogen.images.pixels import Look, sized
from nanogen.types import Request

IMAGES, LABELS = "arr_0", "arr_1"
LOCAL = struct.Struct("<26xHH")
"""the fixed part of a zip's local header: lengths of the name and of the extra field behind it"""
BROKEN = (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)
SAVE = "save with numpy.savez(file, arr_0=images, arr_1=labels)"
CHANNELS = 3


@dataclass(frozen=True)
class Header:
    """What stands before the values of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    length: int
    """bytes of the header"""

    def __str__(self) -> str:
        return f"{self.dtype} {' x '.join(map(str, self.shape))}"


class Arrays:
    """The images of an npz or npy file."""

    def __init__(
        self,
        path: Path,
        size: int | None = None,
        classes: Sequence[str] = (),
        batch: int = 100,
    ) -> None:
        """Read the headers. DataError for a file that is damaged or of another layout, naming what
        it holds, and for labels beyond the `classes` of the data that images are compared with.
        """
        check_options(size, batch)
        self.path, self.size, self.batch = path.expanduser(), size, batch
        self.name, self.origin = path.name, str(path)
        self._store = _opened(self.path)
        self._header = self._store.headers.get(IMAGES)
        self._check()
        self._labels = self._read_labels(len(classes))
        self.fingerprint = self._fingerprint()

    @property
    def unknown_class(self) -> str:
        return "" if LABELS in self._store.headers else f"{self.origin} has no {LABELS}"

    @property
    def skipped(self) -> Mapping[str, str]:
        """Nothing: an image in an array cannot be broken by itself."""
        return {}

    @property
    def header(self) -> Header:
        assert self._header is not None
        return self._header

    @property
    def facts(self) -> Mapping[str, Plain]:
        count, high, wide, _ = self.header.shape
        found = {f"images_{name}": count for name in changes(Look(wide, high, ()), self.size)}
        known = {} if self.size is None else {"image_size": self.size}
        return {"layout": "npz", **known, "sizes": sizes_of({(wide, high): count}), **found}

    def count(self) -> int:
        return self.header.shape[0]

    def request(self, start: int, stop: int) -> Request:
        """See `Images.request`."""
        indices = torch.arange(self.count())[start:stop]
        return Request(indices, None if self._labels is None else self._labels[start:stop])

    def read(self, start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
        """See `Images.read`. In a compressed file all before `start` is unpacked, and dropped."""
        stop = min(stop, self.count())
        row = self.header.shape[1:]
        length = int(np.prod(row))
        try:
            with self._store.at(IMAGES, start * length) as file:
                for first in range(start, stop, self.batch):
                    count = min(self.batch, stop - first)
                    data = file.read(count * length)
                    if len(data) < count * length:
                        raise EOFError(f"it ends within image {first + len(data) // length}")
                    pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                    images = pixels.view(count, *row).permute(0, 3, 1, 2).contiguous()
                    yield (
                        self.request(first, first + count),
                        torch.stack([sized(image, self.size) for image in images]),
                    )
        except BROKEN as problem:
            raise DataError(f"{self.origin} is damaged: {problem}; fetch it again") from problem

    def _check(self) -> None:
        found, problem = self._header, ""
        if found is None:
            held = ", ".join(f"{name} ({header})" for name, header in self._store.headers.items())
            raise DataError(f"{self.origin} has no {IMAGES}, it holds {held or 'no array'}; {SAVE}")
        if found.dtype != np.uint8:
            problem = "of another type; scale to 0..255, round and convert to uint8"
        elif len(found.shape) == 4 and found.shape[1] == CHANNELS != found.shape[3]:
            problem = "with channels first; transpose to N x H x W x 3"
        elif len(found.shape) != 4 or found.shape[3] != CHANNELS or 0 in found.shape[1:3]:
            problem = "of another shape"
        elif not found.shape[0]:
            problem = "without images"
        elif found.fortran:
            problem = "in Fortran order; save numpy.ascontiguousarray of it"
        if problem:
            raise DataError(
                f"{self.origin}: {IMAGES} is {found}, {problem} (needed: uint8 N x H x W x 3)"
            )

    def _read_labels(self, classes: int) -> Tensor | None:
        found = self._store.headers.get(LABELS)
        if found is None:
            return None
        if found.dtype.kind not in "iu" or found.shape not in ((self.count(),), (self.count(), 1)):
            raise DataError(
                f"{self.origin}: {LABELS} is {found}; labels must be {self.count()} whole numbers"
            )
        try:
            with self._store.at(LABELS, 0) as file:
                data = file.read(self.count() * found.dtype.itemsize)
            values = np.frombuffer(data, found.dtype, self.count()).astype(np.int64)
        except BROKEN as problem:
            raise DataError(f"{self.origin} is damaged: {problem}; fetch it again") from problem
        if values.min() < 0 or (classes and values.max() >= classes):
            raise DataError(
                f"{self.origin}: {LABELS} has labels {values.min()} to {values.max()}, but classes "
                f"are 0 to {classes - 1 if classes else '...'}; correct them"
            )
        return torch.from_numpy(values)

    def _fingerprint(self) -> str:
        said = f"{self.size} {self.header} {self._store.stamp}"
        return hashlib.sha256(said.encode()).hexdigest()[:16]


class _Npy:
    """A single array in a file of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = path.stat()
        self.stamp = f"{found.st_size} {found.st_mtime_ns}"
        with path.open("rb") as file:
            self.headers = {IMAGES: _header(file)}

    @contextlib.contextmanager
    def at(self, name: str, start: int) -> Generator[IO[bytes], None, None]:
        """An open file, at byte `start` of the values."""
        with self._path.open("rb") as file:
            file.seek(self.headers[name].length + start)
            yield file


class _Npz:
    """Named arrays in a zip."""

    def __init__(self, path: Path) -> None:
        self._path, self._zip = path, zipfile.ZipFile(path)
        self._entries = {
            entry.filename.removesuffix(".npy"): entry
            for entry in self._zip.infolist()
            if entry.filename.endswith(".npy")
        }
        self.stamp = [(name, e.CRC, e.file_size) for name, e in self._entries.items()]
        self.headers: dict[str, Header] = {}
        self._running: dict[str, IO[bytes]] = {}
        for name, entry in self._entries.items():
            with self._zip.open(entry) as file:
                self.headers[name] = _header(file)

    @contextlib.contextmanager
    def at(self, name: str, start: int) -> Generator[IO[bytes], None, None]:
        """An open file, at byte `start` of the values."""
        entry, start = self._entries[name], start + self.headers[name].length
        if entry.compress_type != zipfile.ZIP_STORED:
            # Who reads on where he stopped need not unpack again what comes before.
            file = self._running.pop(name, None)
            if file is None or file.tell() > start:
                file = self._zip.open(entry)
            file.seek(start)
            yield file
            self._running[name] = file
            return
        with self._path.open("rb") as plain:
            plain.seek(entry.header_offset)
            # The extra fields of an entry's two headers differ: only the local one counts.
            name_length, extra_length = LOCAL.unpack(plain.read(LOCAL.size))
            plain.seek(name_length + extra_length + start, os.SEEK_CUR)
            yield plain


def _opened(path: Path) -> _Npy | _Npz:
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise DataError(f"{path} {what}; name an .npz of images")
    try:
        return _Npz(path) if zipfile.is_zipfile(path) else _Npy(path)
    except BROKEN as problem:
        raise DataError(
            f"cannot read {path} as npz or npy ({problem}); fetch it again, or {SAVE}"
        ) from problem


def _header(file: IO[bytes]) -> Header:
    """ValueError for what is no array."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return Header(tuple(shape), dtype, fortran, file.tell())
