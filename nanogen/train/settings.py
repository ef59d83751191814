"""What every kind of training has: how long, how many at once, how averaged; and where it runs."""

from __future__ import annotations

from typing import Literal, TypeVar

import chz

from nanogen.errors import ConfigError
from nanogen.rng import SEEDS
from nanogen.train.power_ema import WIDEST


@chz.chz
class Training:
    """How long, how many at once, how averaged. All lengths are in images."""

    images: int = chz.field(default=102_400_000, doc="images to train on")
    batch: int = chz.field(default=1024, doc="images of one optimiser step, over all processes")
    clip: float = chz.field(default=1.0, doc="largest gradient norm; inf: no limit")
    ema: float = chz.field(default=0.9995, doc="decay of the averaged weights at each step")
    ema_warmup: bool = chz.field(default=False, doc="decay at most (1 + steps) / (10 + steps)")
    precision: Literal["fp32", "bf16"] = chz.field(
        default="fp32", doc="bf16: autocast of the loss; weights stay fp32"
    )
    log_every: int = 102_400
    save_every: int = 5_120_000
    keep: int = chz.field(default=2, doc="newest checkpoints to keep")
    sample_every: int = chz.field(default=5_120_000, doc="0: never")

    @chz.validate
    def _lengths(self) -> None:
        for name in ("images", "batch", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"train.ema={self.ema}: must lie in [0, 1)")
        if self.clip <= 0:
            raise ConfigError(f"train.clip={self.clip}: must be above 0")
        if self.sample_every < 0:
            raise ConfigError(f"train.sample_every={self.sample_every}: must not be negative")
        if self.images < self.batch:
            raise ConfigError(
                f"train.images={self.images} is less than one step of train.batch={self.batch}; "
                "raise one or lower the other"
            )
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"train.precision={self.precision!r}: choose fp32 or bf16")


@chz.chz
class ConditionalTraining(Training):
    """With a condition, which is left out at times."""

    condition_dropout: float = chz.field(default=0.1, doc="share of samples without condition")

    @chz.validate
    def _share(self) -> None:
        if not 0 <= self.condition_dropout < 1:
            raise ConfigError(
                f"train.condition_dropout={self.condition_dropout}: must lie in [0, 1)"
            )


@chz.chz
class AveragedTraining(ConditionalTraining):
    """With averages whose length is chosen after training (EDM2, arXiv 2312.02696)."""

    posthoc: tuple[float, ...] = chz.field(
        default=(), doc="relative widths of such averages, such as 0.05,0.10; empty: none are kept"
    )
    posthoc_every: int | None = chz.field(
        default=None, doc="images between snapshots of them; None: a sixteenth of train.images"
    )

    @chz.validate
    def _widths(self) -> None:
        widths, every = self.posthoc, self.posthoc_every
        labels = {f"{width:g}" for width in widths}
        if not all(0 < width < WIDEST for width in widths) or len(labels) < len(widths):
            raise ConfigError(
                f"train.posthoc={','.join(map(str, widths))}: give different widths between 0 and "
                f"{WIDEST:.4f}"
            )
        if every is not None and every < 1:
            raise ConfigError(f"train.posthoc_every={every}: must be at least 1, or None")
        if every is not None and not widths:
            raise ConfigError(
                f"train.posthoc_every={every} has no effect without train.posthoc; set that to "
                "0.05,0.10 or leave this out"
            )

    @property
    def snapshot_every(self) -> int:
        """Images between snapshots of the averages of `posthoc`."""
        return self.posthoc_every or max(1, self.images // 16)


@chz.chz
class Machine:
    """Where and how fast. Nothing here is part of what a run is.

    Readers change no bit of a result; micro-batches and processes only the rounding of its sums.
    """

    device: str = chz.field(default="auto", doc="cpu, cuda, or auto: cuda where there is one")
    threads: int = chz.field(default=1, doc="CPU threads of a process")
    micro_batch: int | None = chz.field(
        default=None, doc="most images at once on a process; None: no limit"
    )
    workers: int = chz.field(default=0, doc="processes that read data ahead")
    compile: bool = chz.field(default=False, doc="compile the forward pass of the backbone")
    recompute: bool = chz.field(
        default=False, doc="compute activations again in the backward pass: slower, less memory"
    )

    @chz.validate
    def _counts(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ConfigError(f"machine.micro_batch={self.micro_batch}: must be at least 1")
        if not 1 <= self.threads <= 1024 or self.workers < 0:
            raise ConfigError(
                "machine.threads must lie in [1, 1024] and machine.workers be at least 0"
            )


T = TypeVar("T", bound=Training)


def without_habits(train: T) -> T:
    """The same training; what is written down when is back at its default."""
    habits = ("log_every", "save_every", "keep", "sample_every", "posthoc_every")
    default = type(train)()
    return chz.replace(
        train, **{name: getattr(default, name) for name in habits if hasattr(default, name)}
    )


def check_name_and_seed(name: str, seed: int) -> None:
    """ConfigError for a name that is no path below runs/, or a seed that is no number of 63 bits.

    A name must not lead out of there.
    """
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ConfigError(f"name={name!r}: write words, with / between them")
    if not 0 <= seed < SEEDS:
        raise ConfigError(f"seed={seed}: must lie in [0, 2^63)")
