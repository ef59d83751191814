"""A run is a value: everything that decides a result, and nothing else but `machine`.

`build` is the only place where parts meet. It passes facts of built parts forward (the tokenizer's
latent space, the conditioner's width) and writes nothing back into the config.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import chz
import torch

from nanogen import config, dist
from nanogen.config import choice
from nanogen.errors import ConfigError, suggest
from nanogen.model import Model
from nanogen.objectives.base import Facts
from nanogen.sampling.generate import Sampler, Sampling
from nanogen.tasks.base import Task
from nanogen.train.schedule import Schedule
from nanogen.types import Batch, Conditioner, Tokenizer

Terms = config.switches("term")


@chz.chz
class Train:
    """How long, how many at once, how averaged. All lengths are in images."""

    images: int = chz.field(default=102_400_000, doc="images to train on")
    batch: int = chz.field(default=1024, doc="images of one optimiser step, over all processes")
    clip: float = chz.field(default=1.0, doc="largest gradient norm")
    ema: float = chz.field(default=0.9995, doc="decay of the averaged weights at each step")
    ema_warmup: bool = chz.field(default=False, doc="decay at most (1 + steps) / (10 + steps)")
    condition_dropout: float = 0.1
    precision: Literal["fp32", "bf16"] = chz.field(
        default="fp32", doc="bf16: autocast of the loss; weights stay fp32"
    )
    log_every: int = 102_400
    save_every: int = 5_120_000
    keep: int = chz.field(default=2, doc="newest checkpoints to keep")
    sample_every: int = chz.field(default=5_120_000, doc="0: never")

    @chz.validate
    def _ranges(self) -> None:
        for name in ("images", "batch", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name}={getattr(self, name)}: must be at least 1")
        for name in ("ema", "condition_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"train.{name}={getattr(self, name)}: must lie in [0, 1)")
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
class Evaluation:
    metrics: tuple[str, ...] = ()
    samples: int = 50_000
    every: int = chz.field(
        default=0, doc="images between evaluations during training; 0: only at the end"
    )

    @chz.validate
    def _ranges(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"evaluation.samples={self.samples}: must be at least 1")
        if self.every < 0:
            raise ConfigError(f"evaluation.every={self.every}: must not be negative")


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
    compile: bool = False


@chz.chz
class Run:
    name: str
    budget: str = chz.field(default="", doc="budget of a benchmark that this run belongs to")
    seed: int = 42
    task: Any = choice("task")
    tokenizer: Any = choice("tokenizer")
    conditioner: Any = choice("conditioner")
    backbone: Any = choice("backbone")
    objective: Any = choice("objective")
    terms: Terms = chz.field(default_factory=Terms)  # ty: ignore[invalid-type-form]
    optimiser: Any = choice("optimiser")
    schedule: Schedule = chz.field(default_factory=Schedule)
    train: Train = chz.field(default_factory=Train)
    sampling: Sampling = chz.field(default_factory=Sampling)
    evaluation: Evaluation = chz.field(default_factory=Evaluation)
    machine: Machine = chz.field(default_factory=Machine)

    @chz.validate
    def _ranges(self) -> None:
        # It is also a path below runs/, and must not lead out of there.
        if any(part in ("", ".", "..") for part in self.name.split("/")):
            raise ConfigError(f"name={self.name!r}: write words, with / between them")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed}: must lie in [0, 2^63)")


@dataclass(frozen=True)
class Parts:
    """The built objects of a run."""

    run: Run
    task: Task
    tokenizer: Tokenizer
    conditioner: Conditioner
    model: Model
    device: torch.device

    @torch.no_grad()
    def latents(self, batch: Batch) -> torch.Tensor:
        """What is diffused of a batch: latents [B, C, h, w]."""
        return self.tokenizer.latents(self.tokenizer.raw(batch.images), batch.keys)

    def sampler(self, sampling: Sampling | None = None) -> Sampler:
        """A sampler of the model's present weights, with the run's own settings unless others are
        given.
        """
        return Sampler(
            self.model.backbone,  # type: ignore[arg-type]
            self.model.objective,
            self.conditioner,
            self.tokenizer,
            self.model.leaves,
            sampling or self.run.sampling,
            self.device,
        )


def build(run: Run) -> Parts:
    """All parts of a run, with freshly initialised weights: a function of `run.seed` alone."""
    check(run)
    device = pick_device(run.machine.device)
    torch.set_num_threads(run.machine.threads)
    task: Task = run.task.build(run.seed)
    tokenizer: Tokenizer = run.tokenizer.build(task.source.size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        conditioner: Conditioner = run.conditioner.build(task.source)
        model = assemble(run, task.source.size, tokenizer, conditioner)
    for frozen in (tokenizer, conditioner):
        if isinstance(frozen, torch.nn.Module):
            frozen.to(device)
    return Parts(run, task, tokenizer, conditioner, model.to(device), device)


def assemble(run: Run, image_size: int, tokenizer: Tokenizer, conditioner: Conditioner) -> Model:
    """The trained module of a run, given what surrounds it. Works on the meta device too."""
    facts = Facts(
        seed=run.seed,
        latent=tokenizer.spec,
        image_size=image_size,
        feature_width=run.backbone.width,
        decode=tokenizer.decode,
    )
    terms = {name: part.build(facts) for name, part in parts_on(run.terms).items()}
    objective = run.objective.build(facts, terms)
    leaves = {leaf: width for term in terms.values() for leaf, width in term.leaves.items()}
    backbone = run.backbone.build(tokenizer.spec, conditioner.spec, leaves)
    return Model(backbone, objective, conditioner, run.train.condition_dropout)


def parts_on(terms: object) -> dict[str, Any]:
    """The terms that are on, by name."""
    fields = chz.chz_fields(terms)
    return {name: getattr(terms, name) for name in fields if getattr(terms, name) is not None}


def check(run: Run) -> None:
    """Refuse values that contradict each other or have no effect, naming the fields."""
    train, guidance = run.train, run.sampling.guidance
    if guidance.scale != 1 and train.condition_dropout == 0:
        raise ConfigError(
            f"sampling.guidance.scale={guidance.scale} needs train.condition_dropout above 0: "
            "without dropout the null condition is never trained"
        )
    if run.machine.micro_batch is not None and run.machine.micro_batch < 1:
        raise ConfigError(f"machine.micro_batch={run.machine.micro_batch}: must be at least 1")
    if not 1 <= run.machine.threads <= 1024 or run.machine.workers < 0:
        raise ConfigError("machine.threads must lie in [1, 1024] and machine.workers be at least 0")
    if run.evaluation.every and not run.evaluation.metrics:
        raise ConfigError(
            "evaluation.every has no effect without evaluation.metrics; name some or set it to 0"
        )
    run.schedule.check(train.images)


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"machine.device={name!r}; {suggest(name, ('auto', 'cpu', 'cuda'))}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "machine.device=cuda, but torch sees no CUDA device; use machine.device=cpu or auto"
        )
    # Each process of a machine has a GPU of its own.
    return torch.device(name, dist.local_rank()) if name == "cuda" else torch.device(name)


def identity(run: Run) -> Run:
    """The run without what does not change its result: where it runs, what it writes down when."""
    habits = {name: getattr(Train(), name) for name in ("log_every", "save_every", "keep")}
    return chz.replace(
        run,
        machine=Machine(),
        train=chz.replace(run.train, sample_every=Train().sample_every, **habits),
        sampling=chz.replace(run.sampling, batch=Sampling().batch),
    )
