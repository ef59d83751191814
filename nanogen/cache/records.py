"""Reading records: shards mapped into memory, so that a record costs its own bytes and no more.

    records = Records(folder, manifest)         # every file is there, in its size
    records.verify()                            # and in its bits
    records.rows(numbers)                       # uint8 [B, bytes of a record]

Hashes are checked once, when a cache is opened, and not when a shard is first touched: shuffled
training touches every shard in its first steps, in each reading process anew. Reading a cache once
also leaves it in the memory of the system, where training finds it.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from nanogen import dist
from nanogen.cache.manifest import File, Manifest, shown_bytes
from nanogen.errors import DataError
from nanogen.fingerprint import digest_of_file

RECORDS = ".raw"
"""what the files with records end with"""
MOST_OPEN = 256
"""shards mapped at once; each holds a file handle, of which a process has about a thousand"""
WORTH_A_LINE = 10**9
"""bytes whose hashes take seconds"""


class Records:
    """The records of a complete cache, by number. Can be sent to other processes."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """DataError for a file that is missing or of another size than the manifest says."""
        self.folder, self.manifest = folder, manifest
        size = manifest.plan.record_bytes
        counts = [shard.records for shard in manifest.shards]
        self._starts = np.cumsum([0, *counts])
        self._names = [_records_file(shard.files).name for shard in manifest.shards]
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        for shard in manifest.shards:
            for file in shard.files:
                _check_size(folder / file.name, file.bytes)
            if _records_file(shard.files).bytes != shard.records * size:
                name = folder / _records_file(shard.files).name
                raise DataError(f"{name} does not hold {shard.records} records; {_again()}")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, object]:
        # A mapped file would be copied into the message.
        return self.__dict__ | {"_maps": OrderedDict()}

    def verify(self) -> None:
        """DataError, on every process, where a file has other bits than were written.

        The processes of a machine share the work, as they share its disk.
        """
        files = [file for shard in self.manifest.shards for file in shard.files]
        if self.manifest.bytes >= WORTH_A_LINE and dist.rank() == 0:
            print(f"checking {shown_bytes(self.manifest.bytes)} in {self.folder} ...", flush=True)
        problem = None
        for file in files[dist.local_rank() % dist.local_world() :: dist.local_world()]:
            if digest_of_file(self.folder / file.name) != file.sha256:
                problem = self.folder / file.name
                break
        if dist.any_flag(problem is not None, torch.device("cpu")):
            where = problem or f"a file in {self.folder}"
            raise DataError(f"{where} is damaged: it is not what was written; {_again()}")

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """uint8 [B, bytes of a record], a copy; `numbers` int64 [B], 0 <= number < len(self)."""
        found = np.empty((len(numbers), self.manifest.plan.record_bytes), np.uint8)
        shards = np.searchsorted(self._starts, numbers, "right") - 1
        for place, (number, shard) in enumerate(zip(numbers, shards, strict=True)):
            found[place] = self._map(int(shard))[number - self._starts[shard]]
        return found

    def span(self, start: int, count: int) -> np.ndarray:
        """uint8 [count, bytes of a record], a copy: records of one shard that follow each other;
        `count` >= 1.
        """
        shard = int(np.searchsorted(self._starts, start, "right")) - 1
        first = start - int(self._starts[shard])
        return np.array(self._map(shard)[first : first + count])

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            while len(self._maps) >= MOST_OPEN:
                self._maps.popitem(last=False)
            shape = (self.manifest.shards[shard].records, self.manifest.plan.record_bytes)
            path = self.folder / self._names[shard]
            self._maps[shard] = np.memmap(path, np.uint8, "r", shape=shape)
        self._maps.move_to_end(shard)
        return self._maps[shard]


def _records_file(files: tuple[File, ...]) -> File:
    return next(file for file in files if file.name.endswith(RECORDS))


def _check_size(path: Path, expected: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror}; {_again()}") from problem
    if found != expected:
        raise DataError(f"{path} has {found:,} bytes, not the {expected:,} written; {_again()}")


def _again() -> str:
    return "delete that file, and the nanogen cache command that wrote it writes it again"
