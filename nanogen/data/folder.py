"""Any folder of images as a data set.

    nanogen train ... task.data=folder task.data.path=photos

Classes are the folders directly below `path`, sorted by name. Captions stand in `name.txt` beside
`name.jpg`, or in files `metadata.jsonl` or `captions.jsonl` with a line for each image, its path
relative to that file:

    {"file_name": "cats/1.jpg", "text": "a cat asleep"}

("file" and "caption" mean the same.)

The folder is listed once, in one walk. Images and .txt captions are read when they are asked for.
Links are not followed: they may lead anywhere.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import chz

from nanogen.data.catalogue import (
    Catalogue,
    CatalogueOptions,
    clean_caption,
    decode_text,
    fingerprint,
)
from nanogen.data.table import FILE, TABLES, rows, value
from nanogen.errors import DataError
from nanogen.registry import register

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}


@register("data", "folder", summary="any folder of images: classes by subfolder, captions by file")
@chz.chz
class Folder(CatalogueOptions):
    """`path` is the folder that holds the class folders, or the captioned images."""

    def build(self) -> FolderSource:
        """List the folder; DataError for a folder that is missing, empty or inconsistent."""
        return FolderSource(self)


@dataclass
class Listing:
    """What one walk finds; paths are relative, with forward slashes."""

    images: dict[str, int] = field(default_factory=dict)
    """path -> bytes"""
    texts: dict[str, int] = field(default_factory=dict)
    """path of a .txt -> bytes"""
    tables: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


class FolderSource(Catalogue):
    """The images below a folder, in the order of their names."""

    def __init__(self, options: Folder) -> None:
        self._root = Path(options.path).expanduser()
        listing = _list(self._root)
        self._names = sorted(listing.images)
        super().__init__(options, self._names)
        stems = {_stem(name) for name in self._names}
        texts = {name: size for name, size in listing.texts.items() if _stem(name) in stems}
        self.captioned = options.captions and bool(listing.tables or texts)
        self._table: dict[str, str] = {}
        if self.captioned:
            self._table = _read_tables(self._root, listing)
            _check_captions(self._names, self._table or texts)
        self.classes = _classes(self._root, self._names)
        self._labels = {name: label for label, name in enumerate(self.classes)}
        sizes = [*sorted(listing.images.items()), *sorted(texts.items())]
        tables = [(name, _hash(self._root / name)) for name in sorted(listing.tables)]
        self.fingerprint = fingerprint(options, [*sizes, *tables])

    def name(self, number: int) -> str:
        return str(self._root / self._names[number])

    def data(self, number: int) -> bytes:
        return _read(self._root / self._names[number])

    def label(self, number: int) -> int | None:
        return self._labels.get(_top(self._names[number]))

    def text(self, number: int) -> str:
        name = self._names[number]
        if self._table:
            return self._table[name]
        path = self._root / f"{_stem(name)}.txt"
        where = repr(str(path))
        return clean_caption(decode_text(_read(path), where), where)


def _list(root: Path) -> Listing:
    """Everything of use below a folder, in one walk; hidden files and folders are passed over."""
    listing, folders = Listing(), [""]
    try:
        while folders:
            folder = folders.pop()
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = f"{folder}{entry.name}"
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink():
                        listing.links.append(name)
                    elif entry.is_dir():
                        folders.append(f"{name}/")
                    else:
                        _add(listing, name, entry)
    except OSError as problem:
        raise DataError(
            f"cannot list {problem.filename!r}: {problem.strerror}; "
            "set the data's path to a folder of images"
        ) from problem
    _check_listing(root, listing)
    return listing


def _add(listing: Listing, name: str, entry: os.DirEntry[str]) -> None:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in IMAGES:
        listing.images[name] = entry.stat().st_size
    elif suffix == ".txt":
        listing.texts[name] = entry.stat().st_size
    elif entry.name in TABLES:
        listing.tables.append(name)


def _check_listing(root: Path, listing: Listing) -> None:
    links = f"{len(listing.links)} links in {str(root)!r} are not followed" if listing.links else ""
    if not listing.images:
        raise DataError(
            f"no images in {str(root)!r} (looked for {' '.join(IMAGES)}{links and '; ' + links}); "
            "set the data's path to a folder of images"
        )
    if links:
        warnings.warn(f"{links} (first: {listing.links[0]!r})", stacklevel=2)


def _classes(root: Path, names: list[str]) -> tuple[str, ...]:
    """The folders directly below the root; none where images lie in the root itself."""
    tops = sorted({_top(name) for name in names})
    if tops == [""]:
        return ()
    if tops[0] == "":
        loose = next(name for name in names if not _top(name))
        raise DataError(
            f"{loose!r} lies beside the class folders of {str(root)!r}; move it into one, or all "
            "images into one folder where they have captions instead of classes"
        )
    if {top.lower() for top in tops} <= SPLIT_NAMES:
        raise DataError(
            f"the folders in {str(root)!r} are parts of a data set ({', '.join(tops)}), not "
            f"classes; set the data's path to one of them: {str(root / tops[0])!r}"
        )
    return tuple(tops)


def _read_tables(root: Path, listing: Listing) -> dict[str, str]:
    """Captions by image from all .jsonl tables."""
    captions: dict[str, str] = {}
    for table in sorted(listing.tables):
        for where, row in rows(_read(root / table), str(root / table)):
            name = str(PurePosixPath(table).parent / str(value(row, FILE, where)))
            if name not in listing.images:
                raise DataError(f"{where}: there is no image {name!r}; add it or delete the line")
            if name in captions:
                raise DataError(f"{where}: a second caption for {name!r}; keep one")
            captions[name] = clean_caption(value(row, ("text", "caption"), where), where)
    return captions


def _check_captions(names: list[str], captions: Mapping[str, object]) -> None:
    """`captions` by image name, or by name of its .txt."""
    missing = [n for n in names if n not in captions and f"{_stem(n)}.txt" not in captions]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images have no caption (first: {missing[0]!r}); "
            "write the captions, or set captions=false of the data"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise DataError(
            f"cannot read {str(path)!r}: {problem.strerror}; the folder changed since it was listed"
        ) from problem


def _hash(path: Path) -> str:
    return hashlib.sha256(_read(path)).hexdigest()


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _top(name: str) -> str:
    """The folder of an image directly below the root; empty for an image in the root."""
    head, slash, _ = name.partition("/")
    return head if slash else ""
