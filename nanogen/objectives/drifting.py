"""Drifting: a generator of one step, trained towards where the field of its samples points (Deng et
al., "Generative Modeling via Drifting", arXiv 2602.04770).

    x = network(e, t = 1, condition, alpha)                  one image of noise e
    loss = | phi(x) - stop_gradient(phi(x) + V(phi(x))) |^2  / elements, summed over features phi

V draws a generated image to the real ones of its condition and away from the generated ones of its
condition (`drift_field`). What is compared is a *group* of `group` samples that follow each other
in the stream: positives are its real images, negatives its generated ones. So a loss depends on
the whole group, which micro-batches and processes must not cut (`coupled`), and on nothing else.

Guidance is learned. Real images of any condition are added to the negatives, with the share gamma
of their weight; the field is then at rest where

    q(x | c) = alpha p(x | c) - (alpha - 1) p(x),       alpha = 1 / (1 - gamma)

and the network is told alpha, drawn anew for each condition of a group. Sampling is one step.

    nanogen train PRESET objective=drifting objective.encoder=dinov2-vit-b \\
        sampling.steps=1 sampling.guidance.scale=1
    nanogen sample RUN sampling.guidance.scale=1.5
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import chz
import torch
from torch import Tensor

from nanogen import rng
from nanogen.encoders.teachers import EncoderTeacher
from nanogen.errors import ConfigError
from nanogen.objectives.base import Facts, Inputs, Objective, ObjectiveConfig, Term
from nanogen.objectives.drift_field import Pull, drift
from nanogen.objectives.drift_group import NO_CONDITION, kinds_of, pull
from nanogen.objectives.power_law import power_law
from nanogen.registry import register
from nanogen.types import Backbone, Losses, State

if TYPE_CHECKING:
    from nanogen.sampling.guidance import Guidance
    from nanogen.sampling.settings import Sampling

GUIDANCE = "guidance"
"""the scalar that the network is told: alpha"""
POWER = 3.0


@register("objective", "drifting", summary="one-step generator that follows a drift field")
@chz.chz
class DriftingConfig(ObjectiveConfig):
    """The features compared are the latents, those of a frozen encoder, or both."""

    encoder: str = chz.field(
        default="", doc="frozen encoder to compare images in, see nanogen ls encoders; empty: none"
    )
    path: str = chz.field(default="", doc="folder or file of the encoder in place of the hub")
    latents: bool = chz.field(default=True, doc="compare latents: their patches, and each whole")
    group: int = chz.field(
        default=32, doc="samples of the stream that see each other; divides train.batch"
    )
    draws: int = chz.field(default=2, doc="images generated for each sample of the stream")
    temperatures: tuple[float, ...] = chz.field(
        default=(0.02, 0.05, 0.2), doc="reach of the field, in mean distances"
    )
    guidance_most: float = chz.field(
        default=4.0, doc="largest scale of guidance that is learned; 1: none is"
    )
    guidance_power: float = chz.field(
        default=POWER, doc="scales alpha in [1, guidance_most] are drawn as alpha^-power"
    )

    @chz.validate
    def _ranges(self) -> None:
        if not (self.encoder or self.latents):
            raise ConfigError(
                "objective.latents=False leaves nothing to compare; name an objective.encoder"
            )
        if self.path and not self.encoder:
            raise ConfigError(
                f"objective.path={self.path} has no effect without objective.encoder; name the "
                "encoder that it holds"
            )
        # A condition that is alone in its group still needs something to be pushed away from.
        for name, least in (("group", 2), ("draws", 2)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"objective.{name}={getattr(self, name)}: must be at least {least}"
                )
        if not self.temperatures or not all(0 < t < math.inf for t in self.temperatures):
            raise ConfigError(
                f"objective.temperatures={self.temperatures}: need one or more, each above 0"
            )
        if not 1 <= self.guidance_most < math.inf:
            raise ConfigError(f"objective.guidance_most={self.guidance_most}: must be 1 or more")
        if not 0 <= self.guidance_power < math.inf:
            raise ConfigError(
                f"objective.guidance_power={self.guidance_power}: must not be negative"
            )
        if self.guidance_most == 1 and self.guidance_power != POWER:
            raise ConfigError(
                f"objective.guidance_power={self.guidance_power} has no effect with "
                "objective.guidance_most=1; leave it out"
            )

    def check_sampling(self, sampling: Sampling) -> None:
        """ConfigError unless samples are drawn in one step, at a scale that is learned."""
        guidance = sampling.guidance
        if sampling.steps != 1 or sampling.solver != "euler":
            raise ConfigError(
                f"sampling.steps={sampling.steps} with sampling.solver={sampling.solver}: drifting "
                "generates in one step; set sampling.steps=1 sampling.solver=euler"
            )
        if not 1 <= guidance.scale <= self.guidance_most:
            raise ConfigError(
                f"sampling.guidance.scale={guidance.scale}: this objective learns scales from 1 to "
                f"objective.guidance_most={self.guidance_most}"
            )
        if (guidance.low, guidance.high) != (0.0, 1.0):
            raise ConfigError(
                f"sampling.guidance.low={guidance.low} and sampling.guidance.high={guidance.high} "
                "have no effect on one step; set them to 0 and 1"
            )

    @property
    def passes(self) -> float:
        return 3.0 * self.draws

    @property
    def kept(self) -> int:
        return self.draws

    @property
    def needs_null(self) -> bool:
        # What it guides away from here is real images.
        return False

    def build(self, facts: Facts, terms: Mapping[str, Term]) -> Drifting:
        return Drifting(self, facts, terms)


class Drifting(Objective):
    guides_itself = True
    one_step = True

    def __init__(self, config: DriftingConfig, facts: Facts, terms: Mapping[str, Term]) -> None:
        """ConfigError for any term: none has an image to compare with, or a path to predict."""
        if terms:
            name = next(iter(terms))
            raise ConfigError(
                f"terms.{name}=on has no meaning with objective=drifting, which pairs no generated "
                f"image with a real one; set terms.{name}=off"
            )
        super().__init__(facts, terms, predicts_data=True)
        self.config, self.patch, self.decode = config, facts.latent.patch, facts.decode
        self.coupled = config.group
        self.scalars = (GUIDANCE,) if config.guidance_most > 1 else ()
        self.teacher: EncoderTeacher | None = None
        if config.encoder:
            self.teacher = facts.known_teachers().encoder(
                config.encoder, config.path, owner="objective"
            )

    def forward(self, network: Backbone, inputs: Inputs) -> Losses:
        count, keys = self.config.group, inputs.batch.keys
        if len(keys) % count:
            raise RuntimeError(f"{len(keys)} samples cut a group of {count}")
        kinds = kinds_of(inputs)
        asked = torch.where(inputs.kept, kinds, NO_CONDITION)
        scales = self.scales(asked, keys)
        made = torch.cat([self._made(network, inputs, n, scales) for n in range(self.config.draws)])
        losses = torch.zeros(len(keys), device=keys.device)
        with torch.autocast(made.device.type, enabled=False):
            pulls = [
                pull(asked[rows], kinds[rows], scales[rows], self.config.draws)
                for rows in slices(len(keys), count)
            ]
            with torch.no_grad():
                real = list(self._features(inputs.latents.float()))
            for known, found in zip(real, self._features(made.float()), strict=True):
                found = found.unflatten(0, (self.config.draws, -1))
                parts = [
                    self._loss(found[:, rows], known[rows], one)
                    for rows, one in zip(slices(len(keys), count), pulls, strict=True)
                ]
                losses = losses + torch.cat(parts)
        return Losses({"drift": losses}, {"drift": 1.0})

    def velocity(self, prediction: State, noisy: State, t: Tensor) -> State:
        """e - x of the one step from t = 1 to 0, the only one there is."""
        return {name: noisy[name].float() - x.float() for name, x in prediction.items()}

    def scalars_of(self, guidance: Guidance) -> dict[str, float]:
        return {GUIDANCE: guidance.scale} if self.scalars else {}

    def scales(self, asked: Tensor, keys: Tensor) -> Tensor:
        """Alpha of each sample, [B]: one for each condition of a group, 1 where it was dropped.

        It is drawn by the key of the first sample of the group with that condition, since only
        images of the same condition and scale are of one law.
        """
        groups = asked.view(-1, self.config.group)
        first = (groups[:, :, None] == groups[:, None]).int().argmax(2)
        leaders = keys.view_as(groups).gather(1, first).flatten()
        uniform = rng.uniform(self.seed, "guidance", leaders, 1)[:, 0]
        drawn = power_law(uniform, self.config.guidance_most, self.config.guidance_power)
        return torch.where(asked == NO_CONDITION, 1.0, drawn)

    def _made(self, network: Backbone, inputs: Inputs, number: int, scales: Tensor) -> Tensor:
        """Images [B, C, h, w] of draw `number`, one for each sample of the stream."""
        keys, latents = inputs.batch.keys, inputs.latents
        noise = rng.normal(self.seed, f"noise/image/{number}", keys, tuple(latents.shape[1:]))
        told = {GUIDANCE: scales} if self.scalars else None
        t = torch.ones(len(keys), device=keys.device)
        return network({"image": noise}, t, inputs.condition, scalars=told).state["image"]

    def _features(self, latents: Tensor) -> Iterator[Tensor]:
        """Each kind of feature of latents [n, C, h, w], [n, L, D].

        Real images are looked at as their latents decode too: a generator can do no better.
        """
        if self.config.latents:
            tokens = patches(latents, self.patch)
            yield tokens
            if tokens.shape[1] > 1:
                yield latents.flatten(1)[:, None]
        if self.teacher is not None:
            seen = self.teacher(self.decode(latents))
            yield seen.patches
            yield seen.patches.mean(1, keepdim=True)
            # The gradient of a root is infinite at 0.
            yield (seen.patches.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
            if seen.cls is not None:
                yield seen.cls[:, None]

    def _loss(self, made: Tensor, real: Tensor, pull: Pull) -> Tensor:
        """[G], from features [draws, G, L, D] of generated images and [G, L, D] of real ones."""
        x = made.flatten(0, 1).transpose(0, 1)  # [L, Q, D]
        targets = torch.cat([x.detach(), real.transpose(0, 1)], dim=1)
        found = drift(x.detach(), targets, pull, self.config.temperatures)
        goal = x.detach() / found.scale + found.field
        error = (x / found.scale - goal).square().mean((0, 2))  # [Q]
        return error.unflatten(0, made.shape[:2]).mean(0)


def patches(latents: Tensor, size: int) -> Tensor:
    """[B, C, h, w] -> [B, N, C size size], row by row of the grid."""
    grid = latents.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # [B, C, rows, p, columns, p]
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def slices(total: int, count: int) -> list[slice]:
    return [slice(start, start + count) for start in range(0, total, count)]
