"""What a long command says while it works, with the time that is left."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SPEAK = 10.0
"""seconds between lines where there is no terminal"""


class Display:
    """A progress bar on a terminal, plain lines elsewhere; silent on all but the first process."""

    def __init__(self, name: str, total: int, quiet: bool, seen: int = 0) -> None:
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

    def show(self, seen: int, note: str = "") -> None:
        """`seen` images are done, of which `note` says something."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.update(self.task, completed=seen)
            if note:
                self.bar.update(self.task, note=note)
            return
        elapsed = time.monotonic() - self.start
        if elapsed - self.printed < SPEAK:
            return
        self.printed = elapsed
        speed = (seen - self.first) / max(elapsed, 1e-9)
        left = (self.total - seen) / max(speed, 1e-9)
        print(
            f"{self.name}: {seen:,}/{self.total:,} images, {f'{note}, ' if note else ''}"
            f"{speed:.0f} images/s, {_clock(left)} left",
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
