"""The training loop: one clock, `seen`, the number of images consumed.

    batch -> losses -> backward -> finite on every process? -> clip -> step -> average -> log ->
    due?

The loop knows no tokenizer, backbone, objective or metric by name. What is due at a moment
(evaluate, sample, save) is a function of `seen`, so a run that was killed and resumed does the
same things at the same moments.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from nanogen import dist
from nanogen.data.loader import batches, micro_batches
from nanogen.errors import ConfigError, RunFailed
from nanogen.model import to_device
from nanogen.run import Parts, Run
from nanogen.train import checkpoint
from nanogen.train.checkpoint import Progress
from nanogen.train.ema import Ema
from nanogen.train.log import Display, Log
from nanogen.train.signals import Check, StopFlag, Stopped
from nanogen.types import Batch

BAD_STEPS = 10
"""so many steps in a row with a gradient that is not finite end the run"""


class Diverged(RunFailed):
    """Loss or gradient stayed infinite or NaN."""


@dataclass
class Hooks:
    """What happens at due moments, on every process, with the averaged weights in place.

    A moment may come again after a resume. An evaluation calls its second argument between batches:
    it ends a run that was asked to stop.
    """

    sample: Callable[[int], None] = field(default=lambda seen: None)
    evaluate: Callable[[int, Check], None] = field(default=lambda seen, check: None)


class Trainer:
    """Holds the parts that change during a run, and takes one step at a time."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.run = parts, parts.run
        model = parts.model
        if self.run.train.batch < dist.world():
            raise ConfigError(
                f"train.batch={self.run.train.batch} gives {dist.world()} processes less than an "
                "image each; raise it or start fewer"
            )
        if dist.world() > 1:
            devices = [parts.device.index or 0] if parts.device.type == "cuda" else None
            self.network: nn.Module = nn.parallel.DistributedDataParallel(
                model, device_ids=devices, gradient_as_bucket_view=True
            )
        else:
            self.network = model
        if self.run.machine.compile:
            self.network = cast(nn.Module, torch.compile(self.network))
        # Built from the wrapped model: weights are the same on every process from here on.
        self.ema = Ema(model.trained(), self.run.train.ema, self.run.train.ema_warmup)
        self.optimiser = self.run.optimiser.build(model.trained())
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.progress = Progress()
        self.bad_in_a_row = 0

    def step(self, stream: Iterator[Batch]) -> dict[str, float]:
        """One optimiser step; returns the mean of each loss over the whole batch, and the gradient
        norm.
        """
        train, progress = self.run.train, self.progress
        factor = self.run.schedule.factor(progress.seen, train.batch, train.images)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.parts.model.train()
        losses = self._accumulate(stream)
        norm = nn.utils.clip_grad_norm_(self.parts.model.trained().values(), train.clip)
        values = {name: float(value) for name, value in dist.sum_across(losses).items()} | {
            "gradient_norm": float(norm)
        }
        if dist.any_flag(not all(map(_finite, values.values())), self.parts.device):
            self._skip(values)
        else:
            self.optimiser.step()
            self.ema.update(self.progress.steps)
            self.bad_in_a_row = 0
        self.optimiser.zero_grad(set_to_none=True)
        progress.seen += train.batch
        progress.steps += 1
        return values | {"learning_rate_factor": factor}

    def _accumulate(self, stream: Iterator[Batch]) -> dict[str, Tensor]:
        """Gradients of the mean loss over the batch; returns this process's share of each mean
        loss.
        """
        train = self.run.train
        pieces = micro_batches(train.batch, self.run.machine.micro_batch or train.batch)
        sums: dict[str, Tensor] = {}
        for number, _ in enumerate(pieces):
            last = number == len(pieces) - 1
            with contextlib.nullcontext() if last else self._unsynchronised():
                parts, weights = self._losses(next(stream))
                share = {name: part.sum() / train.batch for name, part in parts.items()}
                total = torch.stack([weights[name] * value for name, value in share.items()]).sum()
                share["loss"] = total
                # DDP averages over processes; the shares of a batch must be summed.
                (dist.world() * total).backward()
            for name, value in share.items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        return sums

    def _losses(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        parts = self.parts
        batch = to_device(batch, parts.device)
        with torch.no_grad():
            latents = parts.latents(batch)
            learns = parts.model.learned_conditioner is not None
            condition = None if learns else parts.conditioner.encode(batch).to(parts.device)
        with torch.autocast(
            parts.device.type, torch.bfloat16, enabled=self.run.train.precision == "bf16"
        ):
            return self.network(batch, latents, condition)

    def _unsynchronised(self) -> contextlib.AbstractContextManager[None]:
        """Micro-batches before the last keep their gradients: one reduction a step."""
        wait = getattr(self.network, "no_sync", contextlib.nullcontext)
        return wait()

    def _skip(self, values: dict[str, float]) -> None:
        self.progress.skipped += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= BAD_STEPS:
            bad = ", ".join(
                f"{name}={value}" for name, value in values.items() if not _finite(value)
            )
            raise Diverged(
                f"{bad} for {BAD_STEPS} steps up to image {self.progress.seen}; "
                "lower optimiser.lr or train.clip, "
                "or resume from an earlier checkpoint"
            )


def train(parts: Parts, folder: Path, hooks: Hooks, max_minutes: float | None = None) -> bool:
    """Train a run, from the newest checkpoint in `folder` if there is one; True if it ended.

    A signal or the time limit ends it earlier, with a checkpoint for the same command to continue.
    """
    trainer, found = Trainer(parts), checkpoint.latest(folder / "checkpoints")
    if found is not None:
        trainer.progress = checkpoint.load(found, parts.model, trainer.ema, trainer.optimiser)
    progress, lead = trainer.progress, dist.rank() == 0
    display = Display(parts.run.name, parts.run.train.images, progress.seen, quiet=not lead)
    with StopFlag(max_minutes) as stop:
        try:
            check = functools.partial(stop.check, parts.device)
            if found is not None:
                # A kill may have fallen between the checkpoint and what was due after it.
                if lead:
                    checkpoint.prune(found, parts.run.train.keep)
                _observe(trainer, hooks, check)
            _steps(trainer, folder, hooks, display, check)
        except Stopped as reason:
            _save(folder, trainer)
            display.close()
            if lead:
                at = f"{progress.seen:,} images"
                print(f"{parts.run.name}: stopped by {reason} at {at}; the same command continues")
            return False
        finally:
            display.close()
    return True


def _steps(trainer: Trainer, folder: Path, hooks: Hooks, display: Display, check: Check) -> None:
    """All steps from the present moment to the end, with what is due after each."""
    parts, run, progress = trainer.parts, trainer.run, trainer.progress
    log = Log(folder / "log.jsonl", progress.seen) if dist.rank() == 0 else None
    micro = run.machine.micro_batch or run.train.batch
    stream = batches(parts.task, progress.seen, run.train.batch, micro, run.machine.workers)
    started, first = time.monotonic(), progress.seen
    with contextlib.closing(stream):
        while progress.seen < run.train.images:
            values = trainer.step(stream)
            _gather(progress, values)
            if _due(run, progress.seen, run.train.log_every):
                line = _line(progress, time.monotonic() - started, first)
                if log is not None:
                    log.write(line)
            display.show(progress.seen, values["loss"])
            if _due(run, progress.seen, run.train.save_every):
                _save(folder, trainer)
            check()
            _observe(trainer, hooks, check)


def _observe(trainer: Trainer, hooks: Hooks, check: Check) -> None:
    """Draw and measure the averaged weights where that is due; every run is measured at its end."""
    run, seen = trainer.run, trainer.progress.seen
    sample = run.train.sample_every and _due(run, seen, run.train.sample_every)
    evaluate = _due(run, seen, run.evaluation.every or run.train.images)
    if sample or evaluate:
        trainer.parts.model.eval()
        with trainer.ema.applied():
            if sample:
                hooks.sample(seen)
            if evaluate:
                hooks.evaluate(seen, check)


def _gather(progress: Progress, values: dict[str, float]) -> None:
    """Add a step to the log window, unless it was not finite and would only poison the means."""
    if not all(map(_finite, values.values())):
        return
    for name, value in values.items():
        progress.window[name] = progress.window.get(name, 0.0) + value
    progress.window_steps += 1


def _line(progress: Progress, seconds: float, first: int) -> dict[str, float | int]:
    """The means since the last line; empties the window."""
    means = {name: total / progress.window_steps for name, total in progress.window.items()}
    progress.window, progress.window_steps = {}, 0
    speed = (progress.seen - first) / max(seconds, 1e-9)
    return {
        "seen": progress.seen,
        "step": progress.steps,
        **means,
        "skipped": progress.skipped,
        "seconds": round(seconds, 3),
        "images_per_second": round(speed, 2),
    }


def _due(run: Run, seen: int, every: int) -> bool:
    """Whether the step that ended at `seen` passed a multiple of `every`, or was the last."""
    return seen >= run.train.images or seen // every > (seen - run.train.batch) // every


def _save(folder: Path, trainer: Trainer) -> None:
    if dist.rank() == 0:
        checkpoint.save(
            folder / "checkpoints",
            trainer.progress,
            trainer.parts.model,
            trainer.ema,
            trainer.optimiser,
            trainer.run.train.keep,
        )
    dist.barrier()


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
