"""Tar shards in the webdataset layout as a data set.

    nanogen train ... task.data=shards task.data.path='train/{00000..00146}.tar'

Neighbouring members with one key make a sample: `0001.jpg` the image, `0001.txt` its caption (or
`0001.json` with "caption" or "text"), `0001.cls` the number of its class. The headers are read
once, in one pass; a sample is then read directly from its place, so the stream is shuffled over all
shards and resumes anywhere.

Nothing is unpacked and nothing unpickles: members of other kinds are never opened, and a shard that
holds a link or a name that leads outside is refused.
"""

from __future__ import annotations

import glob
import json
import re
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import chz
import numpy as np

from nanogen.data.catalogue import (
    Catalogue,
    CatalogueOptions,
    clean_caption,
    decode_text,
    fingerprint,
)
from nanogen.errors import DataError
from nanogen.registry import register

IMAGES = ("jpg", "jpeg", "png", "webp")
KINDS = (*IMAGES, "txt", "json", "cls")
MOST_BYTES = 256 * 2**20
"""of one member"""
MOST_CLASSES = 1_000_000
ABSENT = -1
ROW: Any = np.dtype(
    [
        ("shard", np.int32),
        ("image", np.int64),
        ("image_bytes", np.int64),
        ("caption", np.int64),
        ("caption_bytes", np.int64),
        ("json", np.bool_),
        ("label", np.int32),
    ]
)
"""one sample of the index: places in its shard, in bytes; `caption` and `label` may be ABSENT"""

Members = dict[str, tarfile.TarInfo]
"""the members of one sample by kind"""


@register("data", "shards", summary="tar shards in the webdataset layout")
@chz.chz
class Shards(CatalogueOptions):
    """`path` is a folder of .tar files, or a pattern with `*`, `{00000..00146}` or `{a,b}`."""

    def build(self) -> ShardSource:
        """Index the shards; DataError for shards that are missing, broken or unsafe."""
        return ShardSource(self)


class ShardSource(Catalogue):
    """The samples of all shards, in the order in which they lie there."""

    def __init__(self, options: Shards) -> None:
        self._paths = _find(options.path)
        names, rows, imageless = [], [], 0
        for shard, path in enumerate(self._paths):
            for key, members in _samples(path):
                if not any(kind in members for kind in IMAGES):
                    imageless += 1
                    continue
                names.append(f"{path.name}/{key}")
                rows.append((shard, *_row(path, members)))
        if not rows:
            raise DataError(f"no sample with an image ({', '.join(IMAGES)}) in {options.path!r}")
        if imageless:
            warnings.warn(f"{imageless} samples without an image are passed over", stacklevel=3)
        self._rows = np.array(rows, ROW)
        super().__init__(options, names)
        self.captioned = options.captions and self._all_have("caption")
        labels = int(self._rows["label"].max()) + 1 if self._all_have("label") else 0
        self.classes = tuple(str(label) for label in range(labels))
        sizes = [(path.name, path.stat().st_size) for path in self._paths]
        self.fingerprint = fingerprint(options, sizes)

    def name(self, number: int) -> str:
        row = self._rows[number]
        # A member's name stands at the head of its header, the block before its content.
        header = int(row["image"]) - tarfile.BLOCKSIZE
        name = read_at(self._paths[row["shard"]], header, tarfile.LENGTH_NAME)
        return f"{self._paths[row['shard']]}/{name.rstrip(bytes(1)).decode(errors='replace')}"

    def data(self, number: int) -> bytes:
        row = self._rows[number]
        return read_at(self._paths[row["shard"]], int(row["image"]), int(row["image_bytes"]))

    def label(self, number: int) -> int | None:
        return int(self._rows[number]["label"]) if self.classes else None

    def text(self, number: int) -> str:
        row, where = self._rows[number], f"caption of {self.name(number)!r}"
        data = read_at(self._paths[row["shard"]], int(row["caption"]), int(row["caption_bytes"]))
        text = decode_text(data, where)
        return clean_caption(_json_caption(text, where) if row["json"] else text, where)

    def _all_have(self, field: str) -> bool:
        missing = np.flatnonzero(self._rows[field] == ABSENT)
        if 0 < len(missing) < len(self._rows):
            raise DataError(
                f"{len(missing)} of {len(self._rows)} samples have no {field} "
                f"(first: {self.name(int(missing[0]))!r}); add it, or take the shard out"
            )
        return not len(missing)


def _find(pattern: str) -> list[Path]:
    """The shards of a folder or pattern, in order."""
    root = Path(pattern).expanduser()
    if root.is_dir():
        paths = sorted(root.glob("*.tar"))
    else:
        paths = [Path(path) for part in _unbraced(str(root)) for path in _matches(part)]
    if not paths:
        raise DataError(f"no .tar file in {str(root)!r}; set the data's path to a folder of shards")
    return paths


def _matches(part: str) -> list[str]:
    found = [part] if Path(part).is_file() else sorted(glob.glob(part))
    if not found:
        raise DataError(f"there is no shard {part!r}; correct the data's path")
    return found


def _unbraced(pattern: str) -> list[str]:
    """`a{1..3}` and `a{x,y}` written out, as a shell does."""
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if not brace:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    words = brace[1].split(",")
    if span:
        words = [str(n).zfill(len(span[1])) for n in range(int(span[1]), int(span[2]) + 1)]
    head, tail = pattern[: brace.start()], pattern[brace.end() :]
    return [path for word in words for path in _unbraced(f"{head}{word}{tail}")]


def _samples(path: Path) -> Iterator[tuple[str, Members]]:
    """Key and members of each sample of a shard; neighbours with one key belong together."""
    current, members = "", Members()
    for member in members_of(path):
        folder, _, base = member.name.rpartition("/")
        stem, _, kind = base.partition(".")
        key, kind = f"{folder}/{stem}", kind.lower()
        if kind not in KINDS:
            continue
        if key != current and members:
            yield current, members
            members = Members()
        if kind in members:
            raise DataError(f"{str(path)!r} holds {member.name!r} twice; write the shard again")
        current, members[kind] = key, member
    if members:
        yield current, members


def members_of(path: Path) -> Iterator[tarfile.TarInfo]:
    """The files of a tar after every check that can be made on its headers.

    DataError for one that is damaged, compressed, or holds links or names that lead outside.
    """
    try:
        total = path.stat().st_size
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                _check(path, member, total)
                if not member.isdir():
                    yield member
            end = shard.offset
        # A damaged header in the middle also ends the walk; at a true end there are only zeros.
        if read_at(path, end, min(tarfile.BLOCKSIZE, total - end)).strip(bytes(1)):
            raise DataError(f"{str(path)!r} is damaged at byte {end}; write or fetch it again")
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as problem:
        raise DataError(
            f"cannot read {str(path)!r} as an uncompressed tar ({problem}); write or fetch it again"
        ) from problem


def _check(path: Path, member: tarfile.TarInfo, total: int) -> None:
    name = PurePosixPath(member.name)
    problem = ""
    if name.is_absolute() or ".." in name.parts:
        problem = "leads outside"
    elif not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
        problem = "is a link or no plain file"
    elif member.issparse() or member.size > MOST_BYTES:
        problem = f"is sparse or larger than {MOST_BYTES:,} bytes"
    elif member.offset_data + member.size > total:
        problem = "is cut off"
    if problem:
        raise DataError(f"{str(path)!r}: member {member.name!r} {problem}; do not use this shard")


def _row(path: Path, members: Members) -> tuple[int, int, int, int, bool, int]:
    """The fields of ROW after the shard; ABSENT for a caption or label that is not there."""
    image = next(members[kind] for kind in IMAGES if kind in members)
    caption, is_json = members.get("txt"), False
    if caption is None and "json" in members:
        content = members["json"]
        text = decode_text(read_at(path, content.offset_data, content.size), repr(content.name))
        if _json_caption(text, f"{path}/{content.name}") is not None:
            caption, is_json = content, True
    place = (caption.offset_data, caption.size) if caption else (ABSENT, 0)
    label = _label(path, members["cls"]) if "cls" in members else ABSENT
    return image.offset_data, image.size, *place, is_json, label


def _label(path: Path, member: tarfile.TarInfo) -> int:
    content = read_at(path, member.offset_data, min(member.size, 32)).strip()
    if not content.isdigit() or int(content) >= MOST_CLASSES:
        raise DataError(
            f"{path}/{member.name}: {content!r} is not the number of a class; correct it"
        )
    return int(content)


def _json_caption(text: str, where: str) -> object:
    """The field "caption" or "text"; None where there is neither."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{where}: not JSON ({problem}); correct it") from problem
    if not isinstance(row, dict):
        raise DataError(f"{where}: not a JSON object; correct it")
    return row.get("caption", row.get("text"))


def read_at(path: Path, start: int, length: int) -> bytes:
    """Bytes `start` .. `start + length` of a file; DataError where they are not there."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(length)
    except OSError as problem:
        raise DataError(f"cannot read {str(path)!r}: {problem.strerror}") from problem
    if len(data) != length:
        raise DataError(f"{str(path)!r} is shorter than when it was indexed; fetch it again")
    return data
