"""Batches of a task at stream positions, read ahead by worker processes where that helps."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from typing import TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset

from nanogen import dist
from nanogen.errors import ConfigError, UserError
from nanogen.tasks.base import Task
from nanogen.train.signals import SIGNALS
from nanogen.types import Batch

T = TypeVar("T")
ENDLESS = 2**62


def batches(
    task: Task, seen: int, batch: int, micro: int, workers: int
) -> Generator[Batch, None, None]:
    """The endless micro-batches of this process from position `seen` on.

    A step of `batch` images is cut into one run of positions for each process, and that into
    micro-batches of at most `micro` images. Which images a step holds depends on none of these.
    Close it in the end (`contextlib.closing`), where it has workers.
    """
    return read_ahead(_Plan(task, seen, batch, micro), ENDLESS, workers)


def read_ahead(
    pieces: Dataset[T | UserError], count: int, workers: int
) -> Generator[T, None, None]:
    """Pieces 0 to `count` - 1 in their order, read by `workers` processes, or here with none.

    A piece that is a UserError is raised. Close it in the end (`contextlib.closing`), where it has
    workers.
    """
    found: Iterator[T | UserError] = map(pieces.__getitem__, range(count))
    if workers:
        loader = DataLoader(
            pieces,
            batch_size=None,
            sampler=range(count),
            num_workers=workers,
            prefetch_factor=4,
            worker_init_fn=_deaf,
        )
        found = iter(loader)
    try:
        for one in found:
            if isinstance(one, UserError):
                raise one
            yield one
    finally:
        # Workers must be told to end while their queues are whole: when garbage is collected it is
        # too late, and they wait for ever.
        del found


def micro_batches(batch: int, micro: int) -> list[tuple[int, int]]:
    """(offset, size) of the micro-batches of this process within a step."""
    first, last = batch * dist.rank() // dist.world(), batch * (dist.rank() + 1) // dist.world()
    return [(start, min(micro, last - start)) for start in range(first, last, micro)]


def check_uncut(coupled: int, batch: int, micro: int | None, processes: int = 1) -> None:
    """ConfigError where groups of `coupled` samples would be cut, by the end of a step, by one of
    its `processes` or by micro-batches of at most `micro` images.
    """
    if coupled == 1:
        return
    fix = f"set it to a multiple of {coupled}"
    if batch % coupled:
        cause = f"train.batch={batch}"
    elif batch % (processes * coupled):
        cause, fix = f"{processes} processes", f"start a divisor of {batch // coupled} of them"
    elif micro is not None and micro < batch // processes and micro % coupled:
        cause = f"machine.micro_batch={micro}"
    else:
        return
    raise ConfigError(
        f"{cause}: would cut the groups of {coupled} images that this objective compares with each "
        f"other; {fix}"
    )


def _deaf(worker: int) -> None:
    """Signals to a whole group of processes, from a terminal or a scheduler, are for the trainer.

    It needs its workers until it has saved, and they end with it.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _Plan(Dataset[Batch | UserError]):
    """Micro-batch number i of this process, counted from position `seen`."""

    def __init__(self, task: Task, seen: int, batch: int, micro: int) -> None:
        self.task, self.seen, self.batch = task, seen, batch
        self.pieces = micro_batches(batch, micro)

    def __getitem__(self, index: int) -> Batch | UserError:
        step, piece = divmod(index, len(self.pieces))
        offset, size = self.pieces[piece]
        start = self.seen + step * self.batch + offset
        try:
            return self.task.batch(np.arange(start, start + size, dtype=np.int64))
        except UserError as error:
            # Raised in a worker, its one line would arrive inside a traceback.
            return error
