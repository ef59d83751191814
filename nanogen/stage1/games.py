"""The game against a discriminator: which one, and from when on who learns.

    discriminator=dino                     as RAE's decoders are trained
    discriminator=patch discriminator.channels=16 discriminator.layers=2
    discriminator=none

    0 ---------- learns_from ------------ judges_from ------------------- end
      decoder alone | discriminator learns too | decoder plays against it

All moments are in images, so that a run knows them wherever it resumes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import chz
import torch
from torch import nn

from nanogen import dist
from nanogen.errors import ConfigError
from nanogen.registry import register
from nanogen.stage1.adversarial import DISCRIMINATOR_LOSSES
from nanogen.stage1.augment import Augmentation
from nanogen.stage1.dino import load_trunk
from nanogen.stage1.discriminators import DinoDiscriminator, PatchDiscriminator
from nanogen.train.adamw import AdamWConfig
from nanogen.train.schedule import Schedule
from nanogen.train.settings import Machine


@chz.chz
class GameFields:
    """What a game with any discriminator has. Defaults are those of RAE's decoders."""

    weight: float = chz.field(default=0.75, doc="of the adversarial loss")
    adaptive: bool = chz.field(
        default=True, doc="times the ratio of gradients at the decoder's last layer"
    )
    learns_from: int = chz.field(default=0, doc="images after which the discriminator learns")
    judges_from: int = chz.field(default=0, doc="images after which the decoder plays against it")
    loss: Literal["hinge", "vanilla"] = "hinge"
    schedule_clock: Literal["run", "updates"] = chz.field(
        default="run",
        doc="what its learning rate follows: run: images seen; updates: images it has learned "
        "from, so that it warms up late and ends high, as published decoders were trained",
    )
    augmentation: Augmentation = chz.field(default_factory=Augmentation)
    optimiser: AdamWConfig = chz.field(default_factory=AdamWConfig)

    @chz.validate
    def _ranges(self) -> None:
        if self.weight <= 0:
            raise ConfigError(
                f"discriminator.weight={self.weight}: must be above 0; use discriminator=none"
            )
        if not 0 <= self.learns_from <= self.judges_from:
            raise ConfigError(
                f"discriminator.judges_from={self.judges_from} must not come before "
                f"discriminator.learns_from={self.learns_from}, nor that before 0"
            )
        if self.loss not in DISCRIMINATOR_LOSSES:
            raise ConfigError(f"discriminator.loss={self.loss!r}: choose hinge or vanilla")
        if self.schedule_clock not in ("run", "updates"):
            raise ConfigError(
                f"discriminator.schedule_clock={self.schedule_clock!r}: choose run or updates"
            )

    def check(self, images: int) -> None:
        """Refuse a game that never begins in a run of `images` images."""
        if self.judges_from >= images:
            raise ConfigError(
                f"discriminator.judges_from={self.judges_from} has no effect in a run of "
                f"train.images={images}; lower it, or use discriminator=none"
            )

    def check_cut(self, batch: int, machine: Machine, device: torch.device) -> None:
        """Refuse a machine that would cut what belongs together; nothing does here."""

    def factor(self, schedule: Schedule, seen: int, batch: int, images: int) -> float:
        """Factor on the discriminator's learning rate in the step that follows `seen` images."""
        if self.schedule_clock == "updates":
            # Steps begin at multiples of the batch: the first that learns is the next of them.
            seen -= -(-self.learns_from // batch) * batch
        return schedule.factor(seen, batch, images)


@dataclass(frozen=True)
class Game:
    """A discriminator and the rules it plays by."""

    rules: GameFields
    discriminator: nn.Module


@register("discriminator", "none", summary="no adversarial loss")
@chz.chz
class NoGame:
    def check(self, images: int) -> None:
        """Nothing can contradict it."""

    def check_cut(self, batch: int, machine: Machine, device: torch.device) -> None:
        """Nothing is cut."""

    def build(self) -> None:
        return None


@register(
    "discriminator",
    "dino",
    summary="heads on a frozen DINO (arXiv 2510.11690)",
    needs="the weights of DINO, from the hub or discriminator.path",
)
@chz.chz
class DinoGame(GameFields):
    recipe: str = chz.field(default="S_8", doc="S_8, S_16 or B_16: size and patch of DINO")
    path: str = chz.field(default="", doc="file or folder of its weights; empty: the hub")

    def build(self) -> Game:
        return Game(self, DinoDiscriminator(load_trunk(self.recipe, self.path)))


@register("discriminator", "patch", summary="PatchGAN (arXiv 1611.07004)")
@chz.chz
class PatchGame(GameFields):
    channels: int = 64
    layers: int = chz.field(default=3, doc="halvings; an image needs 3 * 2^layers px a side")
    norm: Literal["batch", "sample"] = chz.field(
        default="batch",
        doc="what is normalised over; batch: as published, all images of a step, which then cannot "
        "be cut into micro-batches, nor spread over processes on CPUs",
    )

    @chz.validate
    def _sizes(self) -> None:
        if self.channels < 1 or self.layers < 1:
            raise ConfigError("discriminator.channels and discriminator.layers must be at least 1")
        if self.norm not in ("batch", "sample"):
            raise ConfigError(f"discriminator.norm={self.norm!r}: choose batch or sample")

    def check_cut(self, batch: int, machine: Machine, device: torch.device) -> None:
        """ConfigError where statistics would be those of pieces of a batch: another training, under
        the same config.
        """
        if self.norm != "batch":
            return
        micro, share = machine.micro_batch, -(-batch // dist.world())
        if micro is not None and micro < share:
            raise ConfigError(
                f"machine.micro_batch={micro} would cut what discriminator.norm=batch normalises "
                f"over, {share} images at once; set discriminator.norm=sample, or leave out "
                "machine.micro_batch"
            )
        if dist.world() > 1 and device.type != "cuda":
            raise ConfigError(
                "discriminator.norm=batch normalises over images of all processes, which those on "
                "CPUs cannot; set discriminator.norm=sample, or start one process"
            )

    def build(self) -> Game:
        return Game(self, PatchDiscriminator(self.channels, self.layers, self.norm))
