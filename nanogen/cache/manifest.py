"""What a cache says of itself: `manifest.json`, which is written last.

    latents/manifest.json      who encoded what, the shape and precision of a record, the shards
    latents/00000.raw ...      records and nothing else, in C order, little-endian

Until it is complete a cache has a `plan.json` in its place, and `00000.json` beside each finished
shard. A cache belongs to the fingerprints of what encoded it and of the data.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from nanogen.errors import DataError
from nanogen.files import write_text

MANIFEST, PLAN = "manifest.json", "plan.json"
VERSION = 1
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}

Content = Literal["mode", "moments", "text"]
"""a latent; the mean and the standard deviation of a posterior, in this order of channels; the
features of a token
"""
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What a cache is going to hold: known before anything is encoded."""

    content: Content
    encoder: str
    """`raw_fingerprint` of the tokenizer, or `fingerprint` of the conditioner"""
    data: str
    """fingerprint of the data set"""
    resolution: int
    """pixels a side of the images"""
    items: int
    """training samples, or different captions"""
    variants: int
    """records of each sample; that of sample i in variant v has the number i * variants + v"""
    shape: tuple[int, ...]
    """of a record: [R, h, w], or [D]"""
    precision: str
    """fp32, fp16 or bf16"""
    shard_items: int
    """items of a shard; the last may have fewer"""
    split: str = "train"
    version: int = VERSION
    described: Mapping[str, object] = field(default_factory=dict, compare=False)
    """the encoder's config, for people"""

    @property
    def record_bytes(self) -> int:
        return BYTES[self.precision] * math.prod(self.shape)

    @property
    def shards(self) -> int:
        return -(-self.items // self.shard_items)

    def items_of(self, shard: int) -> range:
        """The items of a shard."""
        start = shard * self.shard_items
        return range(start, min(start + self.shard_items, self.items))

    def differences(self, other: Plan) -> list[str]:
        """What differs from `other`, "field: mine here, theirs there", in the order of fields."""
        return [
            f"{one.name}: {getattr(self, one.name)} there, {getattr(other, one.name)} here"
            for one in dataclasses.fields(self)
            if one.compare and getattr(self, one.name) != getattr(other, one.name)
        ]


@dataclass(frozen=True)
class File:
    """One file of a shard."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """A finished shard: its records, and what else belongs to it."""

    records: int
    files: tuple[File, ...]
    sums: tuple[float, ...] = ()
    """over all records and places, by channel"""
    squares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A complete cache."""

    plan: Plan
    shards: tuple[Shard, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    """of the libraries that encoded it"""
    device: str = ""

    @property
    def bytes(self) -> int:
        return sum(file.bytes for shard in self.shards for file in shard.files)

    def channels(self) -> dict[str, list[float]]:
        """Mean and standard deviation of each channel of raw latents; empty for text."""
        if self.plan.content == "text":
            return {}
        places = sum(shard.records for shard in self.shards) * math.prod(self.plan.shape[1:])
        mean = [sum(column) / places for column in zip(*(s.sums for s in self.shards), strict=True)]
        squares = [sum(c) / places for c in zip(*(s.squares for s in self.shards), strict=True)]
        variance = [max(0.0, s - m * m) for s, m in zip(squares, mean, strict=True)]
        return {"mean": mean, "std": [math.sqrt(one) for one in variance]}


def write(folder: Path, manifest: Manifest) -> None:
    """The manifest, whole or not at all."""
    tree = dataclasses.asdict(manifest) | {"normalised": False, "channels": manifest.channels()}
    write_text(folder / MANIFEST, json.dumps(tree, indent=1) + "\n")


def write_plan(folder: Path, plan: Plan) -> None:
    write_text(folder / PLAN, json.dumps(dataclasses.asdict(plan), indent=1) + "\n")


def write_shard(folder: Path, number: int, shard: Shard) -> None:
    write_text(_shard_file(folder, number), json.dumps(dataclasses.asdict(shard)) + "\n")


def read(folder: Path) -> Manifest | None:
    """The manifest of a complete cache; None where there is none. DataError for a broken one."""
    tree = _load(folder / MANIFEST)
    if tree is None:
        return None
    with _Understood(folder / MANIFEST):
        shards = tuple(_shard(one) for one in tree["shards"])
        plan = _plan(tree["plan"])
        found = Manifest(plan, shards, dict(tree["versions"]), str(tree["device"]))
        if len(shards) != plan.shards:
            raise ValueError(f"{len(shards)} shards, not {plan.shards}")
    return found


def read_plan(folder: Path) -> Plan | None:
    """The plan of an unfinished cache; None where there is none. DataError for a broken one."""
    tree = _load(folder / PLAN)
    if tree is None:
        return None
    with _Understood(folder / PLAN):
        return _plan(tree)


def read_shard(folder: Path, number: int) -> Shard | None:
    """A shard of an unfinished cache that is finished; None where its files are not as it says."""
    try:
        shard = _shard(json.loads(_shard_file(folder, number).read_text(encoding="utf-8")))
        whole = all((folder / f.name).stat().st_size == f.bytes for f in shard.files)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return shard if whole else None


def remove_marks(folder: Path, plan: Plan) -> None:
    """Remove what only an unfinished cache needs."""
    for number in range(plan.shards):
        _shard_file(folder, number).unlink(missing_ok=True)
    (folder / PLAN).unlink(missing_ok=True)


def shown_bytes(count: int) -> str:
    """Bytes for people."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _shard_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as problem:
        raise _broken(file, problem) from problem


class _Understood:
    """Turns what a tree of the wrong shape raises into one DataError."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        if isinstance(problem, (KeyError, TypeError, ValueError, AttributeError)):
            raise _broken(self.file, problem) from problem


def _broken(file: Path, problem: Exception) -> DataError:
    return DataError(
        f"{file} is no description of a cache ({problem!r}); write the cache again, with another "
        "--out"
    )


def _plan(tree: Mapping[str, Any]) -> Plan:
    if tree["version"] != VERSION:
        raise ValueError(f"version {tree['version']}, not {VERSION}")
    fields: dict[str, Any] = {**tree, "shape": tuple(map(int, tree["shape"]))}
    plan = Plan(**fields)
    if plan.precision not in BYTES or min(plan.items, plan.variants, plan.shard_items) < 1:
        raise ValueError("impossible numbers")
    return plan


def _shard(tree: Mapping[str, Any]) -> Shard:
    files = tuple(File(str(f["name"]), int(f["bytes"]), str(f["sha256"])) for f in tree["files"])
    if any(Path(file.name).name != file.name for file in files):
        raise ValueError("a file name that leads outside")
    return Shard(int(tree["records"]), files, tuple(tree["sums"]), tuple(tree["squares"]))
