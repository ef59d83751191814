"""From requests to images: seeds -> noise -> solved flow -> decoded, one batch at a time.

The noise of a sample is a function of (sampling seed, index of the sample). So sample 7 is the
same picture in a batch of 1 or of 100, on one process or on many, during training or after it, but
for the rounding of sums: a grey level here and there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import chz
import torch
from torch import Tensor

from nanogen import rng
from nanogen.errors import ConfigError, suggest
from nanogen.objectives.base import Objective
from nanogen.objectives.path import shift_ratio
from nanogen.sampling.guidance import Guidance, guided
from nanogen.sampling.schedule import times
from nanogen.sampling.solvers import SOLVERS, Field
from nanogen.types import Backbone, Condition, Conditioner, Request, State, Tokenizer, to_uint8


@chz.chz
class Sampling:
    solver: str = "euler"
    steps: int = 50
    shift_base: int | None = chz.field(
        default=4096, doc="latent size at which the time grid is uniform; None: always"
    )
    guidance: Guidance = chz.field(default_factory=Guidance)
    seed: int = 0
    batch: int = chz.field(default=50, doc="samples at once; changes speed, memory and rounding")

    @chz.validate
    def _ranges(self) -> None:
        if self.solver not in SOLVERS:
            raise ConfigError(f"sampling.solver={self.solver!r}: {suggest(self.solver, SOLVERS)}")
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sampling.{name}={getattr(self, name)}: must be at least 1")
        if self.shift_base is not None and self.shift_base < 1:
            raise ConfigError(f"sampling.shift_base={self.shift_base}: must be 1 or more, or None")


@dataclass(frozen=True)
class Sampler:
    """Everything that turns requests into images."""

    backbone: Backbone
    objective: Objective
    conditioner: Conditioner
    tokenizer: Tokenizer
    leaves: Mapping[str, int]
    """widths of the leaves beside the image"""
    sampling: Sampling
    device: torch.device

    def stream(self, request: Request) -> Iterator[tuple[Request, Tensor]]:
        """Batches of requests with their images, uint8 [B, 3, H, W], on the device."""
        for start in range(0, len(request), self.sampling.batch):
            rows = request.rows(start, start + self.sampling.batch)
            yield rows, to_uint8(self.draw(rows))

    @torch.no_grad()
    def draw(self, request: Request) -> Tensor:
        """Images of one batch, float [B, 3, H, W] in [0, 1]."""
        condition = self.conditioner.encode(request).to(self.device)
        null = self.conditioner.null(len(request)).to(self.device)
        field = self._field(condition)
        if not self.objective.guides_itself:
            field = guided(field, self._field(null), self.sampling.guidance)
        latent = self.tokenizer.spec
        base = self.sampling.shift_base
        grid = times(self.sampling.steps, 1.0 if base is None else shift_ratio(latent.dim, base))
        state = SOLVERS[self.sampling.solver](field, self.noise(request.indices), grid)
        return self.tokenizer.decode(state["image"]).float().clamp(0, 1)

    def noise(self, indices: Tensor) -> State:
        """The state at t = 1 of samples `indices` [B]."""
        latent, keys = self.tokenizer.spec, indices.to(self.device)
        shapes: dict[str, tuple[int, ...]] = {
            "image": (latent.channels, latent.height, latent.width)
        }
        shapes |= {leaf: (width,) for leaf, width in self.leaves.items()}
        return {
            leaf: rng.normal(self.sampling.seed, f"sample/{leaf}", keys, shape)
            for leaf, shape in shapes.items()
        }

    def _field(self, condition: Condition) -> Field:
        objective, told = self.objective, self.objective.scalars_of(self.sampling.guidance)

        def rows(value: float) -> Tensor:
            return torch.full((len(condition),), value, device=self.device)

        def field(state: State, t: float, to: float) -> State:
            prediction = self.backbone(
                state,
                rows(t),
                condition,
                interval=rows(t - to) if objective.interval else None,
                scalars={name: rows(value) for name, value in told.items()} or None,
            )
            return objective.velocity(prediction.state, state, rows(t))

        return field
