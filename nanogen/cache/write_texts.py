"""Encoding the captions of a training set into a cache of features.

job = TextJob(conditioner, source)
plan, captions = plan_texts(job)
write_texts(job, plan, captions, folder)    # again after a kill: goes on with what is missing
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from nanogen.cache.folder import finish, items_of_a_shard, new_shard, writing
from nanogen.cache.manifest import Plan
from nanogen.cache.records import RECORDS
from nanogen.cache.texts import CAPTION, CAPTIONS, digest, storable
from nanogen.cache.write_latents import Progress, silent
from nanogen.conditioners.features import TextEncoder
from nanogen.data.base import Source
from nanogen.tokenizers.raw import name_of

GUESSED = 32
"""captions from which the size of the cache is guessed"""
AT_ONCE = 64
"""captions between two writes"""


@dataclass(frozen=True)
class TextJob:
    """What is encoded."""

    encoder: TextEncoder
    source: Source
    device: torch.device
    described: Mapping[str, object] = field(default_factory=dict)
    """the conditioner's config, for people"""


@dataclass(frozen=True)
class TextWork:
    """A plan with the captions that it is about."""

    plan: Plan
    captions: Sequence[str]
    """different ones, in the order of their first sample"""
    expected_bytes: int
    """guessed from a few captions"""


def plan_texts(job: TextJob) -> TextWork:
    """What the cache will hold; reads every caption, and encodes a few. DataError where there is
    nothing to store.
    """
    source = storable(job.encoder, job.source)
    every = (source.describe(index).text or "" for index in range(source.count("train")))
    captions = list(dict.fromkeys(every))
    step = max(1, len(captions) // GUESSED)
    rows = job.encoder.rows(captions[::step][:GUESSED])
    shape, precision = (rows[0].shape[1],), name_of(rows[0].dtype)
    caption_bytes = sum(row.numel() * row.element_size() for row in rows) // len(rows)
    plan = Plan(
        content="text",
        encoder=job.encoder.fingerprint,
        data=source.fingerprint,
        resolution=source.size,
        items=len(captions),
        variants=1,
        shape=shape,
        precision=precision,
        shard_items=items_of_a_shard(len(captions), max(1, caption_bytes)),
        described=job.described,
    )
    return TextWork(plan, captions, len(captions) * (caption_bytes + CAPTION.itemsize))


def write_texts(job: TextJob, work: TextWork, folder: Path, progress: Progress = silent) -> None:
    """Encode what is missing of a cache, and complete it; a collective call.

    DataError where the folder holds another cache; RunFailed where the disk runs full. What is
    finished by then is kept.
    """
    plan = work.plan
    with writing(folder, plan, work.expected_bytes) as mine:
        total, done = sum(len(plan.items_of(number)) for number in mine), 0
        for number in mine:
            items = plan.items_of(number)
            captions = work.captions[items.start : items.stop]
            with new_shard(folder, number) as files:
                lengths = []
                for start in range(0, len(captions), AT_ONCE):
                    rows = job.encoder.rows(list(captions[start : start + AT_ONCE]))
                    files.write(RECORDS, torch.cat(rows))
                    lengths += [len(row) for row in rows]
                entries = zip(map(digest, captions), lengths, strict=True)
                table = np.array([(*words, length) for words, length in entries], CAPTION)
                files.write(CAPTIONS, torch.from_numpy(table.view(np.uint8)))
                files.describe(sum(lengths))
            done += len(captions)
            progress(done, total)
    finish(folder, plan, job.device)
