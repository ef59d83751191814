"""Blocks of samples: the unit of work, of continuing after a kill, and of summing.

The samples of an evaluation are cut into at most `MOST` blocks, by their number and the size of a
batch alone. What metrics add up within a block is folded into the total in the order of the blocks,
whoever measured them and when. So a score has the same bits on 1, 2 or 3 processes, and continued
after a kill or not; and what is held or kept on disk does not grow with the number of samples.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from nanogen import dist
from nanogen.errors import UserError
from nanogen.files import remove_parts, whole_file
from nanogen.metrics.base import Metric

log = logging.getLogger(__name__)

MOST = 64
SUFFIX = ".block.safetensors"

T = TypeVar("T")


@dataclass(frozen=True)
class Block:
    """Samples start .. stop of an evaluation."""

    number: int
    start: int
    stop: int


def blocks(samples: int, batch: int) -> list[Block]:
    """The blocks of an evaluation: whole batches, but for the last one."""
    size = batch * -(-samples // (batch * MOST))
    starts = range(0, samples, size)
    return [Block(i, start, min(start + size, samples)) for i, start in enumerate(starts)]


@dataclass
class Tallies:
    """What metrics know of some samples: sums and rows, by `metric/name`; and which samples."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, list[Tensor]] = field(default_factory=dict)
    """per-sample tensors, parts in the order of the samples"""

    @classmethod
    def taken(cls, metrics: Sequence[Metric], indices: Tensor, skipped: int) -> Tallies:
        """What metrics have added since they were last emptied; empties them."""
        found = cls({"skipped": torch.tensor(skipped)}, {"indices": [indices]})
        for number, metric in enumerate(metrics):
            found.sums |= {f"{number}/{name}": value for name, value in metric.sums.items()}
            found.rows |= {f"{number}/{name}": parts for name, parts in metric.rows.items()}
            metric.sums, metric.rows = {}, {}
        return found

    def add(self, other: Tallies) -> None:
        """Add the tallies of the samples that come next."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums[name].add_(value) if name in self.sums else value.clone()
        for name, parts in other.rows.items():
            self.rows.setdefault(name, []).extend(parts)

    @property
    def skipped(self) -> int:
        return int(self.sums["skipped"])

    @property
    def indices(self) -> Tensor:
        return torch.cat(self.rows["indices"])

    def sums_of(self, number: int) -> dict[str, Tensor]:
        """The sums of the metric `number`."""
        return _of(self.sums, number)

    def rows_of(self, number: int) -> dict[str, Tensor]:
        """Its rows, ordered by sample index."""
        order = self.indices.argsort(stable=True)
        return {
            name: torch.cat(parts)[order] for name, parts in sorted(_of(self.rows, number).items())
        }


class Share:
    """The blocks that this process measures, and the total over those of all processes."""

    def __init__(self, count: int, kept: Kept) -> None:
        world, rank = dist.world(), dist.rank()
        self.numbers = range(count * rank // world, count * (rank + 1) // world)
        self.longest = -(-count // world)
        """blocks of the process that has most"""
        self.kept = kept
        self._first = Tallies()
        self._held: dict[int, Tallies] = {}

    def add(self, number: int, tallies: Tallies) -> None:
        """The next of the own blocks. Nothing comes before those of the first process: it adds them
        up at once. The others hold theirs, unless they are kept on disk.
        """
        if dist.rank() == 0:
            self._first.add(tallies)
        elif self.kept.folder is None:
            self._held[number] = tallies

    def total(self) -> Tallies:
        """Over all blocks, on every process.

        The sums walk from process to process, so that blocks are added in their order; rows are
        sent by who has them.
        """
        total = Tallies()
        for rank in range(dist.world()):
            mine = self._from(total.sums) if rank == dist.rank() else Tallies()
            sent = {f"sums/{name}": value for name, value in mine.sums.items()}
            sent |= {f"rows/{name}": torch.cat(parts) for name, parts in mine.rows.items()}
            total.sums = {}
            for name, value in dist.broadcast_named(sent, rank).items():
                kind, _, rest = name.partition("/")
                if kind == "sums":
                    total.sums[rest] = value
                else:
                    total.rows.setdefault(rest, []).append(value)
        return total

    def _from(self, sums: dict[str, Tensor]) -> Tallies:
        """The own rows, and the own sums on top of those of the processes before."""
        if dist.rank() == 0:
            return self._first
        found = Tallies(sums)
        for number in self.numbers:
            found.add(self._held[number] if number in self._held else self.kept.read(number))
        return found


@dataclass(frozen=True)
class Kept:
    """A folder in which measured blocks are kept until their scores are written; None keeps none.

    Its name must say everything that decides the tallies.
    """

    folder: Path | None

    def ready(self) -> None:
        """Make the folder, and remove what an interrupted write left in it."""
        if self.folder is not None and dist.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_parts(self.folder)
        dist.barrier()

    def has(self, number: int) -> bool:
        """Whether a block is kept; one that is broken is removed, to be measured again."""
        if self.folder is None or not self._file(number).exists():
            return False
        try:
            self.read(number)
        except (OSError, SafetensorError) as problem:
            log.warning("%s is broken (%s): measured again", self._file(number), problem)
            self._file(number).unlink(missing_ok=True)
            return False
        return True

    def write(self, number: int, tallies: Tallies) -> bool:
        """Keep a block; says whether it is kept, so that nobody needs to hold it."""
        if self.folder is None:
            return False
        tensors = {f"sums/{name}": value for name, value in tallies.sums.items()}
        tensors |= {f"rows/{name}": torch.cat(parts) for name, parts in tallies.rows.items()}
        try:
            with whole_file(self._file(number)) as part:
                safetensors.torch.save_file({n: t.contiguous() for n, t in tensors.items()}, part)
        except (OSError, SafetensorError) as problem:
            raise UserError(
                f"cannot keep what was measured in {self.folder}: {problem}; correct that and give "
                "the same command again, which goes on from here, or choose another --out"
            ) from problem
        return True

    def read(self, number: int) -> Tallies:
        assert self.folder is not None
        found = Tallies()
        for name, value in safetensors.torch.load_file(self._file(number)).items():
            kind, _, rest = name.partition("/")
            if kind == "sums":
                found.sums[rest] = value
            else:
                found.rows[rest] = [value]
        return found

    def clear(self) -> None:
        """Remove what is kept, once nobody needs it."""
        if self.folder is not None and dist.rank() == 0 and self.folder.is_dir():
            for file in self.folder.glob("*.safetensors"):
                file.unlink()
            self.folder.rmdir()
        dist.barrier()

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:03d}{SUFFIX}"


def _of(named: Mapping[str, T], number: int) -> dict[str, T]:
    prefix = f"{number}/"
    return {n.removeprefix(prefix): v for n, v in named.items() if n.startswith(prefix)}
