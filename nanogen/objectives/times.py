"""The law of the times that an objective is trained at.

    t = a u / (1 + (a - 1) u),   logit u ~ N(mean, std^2),   a = sqrt(latent size / shift_base)

The shift adds ln a to the mean of logit t and nothing else, so `shift_base=None` with another mean
says the same law outright.
"""

from __future__ import annotations

import math

import chz

from nanogen.errors import ConfigError
from nanogen.objectives import path
from nanogen.objectives.base import ObjectiveConfig
from nanogen.types import LatentSpec


@chz.chz
class TimedConfig(ObjectiveConfig):
    """An objective with such times."""

    time_mean: float = 0.0
    time_std: float = 1.0
    shift_base: int | None = chz.field(
        default=4096, doc="latent size at which a = 1; None: no shift"
    )

    @chz.validate
    def _times(self) -> None:
        if not math.isfinite(self.time_mean):
            raise ConfigError(f"objective.time_mean={self.time_mean}: must be finite")
        if not 0 < self.time_std < math.inf:
            raise ConfigError(f"objective.time_std={self.time_std}: must be above 0 and finite")
        if self.shift_base is not None and self.shift_base < 1:
            raise ConfigError(f"objective.shift_base={self.shift_base}: must be 1 or more, or None")

    def effective_mean(self, latent: LatentSpec) -> float:
        """Mean of logit t after the shift."""
        if self.shift_base is None:
            return self.time_mean
        return self.time_mean + math.log(path.shift_ratio(latent.dim, self.shift_base))
