"""Rectified flow: regress the velocity of the straight path, from a network of velocity or data.

    loss = || v - (e - x) ||^2,   v = network(x_t, t)                         for v-prediction
                                  v = (x_t - network(x_t, t)) / max(t, 0.05)  for x-prediction

(x-prediction in the loss of velocities is JiT's, arXiv 2511.13720.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import chz
from torch import Tensor

from nanogen import rng
from nanogen.errors import ConfigError
from nanogen.objectives import path
from nanogen.objectives.base import Facts, Inputs, Objective, Step, Term
from nanogen.registry import register
from nanogen.types import Backbone, LatentSpec, Losses, State

TIME_FLOOR = 0.05


@register("objective", "flow", summary="rectified flow with v- or x-prediction")
@chz.chz
class FlowConfig:
    """Times are logit-normal(mean, std), then shifted by a = sqrt(dim / shift_base).

    The shift adds ln a to the mean and nothing else, so `shift_base=None` with another mean says
    the same law outright.
    """

    prediction: Literal["v", "x"] = "v"
    time_mean: float = 0.0
    time_std: float = 1.0
    shift_base: int | None = chz.field(
        default=4096, doc="latent size at which a = 1; None: no shift"
    )
    time_floor: float = chz.field(default=TIME_FLOOR, doc="least divisor of x-prediction")

    @chz.validate
    def _ranges(self) -> None:
        if self.prediction not in ("v", "x"):
            raise ConfigError(f"objective.prediction={self.prediction!r}: choose v or x")
        if self.time_std <= 0:
            raise ConfigError(f"objective.time_std={self.time_std}: must be above 0")
        if self.shift_base is not None and self.shift_base < 1:
            raise ConfigError(f"objective.shift_base={self.shift_base}: must be 1 or more, or None")
        if not 0 < self.time_floor < 1:
            raise ConfigError(f"objective.time_floor={self.time_floor}: must lie between 0 and 1")
        if self.prediction == "v" and self.time_floor != TIME_FLOOR:
            raise ConfigError(
                f"objective.time_floor={self.time_floor} has no effect with "
                "objective.prediction=v; leave it out, or choose objective.prediction=x"
            )

    def effective_mean(self, latent: LatentSpec) -> float:
        """Mean of logit t after the shift."""
        if self.shift_base is None:
            return self.time_mean
        return self.time_mean + math.log(path.shift_ratio(latent.dim, self.shift_base))

    def build(self, facts: Facts, terms: Mapping[str, Term]) -> Flow:
        return Flow(self, facts, terms)


class Flow(Objective):
    def __init__(self, config: FlowConfig, facts: Facts, terms: Mapping[str, Term]) -> None:
        super().__init__(facts, terms)
        self.config = config
        self.mean = config.effective_mean(facts.latent)

    def forward(self, network: Backbone, inputs: Inputs) -> Losses:
        clean = {"image": inputs.latents}
        for term in self.added.values():
            clean |= term.clean_leaves(inputs.batch)
        keys = inputs.batch.keys
        t = path.logit_normal(
            rng.normal(self.seed, "time", keys, ()), self.mean, self.config.time_std
        )
        noise = {
            name: rng.normal(self.seed, f"noise/{name}", keys, tuple(x.shape[1:]))
            for name, x in clean.items()
        }
        noisy = path.leafwise(lambda x, e: path.mix(x, e, t), clean, noise)
        want = {feature for term in self.added.values() for feature in term.want}
        prediction = network(noisy, t, inputs.condition, want=sorted(want))
        velocity = self.velocity(prediction.state, noisy, t)
        target = path.leafwise(path.velocity, clean, noise)
        return self._collect(
            Step(inputs.batch, clean, noisy, t, prediction, velocity=velocity, target=target)
        )

    def velocity(self, prediction: State, noisy: State, t: Tensor) -> State:
        if self.config.prediction == "v":
            return {name: leaf.float() for name, leaf in prediction.items()}
        floor = self.config.time_floor
        return path.leafwise(
            lambda x_hat, x_t: path.velocity_from_data(x_hat.float(), x_t.float(), t, floor),
            prediction,
            noisy,
        )

    def _collect(self, step: Step) -> Losses:
        """The regression of each leaf, and the loss of each term."""
        errors = path.leafwise(
            lambda v, v_true: (v - v_true).square().flatten(1).mean(1), step.velocity, step.target
        )
        parts, weights = {"flow": errors["image"]}, {"flow": 1.0}
        for name, term in self.added.items():
            for leaf in term.leaves:
                parts[leaf], weights[leaf] = errors[leaf], term.weight
            loss = term.loss(step)
            if loss is not None:
                parts[name], weights[name] = loss, term.weight
        return Losses(parts, weights)
