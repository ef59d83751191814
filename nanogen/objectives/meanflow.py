"""MeanFlow: one network evaluation from noise to data, trained from scratch (arXiv 2505.13447).

    V = u + h sg(du/dt) is regressed on v        (see mean_velocity.py)

Guidance can be learned instead of paid for when sampling: the target becomes a mixture of the
path's velocity and of what the network itself says of the velocity,

    v = omega (e - x) + (1 - omega - kappa) u(z, t, t | null) + kappa u(z, t, t | condition)

whose fixed point is guidance of scale omega / (1 - kappa). The defaults, omega 1 and kappa 0, learn
no guidance.

    nanogen train PRESET objective=meanflow objective.kappa=0.5
        sampling.steps=1 sampling.guidance.scale=1
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import chz
import torch
from torch import Tensor

from nanogen.errors import ConfigError
from nanogen.objectives import path
from nanogen.objectives.base import Facts, Inputs, Term
from nanogen.objectives.flow import TIME_FLOOR
from nanogen.objectives.mean_velocity import (
    MeanVelocity,
    MeanVelocityConfig,
    Query,
    clamped_velocity,
    untracked,
    with_rows,
)
from nanogen.registry import register
from nanogen.types import Backbone, Condition, Losses, State

if TYPE_CHECKING:
    from nanogen.sampling.guidance import Guidance


@register("objective", "meanflow", summary="mean velocities, for sampling in one or two steps")
@chz.chz
class MeanFlowConfig(MeanVelocityConfig):
    """The released configs have mixing=step and target=clamped; the authors' code instants=later.

    `guidance_low` and `guidance_high` bound the times t at which the target is guided.
    """

    mixing: Literal["sample", "step"] = chz.field(
        default="sample", doc="whether each sample or each optimiser step has r = t or not"
    )
    omega: float = chz.field(default=1.0, doc="share of the path's velocity in the guided target")
    kappa: float = chz.field(default=0.0, doc="share of the predicted velocity in it")
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    target: Literal["exact", "clamped"] = chz.field(
        default="exact",
        doc="e - x, or (x_t - x) / max(t, time_floor) as in the released code, which learns to "
        "leave some noise",
    )
    time_floor: float = chz.field(default=TIME_FLOOR, doc="least divisor of a clamped target")

    @chz.validate
    def _choices(self) -> None:
        if self.mixing not in ("sample", "step"):
            raise ConfigError(f"objective.mixing={self.mixing!r}: choose sample or step")
        if self.target not in ("exact", "clamped"):
            raise ConfigError(f"objective.target={self.target!r}: choose exact or clamped")
        if not 0 < self.time_floor < 1:
            raise ConfigError(f"objective.time_floor={self.time_floor}: must lie between 0 and 1")
        if self.target == "exact" and self.time_floor != TIME_FLOOR:
            raise ConfigError(
                f"objective.time_floor={self.time_floor} has no effect with an exact target; leave "
                "it out, or choose objective.target=clamped"
            )
        if self.mixing == "step" and self.instantaneous in (0, 1):
            raise ConfigError(
                f"objective.mixing=step has no effect with objective.instantaneous="
                f"{self.instantaneous}; leave it out"
            )

    @chz.validate
    def _guidance(self) -> None:
        if not 0 < self.omega < math.inf:
            raise ConfigError(f"objective.omega={self.omega}: must be above 0 and finite")
        if not 0 <= self.kappa < 1:
            raise ConfigError(f"objective.kappa={self.kappa}: must lie in [0, 1)")
        low, high = self.guidance_low, self.guidance_high
        if not 0 <= low < high <= 1:
            raise ConfigError(
                f"objective.guidance_low={low} and objective.guidance_high={high}: need "
                "0 <= low < high <= 1"
            )
        if not self.learns_guidance and (low, high) != (0, 1):
            raise ConfigError(
                "objective.guidance_low and objective.guidance_high have no effect with "
                "objective.omega=1 and objective.kappa=0, which learn no guidance; leave them out"
            )

    @property
    def learns_guidance(self) -> bool:
        return self.omega != 1 or self.kappa != 0

    @property
    def scale(self) -> float:
        """Of the guidance that is learned: the fixed point of the target."""
        return self.omega / (1 - self.kappa)

    @property
    def shares(self) -> dict[str, float]:
        """Of the predicted velocities in the target, without a condition and with it."""
        shares = {"null": 1 - self.omega - self.kappa, "own": self.kappa}
        return {branch: share for branch, share in shares.items() if abs(share) > 1e-9}

    @property
    def passes(self) -> float:
        return super().passes + len(self.shares)

    def build(self, facts: Facts, terms: Mapping[str, Term]) -> MeanFlow:
        return MeanFlow(self, facts, terms)


class MeanFlow(MeanVelocity):
    def __init__(self, config: MeanFlowConfig, facts: Facts, terms: Mapping[str, Term]) -> None:
        super().__init__(config, facts, terms)
        self.config = config
        self.batch = facts.batch
        self.guides_itself = config.learns_guidance

    def forward(self, network: Backbone, inputs: Inputs) -> Losses:
        clean, keys = self.clean(inputs), inputs.batch.keys
        where, noise = self.intervals(keys), self.noise(clean, keys)
        noisy = path.leafwise(lambda x, e: path.mix(x, e, where.t), clean, noise)
        query = Query(noisy, where.t, where.length, inputs.condition)
        prediction = query.ask(network, tuple(self.want))
        target = self.guided(network, query, inputs, self.velocity_of_path(clean, noise, query))
        slope = self.slope(network, query, target)
        step = self.step(inputs.batch, clean, query, prediction, target, slope)
        return self.collected("meanflow", step)

    def decided_by(self, keys: Tensor) -> Tensor:
        # Step k of the optimiser sees the positions k batch to (k + 1) batch - 1 of the stream.
        return keys if self.config.mixing == "sample" else keys // self.batch

    def guided(self, network: Backbone, query: Query, inputs: Inputs, of_path: State) -> State:
        """The target: the guided velocity, and that of the path where the condition was dropped or
        t lies outside the interval. No gradient.

        The network runs on the guided samples alone, and not on a branch whose share is 0.
        """
        config = self.config
        if not config.learns_guidance:
            return of_path
        inside = (query.t >= config.guidance_low) & (query.t <= config.guidance_high)
        rows = (inputs.kept & inside).nonzero()[:, 0]
        if not len(rows):
            return of_path
        asked = query.at(rows)
        conditions = {"null": inputs.null.at(rows), "own": asked.condition}
        mixed = {name: config.omega * leaf[rows] for name, leaf in of_path.items()}
        for branch, share in config.shares.items():
            found = self._instantaneous(network, asked, conditions[branch])
            mixed = {name: leaf + share * found[name] for name, leaf in mixed.items()}
        return with_rows(of_path, rows, mixed)

    def scalars_of(self, guidance: Guidance) -> dict[str, float]:
        """None; ConfigError where guidance would come on top of that which was learned."""
        if self.config.learns_guidance and guidance.scale != 1:
            raise ConfigError(
                f"sampling.guidance.scale={guidance.scale}: this network has learned guidance of "
                f"scale {self.config.scale:g} (objective.omega, objective.kappa); leave it at 1"
            )
        return {}

    def _instantaneous(self, network: Backbone, query: Query, condition: Condition) -> State:
        """The velocity that the network predicts: its mean over no time."""
        still = Query(query.noisy, query.t, torch.zeros_like(query.t), condition)
        with untracked(query.t.device):
            return self.velocity(still.ask(network).state, query.noisy, query.t)

    def velocity_of_path(self, clean: State, noise: State, query: Query) -> State:
        if self.config.target == "exact":
            return super().velocity_of_path(clean, noise, query)
        return clamped_velocity(clean, query, self.config.time_floor)
