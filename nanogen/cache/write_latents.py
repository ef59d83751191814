"""Encoding a training set into a cache of latents.

job = LatentJob(tokenizer, source, "fp16", device)
plan = plan_latents(job)
write_latents(job, plan, folder)            # again after a kill: goes on with what is missing
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nanogen.cache.folder import finish, items_of_a_shard, new_shard, writing
from nanogen.cache.latents import content_of, storable
from nanogen.cache.manifest import BYTES, Plan
from nanogen.cache.records import RECORDS
from nanogen.data.base import FiniteSource, Source
from nanogen.data.loader import read_ahead
from nanogen.errors import DataError, UserError
from nanogen.tokenizers.raw import GROUP, PRECISIONS, Precision, raw_latents
from nanogen.types import Tokenizer, to_float

Progress = Callable[[int, int], None]
"""is told how much of how much this process has written"""


def silent(done: int, total: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True)
class LatentJob:
    """What is encoded, and how."""

    tokenizer: Tokenizer
    source: Source
    precision: Precision
    device: torch.device
    batch: int = 4 * GROUP
    """samples read at once; changes memory only"""
    workers: int = 0
    """processes that read ahead"""
    described: Mapping[str, object] = field(default_factory=dict)
    """the tokenizer's config, for people"""


def plan_latents(job: LatentJob) -> Plan:
    """What the cache will hold; encodes one image. DataError where there is nothing to store."""
    source = storable(job.tokenizer, job.source)
    image = to_float(torch.stack(source.views(0)[:1])).to(job.device)
    shape = tuple(raw_latents(job.tokenizer, image).shape[1:])
    items = source.count("train")
    item_bytes = source.variants * BYTES[job.precision] * torch.Size(shape).numel()
    return Plan(
        content=content_of(shape[0], job.tokenizer.spec),
        encoder=job.tokenizer.raw_fingerprint,
        data=source.fingerprint,
        resolution=source.size,
        items=items,
        variants=source.variants,
        shape=shape,
        precision=job.precision,
        shard_items=items_of_a_shard(items, item_bytes),
        described=job.described,
    )


def write_latents(job: LatentJob, plan: Plan, folder: Path, progress: Progress = silent) -> None:
    """Encode what is missing of a cache, and complete it; a collective call.

    DataError where the folder holds another cache, or latents are not finite in the precision;
    RunFailed where the disk runs full. What is finished by then is kept.
    """
    source = storable(job.tokenizer, job.source)
    expected = plan.items * plan.variants * plan.record_bytes
    with writing(folder, plan, expected) as mine:
        pieces = [
            range(start, min(start + job.batch, items.stop))
            for items in map(plan.items_of, mine)
            for start in range(items.start, items.stop, job.batch)
        ]
        total, done = plan.variants * sum(map(len, pieces)), 0
        with contextlib.closing(read_ahead(_Views(source, pieces), len(pieces), job.workers)) as v:
            stream = zip(pieces, v, strict=True)
            for number in mine:
                done += _write_shard(job, plan, folder, number, stream)
                progress(done, total)
    finish(folder, plan, job.device)


def _write_shard(
    job: LatentJob,
    plan: Plan,
    folder: Path,
    number: int,
    stream: Iterator[tuple[range, Tensor]],
) -> int:
    """One shard from the next pieces of the stream; returns its number of records."""
    items, records = plan.items_of(number), 0
    moments: list[Tensor] = []
    with new_shard(folder, number) as files:
        while records < len(items) * plan.variants:
            piece, views = next(stream)
            # Divided on the CPU, as for training: other devices multiply by 1 / 255.
            raw = raw_latents(job.tokenizer, to_float(views).to(job.device))
            kept = raw.to(PRECISIONS[job.precision]).cpu()
            _check_finite(kept, piece, plan)
            files.write(RECORDS, kept)
            moments.append(_moments(kept))
            records += len(kept)
        # Added at once, so that the sums are the same whatever was read at once.
        sums, squares = torch.cat(moments).sum(0).tolist()
        files.describe(records, tuple(sums), tuple(squares))
    return records


def _moments(kept: Tensor) -> Tensor:
    """[B, R, h, w] -> float64 [B, 2, R]: the sums of each record by channel, and of its squares."""
    wide = kept.double().flatten(2)
    return torch.stack([wide.sum(2), wide.square().sum(2)], dim=1)


def _check_finite(kept: Tensor, piece: range, plan: Plan) -> None:
    broken = ~kept.flatten(1).isfinite().all(1)
    if broken.any():
        first = piece[int(broken.nonzero()[0]) // plan.variants]
        raise DataError(
            f"the raw latents of training image {first} are not finite in {plan.precision}; "
            "use --precision bf16 or fp32, or a tokenizer that can be trusted with this image"
        )


class _Views(Dataset[Tensor | UserError]):
    """Piece i: all variants of its samples, uint8 [n * variants, 3, H, W]."""

    def __init__(self, source: FiniteSource, pieces: list[range]) -> None:
        self.source, self.pieces = source, pieces

    def __getitem__(self, index: int) -> Tensor | UserError:
        try:
            return torch.stack([v for item in self.pieces[index] for v in self.source.views(item)])
        except UserError as error:
            # Raised in a worker, its one line would arrive inside a traceback.
            return error
