"""Records: one JSON file for each number, and all that leaderboards and reports ever read.

A record says what was measured, on which weights of which run, with which sampler, against which
reference, and by which versions: enough to make the number again, and enough to see why two
numbers differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import re
import subprocess
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from nanogen.errors import DataError
from nanogen.files import write_text

SCHEMA = 1
"""raised when a field changes its meaning"""
SUFFIX = ".record.json"

DISTINGUISHING = ("repeats", "image_size", "reference", "reference_hash", "captions_hash")
"""facts that make it another evaluation"""

Plain = str | int | float | bool | None | list[Any]
"""what a fact or a setting of a sampler may be: anything JSON holds, without nesting of mappings"""


@dataclass(frozen=True)
class Record:
    """One number with its whole origin. Fields that do not apply keep their default."""

    run: str
    """name of the run folder, or of the images that were measured"""
    task: str
    method: str
    metric: str
    """name of the score: the metric's own, or `metric/part`"""
    version: int
    """of the metric"""
    value: float
    standard_error: float | None
    n: int
    """samples behind the value"""
    higher_is_better: bool
    budget: str = ""
    weights: str = "ema"
    """"ema", "raw", or that of a relative width, "posthoc-0.07\""""
    seen: int = 0
    """images the model was trained on, repeats counted"""
    facts: Mapping[str, Plain] = field(default_factory=dict)
    sampler: Mapping[str, Plain] = field(default_factory=dict)
    """solver, steps, guidance, interval, seed, network calls, and what else is in use"""
    training_seed: int = 0
    config_hash: str = ""
    parameters: int = 0
    quantisation: str = ""
    """how grey levels were made whole; empty for images that were there already"""
    precision: str = ""
    """of the scoring models; empty where those of the metric have no choice"""
    device: str = "cpu"
    commit: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """spent on sampling and scoring"""
    skipped: int = 0
    """samples that could not be judged"""
    known: bool = False
    """images of known quality (real, or real made worse) instead of a model's"""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise DataError(f"record of {self.metric!r}: {problem}")


def write(folder: Path, record: Record) -> Path:
    """Write a record into `folder` whole or not at all; the same evaluation done again replaces it.

    Raises DataError where the folder cannot be written.
    """
    text = json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False, sort_keys=True)
    path = Path(folder) / file_name(record)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text + "\n")
    return path


@contextlib.contextmanager
def writing(path: Path) -> Generator[None]:
    """A full or read-only disk while a result is written is a DataError that names its file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def read(folder: Path) -> list[Record]:
    """All records in a folder and below, in the order of their paths; or the one of a file.

    A broken or foreign file in a folder is skipped with one warning that names it. Raises DataError
    where there is no such folder, and for a file that is no record.
    """
    folder = Path(folder)
    if not folder.exists():
        raise DataError(f"{folder} does not exist; give a run folder, a bench folder or a record")
    records = []
    for path in [folder] if folder.is_file() else sorted(folder.rglob(f"*{SUFFIX}")):
        try:
            records.append(_parse(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, DataError) as error:
            reason = str(error).splitlines()[0]
            if path == folder:
                raise DataError(
                    f"{path} is not a record ({reason}); give a run folder, a bench folder or a "
                    "record"
                ) from None
            logging.getLogger(__name__).warning("skipped %s: %s", path, reason)
    return records


def file_name(record: Record) -> str:
    """Readable first, then a hash of everything that makes it another evaluation."""
    identity = (
        *(record.run, record.task, record.method, record.budget, record.metric, record.version),
        *(record.weights, record.seen, record.n, record.training_seed, record.config_hash),
        *(record.quantisation, record.precision, sorted(record.sampler.items())),
        *(record.device, [record.facts.get(name) for name in DISTINGUISHING]),
    )
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    words = (record.task, record.method, record.metric, record.weights, str(record.seen), digest)
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", word) for word in words) + SUFFIX


def versions() -> dict[str, str]:
    """Of what computes: this package, torch and python."""
    import torch

    import nanogen

    python = ".".join(map(str, sys.version_info[:3]))
    return {"nanogen": nanogen.__version__, "torch": torch.__version__, "python": python}


def commit() -> str:
    """Commit of the checkout in use, with `+` where files differ from it; "" if installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _parse(text: str) -> Record:
    data = json.loads(text)
    if not isinstance(data, dict):
        raise DataError("it is not a record")
    known = {f.name: f for f in dataclasses.fields(Record)}
    needed = {name for name, f in known.items() if f.default is f.default_factory}
    missing, unknown = sorted(needed - set(data)), sorted(set(data) - set(known))
    if data.get("schema") != SCHEMA or missing:
        wrong = f"misses {', '.join(missing)}" if missing else f"has schema {data.get('schema')}"
        raise DataError(f"it is not a record of schema {SCHEMA}: it {wrong}")
    if unknown:
        raise DataError(f"it has unknown fields: {', '.join(unknown)}")
    return Record(**data)


_TYPES = get_type_hints(Record)


def _problem(record: Record) -> str:
    """What is wrong with the values of a record; "" when nothing is."""
    for name, expected in _TYPES.items():
        value = getattr(record, name)
        if not _fits(value, expected):
            return f"{name} is {value!r}, not {getattr(expected, '__name__', expected)}"
    if not math.isfinite(record.value) or not math.isfinite(record.standard_error or 0.0):
        return f"value {record.value} with standard error {record.standard_error} is not finite"
    if record.n < 1:
        return f"n is {record.n}: there are no samples behind it"
    if not re.fullmatch(r"ema|raw|posthoc-[\d.e-]+", record.weights):
        return f"weights is {record.weights!r}, not 'ema', 'raw' or 'posthoc-0.07'"
    return ""


def _fits(value: object, expected: Any) -> bool:
    if get_origin(expected) is UnionType:
        return any(_fits(value, one) for one in get_args(expected))
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, get_origin(expected) or expected)
