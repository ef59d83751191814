"""Being asked to stop: a signal or a time limit sets a flag, and the loop looks at it between
steps.

The handler only sets a flag. The loop checks it between steps, an evaluation between batches.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType

import torch

from nanogen import dist

Check = Callable[[], None]
"""raises Stopped on every process once any was asked to stop; called equally often on each"""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(Exception):
    """The run was asked to stop, at a point where nothing is lost; the message says by what."""


class StopFlag:
    """True once a signal has arrived or the time is up. A context manager: it restores the old
    handlers.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.reason = ""

    def __enter__(self) -> StopFlag:
        self._old = {number: signal.signal(number, self._arrived) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        if not self.reason and self.deadline is not None and time.monotonic() > self.deadline:
            self.reason = "the time limit"
        return bool(self.reason)

    def check(self, device: torch.device) -> None:
        """Raise Stopped on every process if any was asked to stop."""
        if dist.any_flag(bool(self), device):
            raise Stopped(self.reason or "another process")

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        # The second interrupt ends the process at once.
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
