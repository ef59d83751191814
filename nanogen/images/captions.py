"""What is known of each image of a folder or archive: its caption, or its class.

Looked for in this order; the first that is there counts:

    tables      `samples.json` of `nanogen sample`, `captions.jsonl` or `metadata.jsonl` with a line
                {"file_name": "1.png", "text": "a cat"} for each image, or a "label" in place of a
                text; in any folder, with paths relative to it
    geneval     `00000/metadata.jsonl` with one "prompt", for the images in `00000/samples/`
    sidecars    `1.txt` with the caption or `1.cls` with the number of the class beside `1.png`
    subfolders  a folder for each class

Captions are kept to the letter: metrics look published prompts up by their exact text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import torch

from nanogen.data.catalogue import clean_caption, decode_text
from nanogen.data.folder import SPLIT_NAMES
from nanogen.data.table import FILE, TABLES, Row, rows, value
from nanogen.errors import DataError
from nanogen.images.members import Members
from nanogen.images.order import natural
from nanogen.types import Request

SAMPLES = "samples.json"
"""what `nanogen sample` writes beside its images"""
TEXT = ("text", "caption", "prompt")
LABEL = ("label", "class")
GENEVAL = "samples"
"""folder of the images of a prompt, in GenEval's published layout"""
SIDECARS = (".txt", ".cls")

Known = dict[str, str | int]
"""image -> caption or class"""


@dataclass(frozen=True)
class Layout:
    """What was found, and the labels or texts of all images."""

    name: str
    """tables, geneval, sidecars, subfolders or plain"""
    known: Request
    unknown_class: str = ""
    """a subfolder that is no class of the data, where there is one: then nothing is labelled"""


def layout_of(members: Members, images: Sequence[str], classes: Sequence[str] = ()) -> Layout:
    """Captions or classes of the images of a folder or archive.

    With the names of `classes`, captions that are all among them, and subfolders that are, become
    their numbers. DataError for a caption of an image that is not there, an image without a caption
    where others have one, and files that do not follow their format.
    """
    for name, read in (("tables", _tables), ("sidecars", _sidecars)):
        known, geneval = read(members, images)
        if known:
            return Layout("geneval" if geneval else name, _request(known, images, classes, members))
    return _subfolders(members, images, classes)


def _tables(members: Members, images: Sequence[str]) -> tuple[Known, bool]:
    """What all tables say, and whether one says it of a folder of images, as GenEval's do."""
    known, there, geneval = Known(), set(images), False
    for table in sorted(members.stamps, key=natural):
        path = PurePosixPath(table)
        if path.name not in (SAMPLES, *TABLES):
            continue
        for where, row in _entries(members, table):
            if any(key in row for key in FILE) or "prompt" not in row:
                names = [os.path.normpath(path.parent / str(value(row, FILE, where)))]
            else:
                geneval = True
                names = _below(images, str(path.parent / GENEVAL), where)
            for name in names:
                if name not in there:
                    raise DataError(
                        f"{where}: there is no image {name!r}; add it or delete its entry"
                    )
                if name in known:
                    raise DataError(f"{where}: a second entry for {name!r}; keep one")
                known[name] = _entry(row, where)
    return known, geneval


def _below(images: Sequence[str], folder: str, where: str) -> list[str]:
    found = [name for name in images if str(PurePosixPath(name).parent) == folder]
    if not found:
        raise DataError(f"{where}: no image in {folder!r}; add them or remove the prompt's folder")
    return found


def _entries(members: Members, table: str) -> Iterator[tuple[str, Row]]:
    """Rows of a table, each with its place for messages."""
    where, data = f"{members.path}/{table}", members.data(table)
    if not table.endswith(SAMPLES):
        yield from rows(data, where)
        return
    try:
        found = json.loads(decode_text(data, where))["samples"]
        for number, row in enumerate(found):
            yield f"{where}, sample {number}", dict(row)
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise DataError(
            f"{where} is not what nanogen sample writes ({problem!r}); correct or remove it"
        ) from problem


def _entry(row: Row, where: str) -> str | int:
    """The caption of a row; its label where it has no caption."""
    if any(key in row for key in LABEL) and not any(key in row for key in TEXT):
        label = value(row, LABEL, where)
        if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
            return label
        raise DataError(f"{where}: {label!r} is not the number of a class; correct it")
    return _exact(value(row, (*TEXT, *LABEL), where), where)


def _exact(caption: object, where: str) -> str:
    clean_caption(caption, where)
    return str(caption)


def _sidecars(members: Members, images: Sequence[str]) -> tuple[Known, bool]:
    """What stands in a file beside each image."""
    stems = {_stem(name): name for name in images}
    shapes = {_shape(stem) for stem in stems}
    known = Known()
    for name in sorted(members.stamps, key=natural):
        stem, suffix = _stem(name), PurePosixPath(name).suffix.lower()
        if suffix not in SIDECARS:
            continue
        where = f"{members.path}/{name}"
        if stem in stems:
            text = decode_text(members.data(name), where)
            known[stems[stem]] = _number(text, where) if suffix == ".cls" else text.rstrip("\r\n")
        elif _shape(stem) in shapes:
            raise DataError(f"{where}: there is no image of this name; add it or remove the file")
    return known, False


def _shape(stem: str) -> str:
    """Names that differ in their numbers alone: where one is an image's, so is the other; a
    README.txt is nothing of the kind.
    """
    return re.sub(r"[0-9]+", "0", stem)


def _number(text: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise DataError(f"{where}: {text[:20]!r} is not the number of a class; correct it")
    return int(text)


def _request(
    known: Mapping[str, str | int],
    images: Sequence[str],
    classes: Sequence[str],
    members: Members,
) -> Request:
    missing = [name for name in images if name not in known]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(images)} images in {members.path} have no caption or class "
            f"(first: {missing[0]!r}); add it, or remove the captions of the others"
        )
    found = [known[name] for name in images]
    texts = tuple(entry for entry in found if isinstance(entry, str))
    if texts and len(texts) < len(found):
        raise DataError(
            f"some images in {members.path} have a caption and others a class; give all the same"
        )
    if not texts:
        labels = [int(entry) for entry in found]
        if classes and max(labels) >= len(classes):
            raise DataError(
                f"{images[labels.index(max(labels))]!r} in {members.path} is of class "
                f"{max(labels)}, but the data has 0 to {len(classes) - 1}; correct it"
            )
        return _labelled(labels)
    if classes and set(texts) <= set(classes):
        return _labelled([classes.index(text) for text in texts])
    return Request(torch.arange(len(images)), texts=texts)


def _labelled(labels: Sequence[int]) -> Request:
    return Request(torch.arange(len(labels)), labels=torch.tensor(labels))


def _subfolders(members: Members, images: Sequence[str], classes: Sequence[str]) -> Layout:
    """Classes by folder: their names among `classes`, or numbers, or ranks in natural order."""
    parents = [PurePosixPath(name).parent for name in images]
    common = PurePosixPath(os.path.commonpath([f"/{parent}" for parent in parents]))
    tops = [PurePosixPath(f"/{parent}").relative_to(common).parts[:1] for parent in parents]
    names = sorted({top[0] for top in tops if top}, key=natural)
    if names and () in tops:
        loose = images[tops.index(())]
        raise DataError(
            f"{loose!r} lies beside the folder {names[0]!r}, in {members.path}; move it into one "
            "of the class folders, or all images into one folder"
        )
    if len(names) > 1 and {name.lower() for name in names} <= SPLIT_NAMES:
        raise DataError(
            f"the folders in {members.path} are parts of a data set ({', '.join(names)}), not "
            "classes; name one of them"
        )
    if not names:
        # A single class: all images lie in its folder.
        tops, names = [(common.name,)] * len(images), [common.name]
        if common.name not in classes:
            return Layout("plain", Request(torch.arange(len(images))), common.name * bool(classes))
    numbers = _numbers(names, classes)
    unknown = next((name for name in names if name not in numbers), "")
    if unknown:
        return Layout("subfolders", Request(torch.arange(len(images))), unknown)
    return Layout("subfolders", _labelled([numbers[top[0]] for top in tops]))


def _numbers(names: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """The class of each folder; those that are none of the `classes` are left out."""
    if classes and set(names) & set(classes):
        return {name: classes.index(name) for name in names if name in classes}
    if all(re.fullmatch(r"[0-9]{1,9}", name) for name in names):
        return {name: int(name) for name in names if not classes or int(name) < len(classes)}
    return {} if classes else {name: rank for rank, name in enumerate(names)}


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
