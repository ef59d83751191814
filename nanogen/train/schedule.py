"""The learning rate as a function of the images seen.

    0 --warmup--> 1 ------ decay_start --linear or cosine--> final ------ decay_end

Two published schedules of the same runs differ, and are kept apart by name (see
`nanogen.recipes`): `released`, what the released configs do (no warm-up, almost no decay within
the run), and `paper`, what the text says.
"""

from __future__ import annotations

import math
from typing import Literal

import chz

from nanogen.errors import ConfigError


@chz.chz
class Schedule:
    """Factor on the optimiser's learning rate. Lengths are in images."""

    warmup: int = chz.field(default=0, doc="images over which the rate rises from 0")
    decay_start: int | None = chz.field(default=None, doc="None: right after the warm-up")
    decay_end: int | None = chz.field(default=None, doc="None: at the end of the run")
    shape: Literal["linear", "cosine"] = "linear"
    final: float = chz.field(default=1.0, doc="factor from decay_end on; 1 means no decay")

    def check(self, images: int) -> None:
        """Refuse a schedule that contradicts itself or a run of `images` images."""
        start, end = self._decay(images)
        if self.shape not in ("linear", "cosine"):
            raise ConfigError(f"schedule.shape={self.shape!r}: choose linear or cosine")
        if not 0 <= self.final <= 1:
            raise ConfigError(f"schedule.final={self.final}: must lie in [0, 1]")
        if not 0 <= self.warmup <= start:
            raise ConfigError(
                f"schedule.warmup={self.warmup} must lie between 0 and schedule.decay_start={start}"
            )
        decays = (self.decay_start, self.decay_end, self.shape) != (None, None, "linear")
        if self.final == 1 and decays:
            raise ConfigError(
                "schedule.decay_start, schedule.decay_end and schedule.shape have no effect with "
                "schedule.final=1; lower schedule.final, or leave them out"
            )
        if end <= start and self.final != 1:
            raise ConfigError(self._too_short(start, end))

    def factor(self, seen: int, batch: int, images: int) -> float:
        """Factor of the step that follows `seen` images, in a run of `images` images."""
        if seen < self.warmup:
            return min(1.0, (seen + batch) / self.warmup)
        start, end = self._decay(images)
        if seen < start or self.final == 1:
            return 1.0
        if seen >= end:
            return self.final
        q = (seen - start) / (end - start)
        fall = q if self.shape == "linear" else (1 - math.cos(math.pi * q)) / 2
        return 1 - (1 - self.final) * fall

    def _too_short(self, start: int, end: int) -> str:
        """Names the fields that say when the decay begins and ends, whichever those are."""
        first = "warmup" if self.decay_start is None else "decay_start"
        late = f"train.images={end}" if self.decay_end is None else f"schedule.decay_end={end}"
        return (
            f"{late} must come after schedule.{first}={start}, where the rate begins "
            f"to fall; raise {late.partition('=')[0]} or lower schedule.{first}"
        )

    def _decay(self, images: int) -> tuple[int, int]:
        start = self.warmup if self.decay_start is None else self.decay_start
        return start, images if self.decay_end is None else self.decay_end
