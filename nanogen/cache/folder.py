"""Writing a cache: shard by shard, each whole or not at all, by any number of processes.

    with writing(folder, plan, expected_bytes) as mine:     # shards that are left for this process
        for number in mine:
            with new_shard(folder, number) as files:
                files.write(".raw", data)
                files.describe(records)
    finish(folder, plan)                                    # the manifest, once every shard exists

A shard that is finished stays, whatever happens after it: the same command goes on with the others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import shutil
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from nanogen import dist
from nanogen.bench.record import versions
from nanogen.cache import manifest
from nanogen.cache.manifest import File, Manifest, Plan, Shard, shown_bytes
from nanogen.errors import DataError, RunFailed
from nanogen.files import remove_parts, whole_file, writable_folder

LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT)
FEWEST, MOST = 8, 512
"""shards of a cache: a process takes whole shards, and each is a file to hold open"""
SHARD_BYTES = 64 * 2**20


def items_of_a_shard(items: int, item_bytes: int) -> int:
    """Items of a shard of about 64 MiB, in 8 to 512 shards where there are so many items."""
    about = min(-(-items // FEWEST), max(1, SHARD_BYTES // item_bytes))
    return max(about, -(-items // MOST))


@contextlib.contextmanager
def writing(folder: Path, plan: Plan, expected_bytes: int) -> Generator[list[int], None, None]:
    """The numbers of the shards that this process is to write: its share of those that are missing.

    DataError where the folder holds another cache, is in use, or the disk has too little room for
    the `expected_bytes` of the whole. What ends the block on one process ends it on all.
    """
    with ExitStack() as stack:
        with _together(), _room(folder, plan):
            if dist.rank() == 0:
                stack.enter_context(_locked(writable_folder(folder)))
                _prepare(folder, plan, expected_bytes)
        left = missing(folder, plan)
        # Everyone must have looked before anyone writes.
        dist.barrier()
        with _together(), _room(folder, plan):
            yield left[dist.rank() :: dist.world()]


def missing(folder: Path, plan: Plan) -> list[int]:
    """The shards that are not finished."""
    return [n for n in range(plan.shards) if manifest.read_shard(folder, n) is None]


def finish(folder: Path, plan: Plan, device: torch.device) -> None:
    """Write the manifest, unless it says the same already; a collective call."""
    with _together(), _room(folder, plan):
        if dist.rank() == 0:
            found = [manifest.read_shard(folder, number) for number in range(plan.shards)]
            shards = tuple(shard for shard in found if shard is not None)
            if len(shards) < plan.shards:
                raise RunFailed(
                    f"{plan.shards - len(shards)} of {plan.shards} shards are not in {folder}; "
                    "all processes must write to one shared folder"
                )
            known = manifest.read(folder)
            if known is None or known.shards != shards:
                manifest.write(folder, Manifest(plan, shards, versions(), device.type))
            manifest.remove_marks(folder, plan)


def refuse_other(folder: Path, known: Plan, plan: Plan) -> None:
    """DataError, with what differs, unless `known` is the same plan."""
    rows = known.differences(plan)
    if rows:
        more = f" and {len(rows) - 2} more" if len(rows) > 2 else ""
        raise DataError(
            f"{folder} holds another cache ({'; '.join(rows[:2])}{more}); choose another --out"
        )


class NewShard:
    """The files of a shard while they are written."""

    def __init__(self, folder: Path, number: int, stack: ExitStack) -> None:
        self.folder, self.number, self._stack = folder, number, stack
        self._open: dict[str, BinaryIO] = {}
        self._digests: dict[str, hashlib._Hash] = {}
        self.shard: Shard | None = None

    def write(self, suffix: str, data: Tensor) -> None:
        """Append the bytes of a tensor in main memory to the file `<number><suffix>`."""
        if suffix not in self._open:
            part = self._stack.enter_context(whole_file(self.folder / self._name(suffix)))
            self._open[suffix] = self._stack.enter_context(part.open("wb"))
            self._digests[suffix] = hashlib.sha256()
        if data.numel():
            # numpy has no bfloat16; the bytes are all that is wanted.
            flat = data.contiguous().flatten().view(torch.uint8).numpy()
            self._open[suffix].write(memoryview(flat))
            self._digests[suffix].update(memoryview(flat))

    def describe(
        self, records: int, sums: tuple[float, ...] = (), squares: tuple[float, ...] = ()
    ) -> None:
        """The shard is complete; it appears when the block ends."""
        files = tuple(
            File(self._name(suffix), stream.tell(), self._digests[suffix].hexdigest())
            for suffix, stream in self._open.items()
        )
        self.shard = Shard(records, files, sums, squares)

    def _name(self, suffix: str) -> str:
        return f"{self.number:05d}{suffix}"


@contextlib.contextmanager
def new_shard(folder: Path, number: int) -> Generator[NewShard, None, None]:
    """The files of a shard, which take their names at the end of the block, and then its mark."""
    with ExitStack() as stack:
        files = NewShard(folder, number, stack)
        yield files
    assert files.shard is not None, "describe() was not called"
    manifest.write_shard(folder, number, files.shard)


def _prepare(folder: Path, plan: Plan, expected_bytes: int) -> None:
    """Refuse another cache or a disk that is too small; else say what is going to be here."""
    remove_parts(folder)
    complete = manifest.read(folder)
    known = complete.plan if complete else manifest.read_plan(folder)
    if known is not None:
        refuse_other(folder, known, plan)
    if complete is not None:
        # Shards whose files have gone since are missing now, and no others.
        for number, shard in enumerate(complete.shards):
            manifest.write_shard(folder, number, shard)
    needed = round(expected_bytes * len(missing(folder, plan)) / plan.shards)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder} needs about {shown_bytes(needed)} more, but its disk has "
            f"{shown_bytes(free)} free; make room, choose another --out, or a lower --precision"
        )
    if complete is None:
        manifest.write_plan(folder, plan)


@contextlib.contextmanager
def _room(folder: Path, plan: Plan) -> Generator[None, None, None]:
    """A disk that runs full ends the run in one line."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in FULL:
            raise
        done = plan.shards - len(missing(folder, plan))
        raise RunFailed(
            f"the disk of {folder} is full after {done} of {plan.shards} shards, which are kept; "
            "make room, and the same command goes on with the others"
        ) from problem


@contextlib.contextmanager
def _together() -> Generator[None, None, None]:
    """What ends the block on one process ends it on all; a collective call."""
    problem: Exception | None = None
    try:
        yield
    except Exception as raised:
        problem = raised
    failed = dist.any_flag(problem is not None, torch.device("cpu"))
    if problem is not None:
        raise problem
    if failed:
        raise RunFailed("another process could not go on; its message says why")


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None, None, None]:
    """Within, no other command may write to the folder."""
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{folder} is being written by another process; wait for it, or choose another "
                "--out (several processes share the work under torchrun)"
            ) from None
        yield
