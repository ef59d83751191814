"""A run of REPA-E: which VAE is tuned, by which transformer, towards which encoder.

run = config.override(repa_e_recipes.preset("animals/vae-e2e"), ["train.images=6400"])
parts = build(run)
train(RepaETrainer(parts), folder, hooks(parts, folder))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import chz
import torch
from torch import Tensor, nn

from nanogen import dist
from nanogen.config import choice
from nanogen.data.base import Source
from nanogen.encoders.vision import VisionEncoder, open_encoder
from nanogen.errors import ConfigError
from nanogen.objectives.repa import Projector
from nanogen.run import pick_device
from nanogen.stage1.autoencoder import Reconstruction, TrainableAutoencoder
from nanogen.stage1.discriminators import across_processes
from nanogen.stage1.games import Game, GameFields, NoGame
from nanogen.stage1.kl_vae import KlVae
from nanogen.stage1.latent_norm import LatentNorm
from nanogen.stage1.repa_e import AlignedDiffusion, RepaE, Rules
from nanogen.stage1.run import TokenizerEvaluation, TokenizerRun
from nanogen.stage1.tuned_vae import export
from nanogen.tasks.base import Task
from nanogen.train.schedule import Schedule
from nanogen.train.settings import ConditionalTraining, Machine, check_name_and_seed, without_habits
from nanogen.train.signals import Check
from nanogen.types import Batch, Conditioner, Wiring


@chz.chz
class Alignment:
    """Of features of the transformer with those of a frozen encoder."""

    encoder: str = chz.field(
        default="dinov2-vit-b[woreg,norm]", doc="a vision encoder (nanogen ls encoders)"
    )
    path: str = chz.field(default="", doc="its weights in place of the hub")
    block: int = chz.field(default=8, doc="encoder block whose features are aligned, from 1")
    hidden: int = chz.field(default=2048, doc="width of the projector's hidden layers")
    vae: float = chz.field(default=1.5, doc="weight in the update of the VAE")
    diffusion: float = chz.field(default=0.5, doc="weight in the update of the transformer")

    @chz.validate
    def _ranges(self) -> None:
        if self.block < 1 or self.hidden < 1:
            raise ConfigError("alignment.block and alignment.hidden must be at least 1")
        if self.vae <= 0 or self.diffusion < 0:
            raise ConfigError(
                "alignment.vae must be above 0 and alignment.diffusion not below: without "
                "alignment the transformer teaches the VAE nothing"
            )


@chz.chz
class RepaERun:
    folders: ClassVar[tuple[str, ...]] = TokenizerRun.folders
    """what training makes in the folder of a run"""

    name: str
    seed: int = 42
    task: Any = choice("task")
    autoencoder: Any = choice("autoencoder")
    conditioner: Any = choice("conditioner")
    backbone: Any = choice("backbone")
    alignment: Alignment = chz.field(default_factory=Alignment)
    perceptual: Any = choice("distance")
    perceptual_range: Literal["unit", "doubled"] = chz.field(
        default="unit",
        doc="doubled: images are scaled to [-1, 1] once too often, as by the authors' code",
    )
    discriminator: Any = choice("discriminator")
    optimiser: Any = choice("optimiser")
    schedule: Schedule = chz.field(default_factory=Schedule)
    train: ConditionalTraining = chz.field(default_factory=ConditionalTraining)
    evaluation: TokenizerEvaluation = chz.field(default_factory=TokenizerEvaluation)
    machine: Machine = chz.field(default_factory=Machine)

    @chz.validate
    def _ranges(self) -> None:
        check_name_and_seed(self.name, self.seed)
        if self.perceptual_range not in ("unit", "doubled"):
            raise ConfigError(f"perceptual_range={self.perceptual_range!r}: choose unit or doubled")

    @property
    def statistics(self) -> int:
        """Train images that exported statistics are taken over: none, the norm has its own."""
        return 0

    def identity(self) -> RepaERun:
        """The run without what does not change its result."""
        return chz.replace(self, machine=Machine(), train=without_habits(self.train))


class EndToEndVae(TrainableAutoencoder):
    """The VAE as what is to become a tokenizer, normalised by the norm's running statistics.

    The published procedure averages those, but not the weights of the VAE.
    """

    weights = "raw"

    def __init__(self, inner: KlVae, norm: LatentNorm) -> None:
        super().__init__()
        self.inner, self.spec = inner, inner.spec
        # Trained and averaged with the transformer: no submodule of this.
        self._norm = (norm,)

    def forward(self, batch: Batch) -> Reconstruction:
        return self.inner(batch)

    def raw(self, images: Tensor) -> Tensor:
        return self.inner.raw(images)

    def from_raw(self, raw: Tensor) -> Tensor:
        return self.inner.from_raw(raw)

    @property
    def last(self) -> nn.Parameter:
        return self.inner.last

    @torch.no_grad()
    def export(self, folder: Path, source: Source, most: int, check: Check) -> None:
        """No image is read: the norm has gathered the statistics."""
        norm = self._norm[0]
        if dist.rank() == 0:
            export(self.inner.vae, folder, norm.shift, norm.deviation)
        dist.barrier()


@dataclass(frozen=True)
class RepaEParts:
    """The built objects of a run."""

    run: RepaERun
    task: Task
    autoencoder: EndToEndVae
    conditioner: Conditioner
    encoder: VisionEncoder
    model: RepaE
    game: Game | None
    device: torch.device


def build(run: RepaERun) -> RepaEParts:
    """All parts of a run. Weights that are not loaded are a function of `run.seed` alone."""
    check(run)
    device = pick_device(run.machine.device)
    run.discriminator.check_cut(run.train.batch, run.machine, device)
    torch.set_num_threads(run.machine.threads)
    task: Task = run.task.build(run.seed)
    size = task.source.size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        vae = run.autoencoder.build(size, run.seed)
        if not isinstance(vae, KlVae):
            raise ConfigError("autoencoder: only a VAE can be tuned; choose pretrained-vae")
        torch.manual_seed(run.seed + 1)
        game: Game | None = run.discriminator.build()
        torch.manual_seed(run.seed + 2)
        conditioner: Conditioner = run.conditioner.build(task.source)
        encoder = open_encoder(run.alignment.encoder, size, run.alignment.path)
        diffusion = _diffusion(run, vae, conditioner, encoder)
    distance: nn.Module | None = run.perceptual.build(size)
    discriminator = None if game is None else across_processes(game.discriminator, device)
    for module in (vae, diffusion, encoder, distance, discriminator, conditioner):
        if isinstance(module, nn.Module):
            module.to(device)
    model = RepaE(vae.vae, diffusion, discriminator, distance, rules(run), run.seed)
    tuned = EndToEndVae(vae, diffusion.norm)
    return RepaEParts(run, task, tuned, conditioner, encoder, model, game, device)


def rules(run: RepaERun) -> Rules:
    """The weights of the losses, from the parts they belong to."""
    game = run.discriminator if isinstance(run.discriminator, GameFields) else None
    plain = Rules()
    return Rules(
        perceptual=run.perceptual.weight,
        kl=run.autoencoder.kl,
        adversarial=game.weight if game else 0.0,
        alignment_vae=run.alignment.vae,
        alignment_diffusion=run.alignment.diffusion,
        discriminator_loss=game.loss if game else plain.discriminator_loss,
        augmentation=game.augmentation if game else plain.augmentation,
        doubled_range=run.perceptual_range == "doubled",
        bfloat16=run.train.precision == "bf16",
    )


def check(run: RepaERun) -> None:
    """Refuse values that contradict each other or have no effect, naming the fields."""
    for name in ("compile", "recompute"):
        if getattr(run.machine, name):
            raise ConfigError(f"machine.{name} has no effect on the training of a tokenizer")
    if run.machine.micro_batch is not None:
        raise ConfigError(
            f"machine.micro_batch={run.machine.micro_batch}: latents are normalised by statistics "
            "of whole batches; leave it out, and lower train.batch or start more processes"
        )
    if run.evaluation.every and not run.evaluation.metrics:
        raise ConfigError(
            "evaluation.every has no effect without evaluation.metrics; name some or set it to 0"
        )
    if run.perceptual_range == "doubled" and run.perceptual.weight == 0:
        raise ConfigError("perceptual_range=doubled has no effect with perceptual=none")
    _check_game(run.discriminator)
    run.schedule.check(run.train.images)


def _check_game(game: GameFields | NoGame) -> None:
    """The game of REPA-E is on from the first step, with a weight that stays."""
    if isinstance(game, NoGame):
        return
    plain = {"adaptive": False, "learns_from": 0, "judges_from": 0, "schedule_clock": "run"}
    for name, value in plain.items():
        if getattr(game, name) != value:
            raise ConfigError(
                f"discriminator.{name}={getattr(game, name)} has no effect on end-to-end tuning; "
                f"set discriminator.{name}={value}"
            )


def _diffusion(
    run: RepaERun, vae: KlVae, conditioner: Conditioner, encoder: VisionEncoder
) -> AlignedDiffusion:
    """The transformer, its projector, and the norm as the VAE is normalised so far."""
    if getattr(conditioner, "trainable", False):
        raise ConfigError("conditioner: only a frozen one can be used; choose labels or hf-text")
    backbone = run.backbone.build(vae.spec, conditioner.spec, Wiring())
    if run.alignment.block > backbone.depth:
        raise ConfigError(
            f"alignment.block={run.alignment.block}: this backbone has {backbone.depth} blocks"
        )
    if vae.spec.tokens != encoder.grid**2:
        raise ConfigError(
            f"alignment.encoder={run.alignment.encoder} has {encoder.grid**2} tokens, but the "
            f"latents are cut into {vae.spec.tokens}; choose another encoder, or another patch of "
            "autoencoder.start"
        )
    norm = LatentNorm(vae.spec.channels)
    norm.start(vae.shift, vae.scale)
    projector = Projector(run.backbone.width, run.alignment.hidden, encoder.width)
    return AlignedDiffusion(norm, backbone, projector, run.alignment.block)
