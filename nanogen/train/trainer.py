"""What the training loop asks of a thing that can be trained.

    class Mine(Trainer):
        def update(self, stream):            # one optimiser step on the next batch
            ...
            if self.accepts(values):         # finite on every process?
                optimiser.step()
            return values

The loop does the rest: the clock, what is due when, the log, signals, checkpoints and resuming.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from nanogen import dist
from nanogen.errors import ConfigError, RunFailed
from nanogen.tasks.base import Task
from nanogen.train.checkpoint import Progress
from nanogen.train.settings import Machine, Training
from nanogen.types import Batch

BAD_STEPS = 10
"""so many steps in a row with a gradient that is not finite end the run"""


class Diverged(RunFailed):
    """Loss or gradient stayed infinite or NaN."""


class Measured(Protocol):
    """The part of a run that says when it is evaluated."""

    @property
    def every(self) -> int: ...


class Trainable(Protocol):
    """The fields of a run that the loop reads."""

    @property
    def name(self) -> str: ...
    @property
    def train(self) -> Training: ...
    @property
    def machine(self) -> Machine: ...
    @property
    def evaluation(self) -> Measured: ...


class Trainer(ABC):
    """Holds the parts that change during a run, and takes one step at a time."""

    def __init__(self, run: Trainable, task: Task, device: torch.device) -> None:
        """ConfigError where a batch has fewer images than there are processes."""
        if run.train.batch < dist.world():
            raise ConfigError(
                f"train.batch={run.train.batch} gives {dist.world()} processes less than an "
                "image each; raise it or start fewer"
            )
        self.settings, self.task, self.device = run, task, device
        self.progress = Progress()
        self.bad_in_a_row = 0

    @abstractmethod
    def update(self, stream: Iterator[Batch]) -> dict[str, float]:
        """One optimiser step on the micro-batches of a step, drawn from `stream`.

        Returns the mean of each loss over the whole batch, of which "loss" is shown, and what else
        is logged. Before an optimiser steps, `accepts` is asked; where it refuses, the weights stay
        as they were.
        """

    @abstractmethod
    def groups(self) -> Mapping[str, Mapping[str, Tensor]]:
        """All tensors that a step changes, by file of a checkpoint and name within it."""

    @abstractmethod
    def restore(self, read: Callable[[str], dict[str, Tensor]]) -> None:
        """Take back what `groups` gave; `read` returns a group by its name. RuntimeError, KeyError
        or ValueError where a name or shape does not fit.
        """

    @abstractmethod
    def averaged(self) -> AbstractContextManager[None]:
        """Within, networks are in eval mode and hold the averaged weights."""

    def keep(self, folder: Path) -> None:  # noqa: B027  (most trainers keep nothing)
        """Write into a run folder what is due at this moment besides checkpoints, on the first
        process. Called on every process after each step, and before a checkpoint that is due:
        what was due up to a checkpoint is there if the checkpoint is.
        """

    def step(self, stream: Iterator[Batch]) -> dict[str, float]:
        """`update`, and the clock moves on by a batch."""
        skipped = self.progress.skipped
        values = self.update(stream)
        if self.progress.skipped == skipped:
            self.bad_in_a_row = 0
        self.progress.seen += self.settings.train.batch
        self.progress.steps += 1
        return values

    def accepts(self, values: Mapping[str, float]) -> bool:
        """Whether all values are finite on every process; a collective call.

        A refusal is counted. Diverged after ten steps with a refusal in a row.
        """
        if not dist.any_flag(not all(map(math.isfinite, values.values())), self.device):
            return True
        self.progress.skipped += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= BAD_STEPS:
            bad = ", ".join(
                f"{name}={value}" for name, value in values.items() if not math.isfinite(value)
            )
            raise Diverged(
                f"{bad} for {BAD_STEPS} steps up to image {self.progress.seen}; "
                "lower optimiser.lr or train.clip, "
                "or resume from an earlier checkpoint"
            )
        return False
