"""The training loop: one clock, `seen`, the number of images consumed.

    step -> log -> keep averages -> save -> stop? -> due (sample | evaluate)?

The loop knows nothing of what is trained: that is a `Trainer`. What is due at a moment (evaluate,
sample, save) is a function of `seen`, so a run that was killed and resumed does the same things at
the same moments.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nanogen import dist
from nanogen.data.loader import batches
from nanogen.progress import Display
from nanogen.train import checkpoint
from nanogen.train.checkpoint import Progress
from nanogen.train.log import Log
from nanogen.train.signals import Check, StopFlag, Stopped
from nanogen.train.trainer import Trainable, Trainer


@dataclass
class Hooks:
    """What happens at due moments, on every process, with the averaged weights in place.

    A moment may come again after a resume. An evaluation calls its second argument between batches:
    it ends a run that was asked to stop.
    """

    sample: Callable[[int], None] = field(default=lambda seen: None)
    evaluate: Callable[[int, Check], None] = field(default=lambda seen, check: None)


def train(trainer: Trainer, folder: Path, hooks: Hooks, max_minutes: float | None = None) -> bool:
    """Train a run, from the newest checkpoint in `folder` if there is one; True if it ended.

    A signal or the time limit ends it earlier, with a checkpoint for the same command to continue.
    """
    run, found = trainer.settings, checkpoint.latest(folder / "checkpoints")
    if found is not None:
        trainer.progress = checkpoint.load(found, trainer.restore)
    progress, lead = trainer.progress, dist.rank() == 0
    display = Display(run.name, run.train.images, quiet=not lead, seen=progress.seen)
    with StopFlag(max_minutes) as stop:
        try:
            check = functools.partial(stop.check, trainer.device)
            if found is not None:
                # A kill may have fallen between the checkpoint and what was due after it.
                if lead:
                    checkpoint.prune(found, run.train.keep)
                _observe(trainer, hooks, check)
            _steps(trainer, folder, hooks, display, check)
        except Stopped as reason:
            _save(folder, trainer)
            display.close()
            if lead:
                at = f"{progress.seen:,} images"
                print(f"{run.name}: stopped by {reason} at {at}; the same command continues")
            return False
        finally:
            display.close()
    return True


def _steps(trainer: Trainer, folder: Path, hooks: Hooks, display: Display, check: Check) -> None:
    """All steps from the present moment to the end, with what is due after each."""
    run, progress = trainer.settings, trainer.progress
    log = Log(folder / "log.jsonl", progress.seen) if dist.rank() == 0 else None
    micro = run.machine.micro_batch or run.train.batch
    stream = batches(trainer.task, progress.seen, run.train.batch, micro, run.machine.workers)
    started, first = time.monotonic(), progress.seen
    with contextlib.closing(stream):
        while progress.seen < run.train.images:
            values = trainer.step(stream)
            _gather(progress, values)
            if due(run, progress.seen, run.train.log_every):
                line = _line(progress, time.monotonic() - started, first)
                if log is not None:
                    log.write(line)
            display.show(progress.seen, f"loss {values['loss']:.4f}")
            trainer.keep(folder)
            if due(run, progress.seen, run.train.save_every):
                _save(folder, trainer)
            check()
            _observe(trainer, hooks, check)


def _observe(trainer: Trainer, hooks: Hooks, check: Check) -> None:
    """Draw and measure the averaged weights where that is due; every run is measured at its end."""
    run, seen = trainer.settings, trainer.progress.seen
    sample = run.train.sample_every and due(run, seen, run.train.sample_every)
    evaluate = due(run, seen, run.evaluation.every or run.train.images)
    if sample or evaluate:
        with trainer.averaged():
            if sample:
                hooks.sample(seen)
            if evaluate:
                hooks.evaluate(seen, check)


def _gather(progress: Progress, values: dict[str, float]) -> None:
    """Add a step to the log window, unless it was not finite and would only poison the means."""
    if not all(map(math.isfinite, values.values())):
        return
    window, counts = progress.window, progress.window_counts
    for name, value in values.items():
        # A value may come in only in the middle of a window: its mean is over its own steps.
        before = progress.window_steps if name in window else 0
        counts[name] = counts.get(name, before) + 1
        window[name] = window.get(name, 0.0) + value
    progress.window_steps += 1


def _line(progress: Progress, seconds: float, first: int) -> dict[str, float | int]:
    """The means since the last line; empties the window."""
    means = {name: total / progress.window_counts[name] for name, total in progress.window.items()}
    progress.window, progress.window_counts, progress.window_steps = {}, {}, 0
    speed = (progress.seen - first) / max(seconds, 1e-9)
    return {
        "seen": progress.seen,
        "step": progress.steps,
        **means,
        "skipped": progress.skipped,
        "seconds": round(seconds, 3),
        "images_per_second": round(speed, 2),
    }


def due(run: Trainable, seen: int, every: int) -> bool:
    """Whether the step that ended at `seen` passed a multiple of `every`, or was the last."""
    return seen >= run.train.images or seen // every > (seen - run.train.batch) // every


def _save(folder: Path, trainer: Trainer) -> None:
    if dist.rank() == 0:
        checkpoint.save(
            folder / "checkpoints",
            trainer.progress,
            trainer.groups(),
            trainer.settings.train.keep,
        )
    dist.barrier()
