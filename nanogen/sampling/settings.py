"""How samples are drawn: the `sampling` of a run. docs/sampling.md has the formulas."""

from __future__ import annotations

import chz

from nanogen.errors import ConfigError, suggest
from nanogen.objectives.base import Objective
from nanogen.objectives.internal_guidance import HEAD
from nanogen.rng import SEEDS
from nanogen.sampling import stochastic
from nanogen.sampling.guidance import Auto, Guidance, Internal
from nanogen.sampling.solvers import SOLVERS

SDE = "sde"
FINALS = ("velocity", "data")


@chz.chz
class Sampling:
    solver: str = chz.field(default="euler", doc="euler, heun or sde")
    steps: int = 50
    shift_base: int | None = chz.field(
        default=4096, doc="latent size at which the time grid is uniform; None: always"
    )
    final: str = chz.field(
        default="velocity", doc="last step: along the velocity, or data: to the predicted data"
    )
    diffusion: str = chz.field(
        default=stochastic.DEFAULT, doc="w(t) of solver=sde: 2t, sigma, constant or sin2"
    )
    guidance: Guidance = chz.field(default_factory=Guidance)
    internal: Internal = chz.field(default_factory=Internal)
    auto: Auto = chz.field(default_factory=Auto)
    seed: int = 0
    batch: int = chz.field(default=50, doc="samples at once; changes speed, memory and rounding")

    @chz.validate
    def _ranges(self) -> None:
        known = {"solver": (*SOLVERS, SDE), "final": FINALS, "diffusion": stochastic.DIFFUSIONS}
        for name, names in known.items():
            value = getattr(self, name)
            if value not in names:
                raise ConfigError(f"sampling.{name}={value!r}: {suggest(value, names)}")
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sampling.{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.seed < SEEDS:
            raise ConfigError(f"sampling.seed={self.seed}: must lie in [0, 2^63)")
        if self.shift_base is not None and self.shift_base < 1:
            raise ConfigError(f"sampling.shift_base={self.shift_base}: must be 1 or more, or None")
        if self.diffusion != stochastic.DEFAULT and self.solver != SDE:
            raise ConfigError(
                f"sampling.diffusion={self.diffusion} has no effect with "
                f"sampling.solver={self.solver}; choose sampling.solver=sde, or leave it out"
            )
        if self.internal.null_scale is not None and not self.guidance.on:
            raise ConfigError(
                f"sampling.internal.null_scale={self.internal.null_scale} has no effect with "
                "sampling.guidance.scale=1, which has no null branch; leave it out"
            )

    def check(self, objective: Objective) -> None:
        """ConfigError where a value has no effect on a network of this objective, or asks for what
        it has not learned.
        """
        objective.scalars_of(self.guidance)
        if self.internal != Internal() and HEAD not in objective.wiring.heads:
            raise ConfigError(
                f"sampling.internal.scale={self.internal.scale} needs a network with a head at an "
                "early block; train one with terms.internal=on, or leave sampling.internal out"
            )
        leaves = self.guidance.leaves
        if leaves is None:
            return
        if objective.guides_itself:
            raise ConfigError(
                f"sampling.guidance.leaves={leaves} has no effect on a network that is told one "
                "scale of guidance; leave it out"
            )
        if not objective.leaves:
            raise ConfigError(
                f"sampling.guidance.leaves={leaves} has no effect: nothing but the image is "
                "diffused; train with terms.reg=on, or leave it out"
            )
