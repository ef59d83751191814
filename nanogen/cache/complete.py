"""What every cache is asked before it is read: is it complete, of this encoder, of these data?"""

from __future__ import annotations

from pathlib import Path

from nanogen.cache import manifest
from nanogen.cache.folder import missing
from nanogen.cache.manifest import Manifest, Plan
from nanogen.data.base import FiniteSource
from nanogen.errors import DataError

FIX = "write a cache for this run with nanogen cache, to another folder"


def complete(folder: Path) -> Manifest:
    """The manifest of a cache; DataError where there is none, or it is not finished."""
    found = manifest.read(folder)
    if found is not None:
        return found
    plan = manifest.read_plan(folder)
    if plan is None:
        raise DataError(f"{folder} holds no cache; write one with nanogen cache")
    done = plan.shards - len(missing(folder, plan))
    raise DataError(
        f"{folder} is unfinished ({done} of {plan.shards} shards); the nanogen cache command that "
        "began it goes on with the others"
    )


def check_fingerprints(folder: Path, plan: Plan, encoder: str, source: FiniteSource) -> None:
    """DataError where another network encoded the cache, or other data were encoded."""
    if plan.encoder != encoder:
        what = "text encoder" if plan.content == "text" else "tokenizer"
        raise DataError(
            f"{folder} was written by another {what} ({plan.encoder} there, {encoder} here); {FIX}"
        )
    if plan.data != source.fingerprint or plan.resolution != source.size:
        raise DataError(
            f"{folder} was written from other data ({plan.data} there, {source.fingerprint} here); "
            f"{FIX}"
        )
