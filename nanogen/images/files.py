"""Images in files, wherever the files lie: what a folder, a tar and a zip have in common.

Nothing is decoded before it is asked for, and no more than a batch and a few images ahead is held.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from nanogen.bench.record import Plain
from nanogen.data.transforms import MOST_PIXELS
from nanogen.errors import ConfigError, DataError, suggest
from nanogen.images.ahead import ahead
from nanogen.images.base import rows_of
from nanogen.images.captions import layout_of
from nanogen.images.members import Members, image_names, instead
from nanogen.images.pixels import Look, look, rgb
from nanogen.types import Request

HEAD = 2**16
"""bytes in which an image file says its size and kind, unless much is written before them"""
SIZES = 8
"""most sizes that are told apart in a record"""
SHOWN = 3
"""most reasons in a message"""


class FileImages:
    """The images among some files, in natural order of their names."""

    def __init__(
        self, members: Members, size: int | None, classes: Sequence[str], batch: int
    ) -> None:
        """`size`: of the images that are given, whatever they have; None leaves them as they are.
        `classes`: names of the classes of the data that images are compared with. DataError where
        there are no images, or their captions are wrong.
        """
        check_options(size, batch)
        self.members, self.size, self.batch = members, size, batch
        self.name, self.origin = members.path.name, str(members.path)
        self.names = image_names(members.stamps)
        if not self.names:
            raise DataError(
                f"no images in {self.origin} ({instead(members.stamps)}); name a folder or archive "
                "of images"
            )
        self.layout, self._classes = layout_of(members, self.names, classes), classes
        self.fingerprint = self._fingerprint()
        self._skipped: dict[str, str] = {}

    @property
    def unknown_class(self) -> str:
        unknown = self.layout.unknown_class
        if not unknown:
            return ""
        return (
            f"the folder {unknown!r} in {self.origin} is none of the {len(self._classes)} classes; "
            f"{suggest(unknown, self._classes)}"
        )

    @property
    def skipped(self) -> Mapping[str, str]:
        return self._skipped

    def count(self) -> int:
        return len(self.names)

    def request(self, start: int, stop: int) -> Request:
        return self.layout.known.rows(start, stop)

    def read(self, start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
        """See `Images.read`: a change of size ends a batch."""
        request, names = self.request(start, stop), self.names[start:stop]
        rows: list[int] = []
        held: list[Tensor] = []
        for row, found in enumerate(ahead(self._pixels, names)):
            if isinstance(found, str):
                self._skipped[names[row]] = found
                continue
            if held and (len(held) == self.batch or held[0].shape != found.shape):
                yield rows_of(request, rows), torch.stack(held)
                rows, held = [], []
            rows.append(row)
            held.append(found)
        if held:
            yield rows_of(request, rows), torch.stack(held)
        if len(self._skipped) == len(self.names):
            raise DataError(f"all images in {self.origin} are broken: {self.report()}")

    def report(self) -> str:
        """What was left out so far, in one line; empty where nothing was."""
        shown = [f"{n}: {why}" for n, why in list(self._skipped.items())[:SHOWN]]
        more = len(self._skipped) - len(shown)
        return ", ".join(shown) + (f", and {more} more" if more > 0 else "")

    @cached_property
    def facts(self) -> Mapping[str, Plain]:
        """Layout, size, and counts over the heads of all files."""
        counts, sizes = Counter[str](), Counter[tuple[int, int]]()
        for found in ahead(self._look, self.names):
            if found is None:
                counts["unreadable"] += 1
                continue
            sizes[found.width, found.height] += 1
            counts.update(found.notes)
            counts.update(changes(found, self.size))
        known = {} if self.size is None else {"image_size": self.size}
        unknown = self.layout.unknown_class
        return {
            "layout": self.layout.name,
            **known,
            "sizes": sizes_of(sizes),
            **({"no_class": unknown} if unknown else {}),
            **{f"images_{name}": count for name, count in sorted(counts.items())},
        }

    def _pixels(self, name: str) -> Tensor | str:
        """uint8 [3, H, W], or why there are none."""
        try:
            return rgb(self.members.data(name), name, self.size)
        except DataError as problem:
            return str(problem).removeprefix(f"{name!r} ")

    def _look(self, name: str) -> Look | None:
        try:
            try:
                return look(self.members.head(name, HEAD))
            except DataError:
                return look(self.members.data(name))
        except DataError:
            return None

    def _fingerprint(self) -> str:
        known = self.layout.known
        labels = None if known.labels is None else known.labels.tolist()
        said = repr(([(n, self.members.stamps[n]) for n in self.names], known.texts, labels))
        # File names that are not UTF-8 reach Python with surrogates.
        digest = hashlib.sha256(f"{self.size} {said}".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]


def check_options(size: int | None, batch: int) -> None:
    """ConfigError for sizes below one, and for images larger than any that is read."""
    for name, value in (("size", size), ("batch", batch)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} of images: must be at least 1")
    if size is not None and size**2 > MOST_PIXELS:
        raise ConfigError(f"size={size} of images: must be at most {math.isqrt(MOST_PIXELS)}")


def changes(found: Look, size: int | None) -> list[str]:
    """What an image of this size goes through to have the wanted one."""
    if size is None or (found.width, found.height) == (size, size):
        return []
    return ["cropped", "enlarged"] if min(found.width, found.height) < size else ["cropped"]


def sizes_of(counts: Mapping[tuple[int, int], int]) -> list[str]:
    """["512x512: 99", "640x480: 1"], the most frequent first (width x height)."""
    first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{wide}x{high}: {count}" for (wide, high), count in first[:SIZES]]
    rest = sum(count for _, count in first[SIZES:])
    return [*shown, f"other: {rest}"] if rest else shown
