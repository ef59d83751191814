"""Improved MeanFlow: guidance as a number that the network is told (arXiv 2512.02012).

Two changes to MeanFlow. The derivative du/dt is taken along the velocity that the network predicts,
not along the noisy velocity e - x of one sample, so that V is a function of the noisy state alone.
And the network is told the scale s of guidance and the interval [low, high] of times t in which it
holds, drawn anew for each sample; where it holds, the target is

    v = e - x + (1 - 1 / s) (v_condition - v_null)

with the two velocities as the network predicts them. Its fixed point is v_condition = v_null + s
(v - v_null) with v the velocity of the data: guidance of scale s. So scale and interval are chosen
when samples are drawn, at the price of one evaluation a step.

    nanogen train PRESET objective=improved-meanflow sampling.steps=1
    nanogen sample RUN sampling.guidance.scale=2.5 sampling.guidance.high=0.9
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import chz
import torch
from torch import Tensor

from nanogen import rng
from nanogen.errors import ConfigError
from nanogen.objectives import path
from nanogen.objectives.base import Facts, Inputs, Term
from nanogen.objectives.mean_velocity import (
    Intervals,
    MeanVelocity,
    MeanVelocityConfig,
    Query,
    squares,
    untracked,
    with_rows,
)
from nanogen.objectives.power_law import power_law
from nanogen.registry import register
from nanogen.types import Backbone, Losses, State

if TYPE_CHECKING:
    from nanogen.sampling.guidance import Guidance

N = TypeVar("N", float, Tensor)

HEAD = "velocity"
"""name of the head that predicts the velocity"""
SCALARS = ("guidance", "guidance_low", "guidance_high")
"""what the network is told: scale, and the interval of times in which it holds"""
MIDDLE = 0.5
"""every interval of guidance that is learned begins before this time and ends after it"""


@register(
    "objective", "improved-meanflow", summary="mean velocities; guidance chosen when sampling"
)
@chz.chz
class ImprovedMeanFlowConfig(MeanVelocityConfig):
    """Defaults are those of the authors' code, but for the tangent: they have a head for it."""

    instantaneous: float = chz.field(default=0.5, doc="share of samples with r = t")
    instants: Literal["single", "later"] = chz.field(
        default="later", doc="t where r = t: one draw, or the later of the two"
    )
    tangent: Literal["boundary", "head"] = chz.field(
        default="boundary",
        doc="the predicted velocity: the mean velocity over no time, or a head of its own",
    )
    head_block: int | None = chz.field(
        default=None, doc="encoder block that the head reads; None: the last"
    )
    guidance_most: float = chz.field(default=8.0, doc="largest scale that is learned")
    guidance_power: float = chz.field(
        default=1.0, doc="b of the density s^-b of the scales on [1, guidance_most]"
    )

    @chz.validate
    def _choices(self) -> None:
        if self.tangent not in ("boundary", "head"):
            raise ConfigError(f"objective.tangent={self.tangent!r}: choose boundary or head")
        if self.tangent == "boundary" and self.head_block is not None:
            raise ConfigError(
                f"objective.head_block={self.head_block} has no effect with "
                "objective.tangent=boundary; leave it out, or choose objective.tangent=head"
            )
        if not 1 < self.guidance_most < math.inf:
            raise ConfigError(
                f"objective.guidance_most={self.guidance_most}: must be above 1 and finite"
            )
        if not 0 <= self.guidance_power < math.inf:
            raise ConfigError(
                f"objective.guidance_power={self.guidance_power}: must not be negative"
            )

    @property
    def learns_guidance(self) -> bool:
        return True

    @property
    def passes(self) -> float:
        # Beside its own: with the condition, and without.
        return super().passes + 2

    def build(self, facts: Facts, terms: Mapping[str, Term]) -> ImprovedMeanFlow:
        return ImprovedMeanFlow(self, facts, terms)


@dataclass(frozen=True)
class Learned:
    """What the network says of its own velocity, and what follows from it."""

    target: State
    """what V is regressed on"""
    direction: State
    """the predicted velocity, along which du/dt is taken; that of the path where none is needed"""


class ImprovedMeanFlow(MeanVelocity):
    guides_itself = True
    scalars = SCALARS

    def __init__(
        self,
        config: ImprovedMeanFlowConfig,
        facts: Facts,
        terms: Mapping[str, Term],
        predicts_data: bool = False,
    ) -> None:
        """ConfigError where the head is to read a block that is not there."""
        if config.tangent == "head":
            block = facts.blocks if config.head_block is None else config.head_block
            self.own_heads = {HEAD: facts.block(block, "objective.head_block")}
        super().__init__(config, facts, terms, predicts_data)
        self.config = config

    def forward(self, network: Backbone, inputs: Inputs) -> Losses:
        clean, keys = self.clean(inputs), inputs.batch.keys
        where, noise = self.intervals(keys), self.noise(clean, keys)
        noisy = path.leafwise(lambda x, e: path.mix(x, e, where.t), clean, noise)
        told = self.told(keys, where)
        query = Query(noisy, where.t, where.length, inputs.condition, told)
        prediction = query.ask(network, (*self.want, *self.own_heads))
        learned = self.learned(network, query, inputs, self.velocity_of_path(clean, noise, query))
        slope = self.slope(network, query, learned.direction)
        step = self.step(inputs.batch, clean, query, prediction, learned.target, slope)
        losses = self.collected("meanflow", step)
        if not self.own_heads:
            return losses
        found = self.velocity({"image": prediction.heads[HEAD]}, noisy, where.t)["image"]
        own = self.weighed(squares(found, learned.target["image"]))
        parts, weights = {**losses.parts, HEAD: own}, {**losses.weights, HEAD: 1.0}
        return replace(losses, parts=parts, weights=weights)

    def told(self, keys: Tensor, where: Intervals) -> dict[str, Tensor]:
        """Scale and interval of guidance of each sample, functions of (seed, key) alone; where
        r = t there is no limit in time.
        """
        scale, low, high = rng.uniform(self.seed, "guidance", keys, 3).unbind(1)
        config, moving = self.config, where.length > 0
        return numbers(
            power_law(scale, config.guidance_most, config.guidance_power),
            torch.where(moving, MIDDLE * low, 0.0),
            torch.where(moving, MIDDLE + (1 - MIDDLE) * high, 1.0),
        )

    def learned(self, network: Backbone, query: Query, inputs: Inputs, of_path: State) -> Learned:
        """Target and direction, without a gradient. The network runs on the samples that need it:
        with their condition where r < t or the target is guided, with none where it is guided.
        """
        assert query.scalars is not None
        scale, low, high = (query.scalars[name] for name in SCALARS)
        guided = inputs.kept & (query.t >= low) & (query.t <= high)
        # Outside the interval, and where the condition was dropped, the velocity is unguided.
        scale = torch.where(guided, scale, 1.0)
        asked = (guided | (query.interval > 0)).nonzero()[:, 0]
        rows = guided.nonzero()[:, 0]
        own = self._instantaneous(network, query.at(asked), scale[asked])
        direction = with_rows(of_path, asked, own)
        if not len(rows):
            return Learned(of_path, direction)
        bare = replace(query.at(rows), condition=inputs.null.at(rows))
        null = self._instantaneous(network, bare, torch.ones_like(scale[rows]))
        share = 1 - 1 / scale[rows]
        target = {
            name: leaf[rows] + path.along(share, leaf) * (direction[name][rows] - null[name])
            for name, leaf in of_path.items()
        }
        return Learned(with_rows(of_path, rows, target), direction)

    def scalars_of(self, guidance: Guidance) -> dict[str, float]:
        """What the network is told; ConfigError for what it has not learned."""
        most = self.config.guidance_most
        if not 1 <= guidance.scale <= most:
            raise ConfigError(
                f"sampling.guidance.scale={guidance.scale}: this objective learns scales from 1 to "
                f"objective.guidance_most={most:g}"
            )
        if not guidance.low <= MIDDLE <= guidance.high:
            raise ConfigError(
                f"sampling.guidance.low={guidance.low} and sampling.guidance.high={guidance.high}: "
                f"this objective learns intervals that contain t = {MIDDLE}"
            )
        return numbers(guidance.scale, guidance.low, guidance.high)

    def _instantaneous(self, network: Backbone, query: Query, scale: Tensor) -> State:
        """The velocity of every leaf that the network predicts with guidance of `scale` [B] at all
        times. Its head, where it has one, predicts that of the image.
        """
        if not len(scale):
            return query.noisy
        nothing = torch.zeros_like(scale)
        told = numbers(scale, nothing, torch.ones_like(scale))
        with untracked(scale.device):
            found = replace(query, interval=nothing, scalars=told).ask(
                network, tuple(self.own_heads)
            )
            state = dict(found.state)
            if self.own_heads:
                state["image"] = found.heads[HEAD]
            return self.velocity(state, query.noisy, query.t)


def numbers(scale: N, low: N, high: N) -> dict[str, N]:
    """What the network is told, by name."""
    return dict(zip(SCALARS, (scale, low, high), strict=True))
