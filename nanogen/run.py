"""A run is a value: everything that decides a result, and nothing else but `machine`.

`build` is the only place where parts meet. It passes facts of built parts forward (the tokenizer's
latent space, the conditioner's width) and writes nothing back into the config.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import chz
import torch
from torch import Tensor

from nanogen import config, dist
from nanogen.config import choice
from nanogen.data.loader import check_uncut
from nanogen.encoders.teachers import EncoderTeacher, Teachers
from nanogen.errors import ConfigError, suggest
from nanogen.evaluation.settings import Evaluation
from nanogen.model import Model
from nanogen.objectives.base import Facts, Objective
from nanogen.sampling.generate import Sampler
from nanogen.sampling.settings import Sampling
from nanogen.tasks.base import Task
from nanogen.tokenizers.rae import Rae, as_grid
from nanogen.tokenizers.raw import PRECISIONS, Precision, raw_latents
from nanogen.train import settings
from nanogen.train.schedule import Schedule
from nanogen.train.settings import AveragedTraining, check_name_and_seed, without_habits
from nanogen.types import Batch, Conditioner, LatentSpec, Tokenizer

Terms = config.switches("term")


@chz.chz
class Train(AveragedTraining):
    """How long, how many at once, how averaged. All lengths are in images."""

    raw_precision: Precision = chz.field(
        default="fp32", doc="in which latents are kept before they are normalised, cached or not"
    )
    start: str = chz.field(
        default="", doc="folder of a trained run whose averaged weights this one starts from"
    )

    @chz.validate
    def _ranges(self) -> None:
        if self.raw_precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ConfigError(f"train.raw_precision={self.raw_precision!r}: choose one of {known}")


@chz.chz
class Machine(settings.Machine):
    """Where and how fast. Nothing here is part of what a run is.

    Readers and caches change no bit of a result; micro-batches and processes only the rounding of
    its sums.
    """

    cache: str = chz.field(
        default="", doc="folder that nanogen cache wrote, to train from stored latents and features"
    )


@chz.chz
class Run:
    folders: ClassVar[tuple[str, ...]] = ("checkpoints", "samples", "records", "averages")
    """what training makes in the folder of a run"""

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
        check_name_and_seed(self.name, self.seed)

    def identity(self) -> Run:
        """The run without what does not change its result: where it runs, what it writes down
        when, which scores are asked for.
        """
        return chz.replace(
            self,
            machine=Machine(),
            train=without_habits(self.train),
            sampling=chz.replace(self.sampling, batch=Sampling().batch),
            evaluation=chz.replace(self.evaluation, metrics=(), every=0),
        )


@dataclass(frozen=True)
class Parts:
    """The built objects of a run."""

    run: Run
    task: Task
    tokenizer: Tokenizer
    conditioner: Conditioner
    model: Model
    device: torch.device
    shared: EncoderTeacher | None = None
    """the teacher that is the encoder of the tokenizer: one look at a batch serves both"""

    @torch.no_grad()
    def latents(self, batch: Batch) -> torch.Tensor:
        """What is diffused of a batch: latents [B, C, h, w]; the same bits from a cache or not."""
        raw = batch.raw
        if raw is None:
            raw = self._raw(batch.images)
        return self.tokenizer.latents(
            raw.to(PRECISIONS[self.run.train.raw_precision]).float(), batch.keys
        )

    def _raw(self, images: Tensor) -> Tensor:
        if self.shared is not None:
            return as_grid(self.shared(images).patches).contiguous()
        return raw_latents(self.tokenizer, images)

    def sampler(self, sampling: Sampling | None = None) -> Sampler:
        """A sampler of the model's present weights, with the run's own settings unless others are
        given.
        """
        # Here, because it opens a run, which is built here.
        from nanogen.sampling import autoguidance

        sampling = sampling or self.run.sampling
        return Sampler(
            self.model.backbone,  # type: ignore[arg-type]
            self.model.objective,
            self.conditioner,
            self.tokenizer,
            self.model.leaves,
            sampling,
            self.device,
            autoguidance.opened(sampling.auto, self),
        )


def build(run: Run) -> Parts:
    """All parts of a run, with freshly initialised weights: a function of `run.seed` alone."""
    check(run)
    device = pick_device(run.machine.device)
    torch.set_num_threads(run.machine.threads)
    task: Task = run.task.build(run.seed)
    tokenizer: Tokenizer = run.tokenizer.build(task.source.size)
    teachers = Teachers(task.source.size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        conditioner: Conditioner = run.conditioner.build(task.source)
        model = assemble(run, teachers, tokenizer, conditioner)
    teachers.open(device)
    for frozen in (tokenizer, conditioner):
        if isinstance(frozen, torch.nn.Module):
            frozen.to(device)
    shared = teachers.share(tokenizer.encoder) if isinstance(tokenizer, Rae) else None
    return Parts(run, task, tokenizer, conditioner, model.to(device), device, shared)


def assemble(run: Run, teachers: Teachers, tokenizer: Tokenizer, conditioner: Conditioner) -> Model:
    """The trained module of a run, given what surrounds it. Works on the meta device too: no
    teacher is opened.
    """
    objective = objective_of(run, teachers, tokenizer.spec, tokenizer.decode)
    run.sampling.check(objective)
    backbone = run.backbone.build(tokenizer.spec, conditioner.spec, objective.wiring)
    return Model(backbone, objective, conditioner, run.train.condition_dropout)


def objective_of(
    run: Run, teachers: Teachers, latent: LatentSpec, decode: Callable[[Tensor], Tensor]
) -> Objective:
    """The objective of a run with its terms, which say what its network is wired for."""
    facts = Facts(
        seed=run.seed,
        latent=latent,
        image_size=teachers.image_size,
        feature_width=run.backbone.width,
        decode=decode,
        blocks=run.backbone.depth,
        batch=run.train.batch,
        teachers=teachers,
    )
    terms = {name: part.build(facts) for name, part in parts_on(run.terms).items()}
    objective = run.objective.build(facts, terms)
    check_uncut(objective.coupled, run.train.batch, run.machine.micro_batch)
    return objective


def parts_on(terms: object) -> dict[str, Any]:
    """The terms that are on, by name."""
    fields = chz.chz_fields(terms)
    return {name: getattr(terms, name) for name in fields if getattr(terms, name) is not None}


def check(run: Run) -> None:
    """Refuse values that contradict each other or have no effect, naming the fields."""
    train, guidance = run.train, run.sampling.guidance
    if guidance.on and run.objective.needs_null and train.condition_dropout == 0:
        raise ConfigError(
            f"sampling.guidance.scale={guidance.scale} needs train.condition_dropout above 0: "
            "without dropout the null condition is never trained"
        )
    if run.objective.learns_guidance and train.condition_dropout == 0:
        raise ConfigError(
            "this objective learns guidance away from the null condition and needs "
            "train.condition_dropout above 0: without dropout that is never trained"
        )
    if run.evaluation.every and not run.evaluation.metrics:
        raise ConfigError(
            "evaluation.every has no effect without evaluation.metrics; name some or set it to 0"
        )
    run.schedule.check(train.images)
    run.objective.check_sampling(run.sampling)


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
