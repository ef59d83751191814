"""Rectified flow: regress the velocity of the straight path, from a network of velocity or data.

    loss = || network(x_t, t) - (e - x) ||^2               for v-prediction
    loss = || network(x_t, t) - x ||^2 / max(t, 0.05)^2    for x-prediction

(x-prediction in the loss of velocities is JiT's, arXiv 2511.13720.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import chz
from torch import Tensor

from nanogen import rng
from nanogen.errors import ConfigError
from nanogen.objectives import path
from nanogen.objectives.base import Facts, Inputs, Objective, Step, Term, squared_error
from nanogen.objectives.times import TimedConfig
from nanogen.registry import register
from nanogen.types import Backbone, Losses, State

TIME_FLOOR = 0.05


@register("objective", "flow", summary="rectified flow with v- or x-prediction")
@chz.chz
class FlowConfig(TimedConfig):
    prediction: Literal["v", "x"] = "v"
    time_floor: float = chz.field(
        default=TIME_FLOOR, doc="least divisor of x-prediction and of a clamped target"
    )
    target: Literal["exact", "clamped"] = chz.field(
        default="exact",
        doc="of v-prediction: e - x, or (x_t - x) / max(t, time_floor) as in the released code, "
        "which learns to leave some noise",
    )

    @chz.validate
    def _ranges(self) -> None:
        if self.prediction not in ("v", "x"):
            raise ConfigError(f"objective.prediction={self.prediction!r}: choose v or x")
        if not 0 < self.time_floor < 1:
            raise ConfigError(f"objective.time_floor={self.time_floor}: must lie between 0 and 1")
        if self.target not in ("exact", "clamped"):
            raise ConfigError(f"objective.target={self.target!r}: choose exact or clamped")
        if self.target == "clamped" and self.prediction == "x":
            raise ConfigError(
                "objective.target=clamped has no effect with objective.prediction=x, whose loss is "
                "|x_hat - x|^2 / max(t, time_floor)^2 either way; leave it out"
            )
        if not self.clamped and self.time_floor != TIME_FLOOR:
            raise ConfigError(
                f"objective.time_floor={self.time_floor} has no effect with "
                "objective.prediction=v and an exact target; leave it out, or choose "
                "objective.prediction=x"
            )

    @property
    def clamped(self) -> bool:
        """Whether `time_floor` bounds the divisor of the target."""
        return self.prediction == "x" or self.target == "clamped"

    def build(self, facts: Facts, terms: Mapping[str, Term]) -> Flow:
        return Flow(self, facts, terms)


class Flow(Objective):
    def __init__(self, config: FlowConfig, facts: Facts, terms: Mapping[str, Term]) -> None:
        super().__init__(facts, terms, predicts_data=config.prediction == "x")
        self.config = config
        self.mean = config.effective_mean(facts.latent)

    def forward(self, network: Backbone, inputs: Inputs) -> Losses:
        clean, keys = self.clean(inputs), inputs.batch.keys
        t = self.times(keys)
        noise = self.noise(clean, keys)
        noisy = path.leafwise(lambda x, e: path.mix(x, e, t), clean, noise)
        prediction = network(noisy, t, inputs.condition, want=self.want)
        target = self._target(clean, noise, t)

        def errors(other: State) -> State:
            found = self.velocity(other, noisy, t)
            return squared_error(found, {name: target[name] for name in found})

        step = Step(
            inputs.batch,
            clean,
            noisy,
            t,
            prediction,
            velocity=self.velocity(prediction.state, noisy, t),
            target=target,
            errors=errors,
            data=prediction.state if self.predicts_data else None,
            times=self.times,
        )
        return self.collected("flow", step)

    def times(self, keys: Tensor) -> Tensor:
        """Times [B] of the samples of some keys, int64 [B]."""
        drawn = rng.normal(self.seed, "time", keys, ())
        return path.logit_normal(drawn, self.mean, self.config.time_std)

    def velocity(self, prediction: State, noisy: State, t: Tensor) -> State:
        if self.config.prediction == "v":
            return {name: leaf.float() for name, leaf in prediction.items()}
        floor = self.config.time_floor
        return {
            name: path.velocity_from_data(x_hat.float(), noisy[name].float(), t, floor)
            for name, x_hat in prediction.items()
        }

    def _target(self, clean: State, noise: State, t: Tensor) -> State:
        """What the velocity is regressed on. That of x-prediction is clamped as its velocity is, so
        that an exact prediction has no loss at any t (arXiv 2511.13720).
        """
        if not self.config.clamped:
            return path.leafwise(path.velocity, clean, noise)
        floor = self.config.time_floor
        return path.leafwise(
            lambda x, e: path.velocity_from_data(x, path.mix(x, e, t), t, floor), clean, noise
        )
