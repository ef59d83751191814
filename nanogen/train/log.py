"""What a run says while it trains: `log.jsonl`, and a line or a progress bar with the time that is
left.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nanogen.files import write_text

CLOCKED = ("seconds", "images_per_second")
"""fields of a log line that say how fast it went; all others are a function of the run"""


class Log:
    """Appends one JSON object a line. After a resume, lines beyond the checkpoint are dropped and
    written again.
    """

    def __init__(self, file: Path, seen: int) -> None:
        self.file = file
        kept = [line for line in read(file) if line["seen"] <= seen]
        write_text(file, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, line: Mapping[str, float | int]) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def read(file: Path) -> list[dict[str, float]]:
    """The lines of a log; a last line that was cut off by a kill is left out."""
    lines = []
    if file.exists():
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
    return lines


class Display:
    """A progress bar on a terminal, plain lines elsewhere; silent on all but the first process."""

    def __init__(self, name: str, total: int, seen: int, quiet: bool) -> None:
        self.name, self.total, self.quiet = name, total, quiet
        self.first, self.start, self.printed = seen, time.monotonic(), 0.0
        self.bar: Progress | None = None
        if not quiet and sys.stderr.isatty():
            self.bar = Progress(
                TextColumn(name),
                BarColumn(),
                TextColumn("{task.completed:,}/{task.total:,} images  {task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(name, total=total, completed=seen, note="")
            self.bar.start()

    def show(self, seen: int, loss: float | None = None) -> None:
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.update(self.task, completed=seen)
            if loss is not None:
                self.bar.update(self.task, note=f"loss {loss:.4f}")
            return
        elapsed = time.monotonic() - self.start
        if loss is None or elapsed - self.printed < 10:
            return
        self.printed = elapsed
        speed = (seen - self.first) / max(elapsed, 1e-9)
        left = (self.total - seen) / max(speed, 1e-9)
        print(
            f"{self.name}: {seen:,}/{self.total:,} images, loss {loss:.4f}, {speed:.0f} images/s, "
            f"{_clock(left)} left",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
