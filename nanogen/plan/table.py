"""The table of `nanogen plan`: what each run needs, and whether a GPU has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nanogen.bench.table import Cell, Column, Table
from nanogen.errors import ConfigError, suggest
from nanogen.plan.cost import Cost, cost
from nanogen.run import Run

GIGA, HOUR = 1e9, 3600.0


@dataclass(frozen=True)
class Gpu:
    """By its data sheet."""

    tera_flops: float
    """dense, bf16 with float32 sums, 10^12 a second"""
    memory: float
    """10^9 bytes"""


GPUS = {
    "a100": Gpu(312, 80),
    "h100": Gpu(989, 80),
    "h200": Gpu(989, 141),
    "b200": Gpu(2250, 180),
    "l40s": Gpu(362, 48),
    "rtx4090": Gpu(165, 24),
}
RESERVED = 3.0
"""10^9 bytes for the runtime, frozen networks in half precision and what an allocator wastes"""


@dataclass(frozen=True)
class Hardware:
    """What a run is planned for."""

    gpus: int = 8
    gpu: str = "h100"
    utilisation: float = 0.35
    """share of the data sheet's speed that training reaches"""

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise ConfigError(f"--gpu {self.gpu!r}: {suggest(self.gpu, GPUS)}")
        if self.gpus < 1:
            raise ConfigError(f"--gpus {self.gpus}: must be at least 1")
        if not 0 < self.utilisation <= 1:
            raise ConfigError(f"--utilisation {self.utilisation}: must lie above 0, up to 1")

    def hours(self, flops: float) -> float:
        """Of so many FLOPs on all GPUs together."""
        speed = GPUS[self.gpu].tera_flops * 1e12 * self.utilisation * self.gpus
        return flops / speed / HOUR


@dataclass(frozen=True)
class Plan:
    """One run on some hardware."""

    run: Run
    cost: Cost
    hardware: Hardware

    @property
    def at_once(self) -> int:
        """Images that a process holds at once."""
        share = -(-self.run.train.batch // self.hardware.gpus)
        return min(share, self.run.machine.micro_batch or share)

    @property
    def per_image(self) -> float:
        """Bytes."""
        return self.cost.recomputed if self.run.machine.recompute else self.cost.saved

    @property
    def memory(self) -> float:
        """10^9 bytes of each GPU."""
        return RESERVED + (self.cost.state + self.at_once * self.per_image) / GIGA

    @property
    def most_at_once(self) -> int:
        """Images that fit."""
        free = (GPUS[self.hardware.gpu].memory - RESERVED) * GIGA - self.cost.state
        return max(0, int(free / self.per_image))

    @property
    def hours(self) -> float:
        return self.hardware.hours(self.run.train.images * self.cost.training)

    @property
    def checkpoint(self) -> float:
        """10^9 bytes of one checkpoint: everything but gradients."""
        return (self.cost.state - 4 * self.cost.trained) / GIGA


COLUMNS = (
    Column("preset"),
    Column("parameters"),
    Column("GFLOPs", digits=1),
    Column("EFLOPs", digits=1),
    Column("hours", digits=1),
    Column("at once"),
    Column("GB", digits=1),
    Column("at most"),
    Column("checkpoint", digits=1),
)


def table(runs: Sequence[Run], hardware: Hardware) -> Table:
    """One row a run."""
    plans = [Plan(run, cost(run), hardware) for run in runs]
    rows = tuple(_row(plan) for plan in plans)
    return Table("Plan", COLUMNS, rows, _notes(plans, hardware))


def _row(plan: Plan) -> tuple[Cell, ...]:
    whole = plan.run.train.images * plan.cost.training / 1e18
    values = (
        plan.run.name,
        plan.cost.parameters,
        plan.cost.forward / GIGA,
        whole,
        plan.hours,
        plan.at_once,
        plan.memory,
        plan.most_at_once,
        plan.checkpoint,
    )
    return tuple(Cell(value) for value in values)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _notes(plans: Sequence[Plan], hardware: Hardware) -> tuple[str, ...]:
    gpu = GPUS[hardware.gpu]
    notes = [
        "parameters: of the transformer. GFLOPs: of one image in one forward pass, every text "
        "token kept. EFLOPs: of the whole training.",
        f"hours: on {hardware.gpus} x {hardware.gpu} at {hardware.utilisation:.0%} of "
        f"{gpu.tera_flops:g} TFLOP/s, without tokenizer, text encoder and teachers: keep their "
        "output with nanogen cache.",
        f"GB: of each GPU's {gpu.memory:g}, for so many images at once; at most: images that fit. "
        "checkpoint: GB of each on disk.",
    ]
    short = [plan for plan in plans if plan.memory > gpu.memory]
    large = [plan.run.name for plan in short if not plan.most_at_once]
    cut = [plan.run.name for plan in short if plan.most_at_once]
    if cut:
        notes.append(
            f"does not fit: {_shown(cut)}; set machine.micro_batch to what fits, or "
            "machine.recompute=True, or name a variant such as @1x24gb"
        )
    if large:
        notes.append(
            f"too large at any batch: {_shown(large)}; take a GPU with more memory, or a smaller "
            "network, such as @b"
        )
    return (*notes, *dict.fromkeys(note for plan in plans for note in plan.cost.assumed))
