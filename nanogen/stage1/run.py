"""A training of a tokenizer is a value, like any run.

run = config.override(recipes.preset("animals/vae"), ["discriminator=none"])
parts = build(run)                      # task, autoencoder, distance, game
train(TokenizerTrainer(parts), folder, hooks(parts, folder))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import chz
import torch
from torch import Tensor, nn

from nanogen.config import choice
from nanogen.data.base import SPLITS
from nanogen.errors import ConfigError, suggest
from nanogen.metrics.similarity import Quantise
from nanogen.run import pick_device
from nanogen.stage1.autoencoder import TrainableAutoencoder
from nanogen.stage1.discriminators import across_processes
from nanogen.stage1.games import Game
from nanogen.stage1.pretrained_vae import PretrainedVaeConfig
from nanogen.tasks.base import Task
from nanogen.train.schedule import Schedule
from nanogen.train.settings import Machine, Training, check_name_and_seed, without_habits
from nanogen.types import Request


@chz.chz
class TokenizerEvaluation:
    """How the reconstructions are measured; every run is, at its end."""

    metrics: tuple[str, ...] = ("psnr", "ssim")
    split: str = chz.field(default="held-out", doc="train, validation or held-out")
    samples: int | None = chz.field(default=None, doc="images, evenly spaced; None: all")
    every: int = chz.field(
        default=0, doc="images between evaluations during training; 0: only at the end"
    )
    quantise: Quantise = chz.field(
        default="round", doc="truncate: as published scores were measured"
    )
    trunk: str = chz.field(default="", doc="VGG16 of the metric lpips; empty: the hub")

    @chz.validate
    def _ranges(self) -> None:
        if self.split not in SPLITS:
            raise ConfigError(f"evaluation.split={self.split!r}; {suggest(self.split, SPLITS)}")
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"evaluation.samples={self.samples}: must be at least 1")
        if self.every < 0:
            raise ConfigError(f"evaluation.every={self.every}: must not be negative")


@chz.chz
class TokenizerRun:
    folders: ClassVar[tuple[str, ...]] = ("checkpoints", "samples", "records", "tokenizer")
    """what training makes in the folder of a run"""

    name: str
    seed: int = 42
    data: Any = choice("data")
    autoencoder: Any = choice("autoencoder")
    perceptual: Any = choice("distance")
    discriminator: Any = choice("discriminator")
    optimiser: Any = choice("optimiser")
    schedule: Schedule = chz.field(default_factory=Schedule)
    train: Training = chz.field(default_factory=Training)
    statistics: int = chz.field(
        default=50_000, doc="train images, at most, that exported statistics are taken over"
    )
    evaluation: TokenizerEvaluation = chz.field(default_factory=TokenizerEvaluation)
    machine: Machine = chz.field(default_factory=Machine)

    @chz.validate
    def _ranges(self) -> None:
        check_name_and_seed(self.name, self.seed)
        if self.statistics < 2:
            raise ConfigError(f"statistics={self.statistics}: must be at least 2")

    def identity(self) -> TokenizerRun:
        """The run without what does not change its result."""
        return chz.replace(self, machine=Machine(), train=without_habits(self.train))


class Reconstruction(Task):
    """Images alone: what comes in is what should come out."""

    kind: ClassVar[str] = "reconstruction"

    def request(self, start: int, stop: int) -> Request:
        return Request(torch.arange(start, stop))

    def captions(self, request: Request) -> list[str]:
        return [f"image {int(index)}" for index in request.indices]


@dataclass(frozen=True)
class TokenizerParts:
    """The built objects of a run."""

    run: TokenizerRun
    task: Task
    autoencoder: TrainableAutoencoder
    distance: nn.Module | None
    game: Game | None
    device: torch.device


def build(run: TokenizerRun) -> TokenizerParts:
    """All parts of a run, with freshly initialised weights: a function of `run.seed` alone."""
    check(run)
    device = pick_device(run.machine.device)
    run.discriminator.check_cut(run.train.batch, run.machine, device)
    torch.set_num_threads(run.machine.threads)
    task = Reconstruction(run.data.build(), run.seed)
    size = task.source.size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        autoencoder: TrainableAutoencoder = run.autoencoder.build(size, run.seed)
        # A generator of its own: another autoencoder does not change the discriminator.
        torch.manual_seed(run.seed + 1)
        game: Game | None = run.discriminator.build()
    distance: nn.Module | None = run.perceptual.build(size)
    discriminator = None if game is None else across_processes(game.discriminator, device)
    for module in (distance, discriminator):
        if module is not None:
            module.to(device)
    parts = TokenizerParts(run, task, autoencoder.to(device), distance, game, device)
    _check_size(parts)
    return parts


def check(run: TokenizerRun) -> None:
    """Refuse values that contradict each other or have no effect, naming the fields."""
    for name in ("compile", "recompute"):
        if getattr(run.machine, name):
            raise ConfigError(f"machine.{name} has no effect on the training of a tokenizer")
    if run.evaluation.every and not run.evaluation.metrics:
        raise ConfigError(
            "evaluation.every has no effect without evaluation.metrics; name some or set it to 0"
        )
    if isinstance(run.autoencoder, PretrainedVaeConfig):
        run.autoencoder.check_alone()
    run.discriminator.check(run.train.images)
    run.schedule.check(run.train.images)


@torch.no_grad()
def _check_size(parts: TokenizerParts) -> None:
    """A loss that cannot take images of this size says so now, not when its turn comes."""
    size = parts.task.source.size
    image: Tensor = torch.zeros(1, 3, size, size, device=parts.device)
    if parts.distance is not None:
        parts.distance(image, image)
    if parts.game is not None:
        discriminator = parts.game.discriminator.eval()
        discriminator(image)
