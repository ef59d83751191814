"""Pixel MeanFlow: improved MeanFlow of a network that predicts the data (arXiv 2601.22158).

    u = (z - x_hat) / max(t, 0.05),     regressed on (z - x) / max(t, 0.05)

The mean velocity of a long step is far from any image, z - t u is near one: a network that has
little width for each pixel can predict that. Since x_hat looks like an image, perceptual terms
apply; their losses are weighed like that of the velocity, L / sg(L + epsilon)^p.

    nanogen train PRESET tokenizer=pixels objective=pixel-meanflow terms.lpips=on
        terms.lpips.weight=0.4 terms.lpips.threshold=0.8 sampling.steps=1

The authors use noise of twice the size. That is noise of size 1 at times whose logit is ln 2
larger, which the default mean accounts for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import chz
import torch
from torch import Tensor

from nanogen import rng
from nanogen.errors import ConfigError
from nanogen.objectives import path
from nanogen.objectives.base import Facts, Step, Term
from nanogen.objectives.flow import TIME_FLOOR
from nanogen.objectives.gate import GatedTerm
from nanogen.objectives.improved_meanflow import ImprovedMeanFlow, ImprovedMeanFlowConfig
from nanogen.objectives.mean_velocity import Query, clamped_velocity, wide
from nanogen.registry import register
from nanogen.types import Losses, State


@register(
    "objective", "pixel-meanflow", summary="improved MeanFlow of a network that predicts the data"
)
@chz.chz
class PixelMeanFlowConfig(ImprovedMeanFlowConfig):
    """Defaults are those of the authors' largest model, with noise of size 1."""

    time_mean: float = 0.69
    time_std: float = 0.8
    shift_base: int | None = chz.field(
        default=None, doc="latent size at which a = 1; None: no shift"
    )
    instants: Literal["single", "later"] = chz.field(
        default="single", doc="t where r = t: one draw, or the later of the two"
    )
    uniform: float = chz.field(default=0.1, doc="share of samples with times uniform in [0, 1]")
    time_floor: float = chz.field(default=TIME_FLOOR, doc="least divisor of the velocity")

    @chz.validate
    def _times(self) -> None:
        if not 0 <= self.uniform <= 1:
            raise ConfigError(f"objective.uniform={self.uniform}: must lie in [0, 1]")
        if not 0 < self.time_floor < 1:
            raise ConfigError(f"objective.time_floor={self.time_floor}: must lie between 0 and 1")

    def build(self, facts: Facts, terms: Mapping[str, Term]) -> PixelMeanFlow:
        return PixelMeanFlow(self, facts, terms)


class PixelMeanFlow(ImprovedMeanFlow):
    def __init__(
        self, config: PixelMeanFlowConfig, facts: Facts, terms: Mapping[str, Term]
    ) -> None:
        """ConfigError for a term whose own scale would be lost in its weight."""
        super().__init__(config, facts, terms, predicts_data=True)
        self.uniform, self.floor = config.uniform, config.time_floor
        for name, term in self.added.items():
            if isinstance(term, GatedTerm) and term.by_gated:
                raise ConfigError(
                    f"terms.{name}.normalise_by=gated has little effect with "
                    "objective=pixel-meanflow, which divides that loss by its size; choose batch"
                )

    def velocity(self, prediction: State, noisy: State, t: Tensor) -> State:
        return {
            name: path.velocity_from_data(wide(x_hat), wide(noisy[name]), t, self.floor)
            for name, x_hat in prediction.items()
        }

    def velocity_of_path(self, clean: State, noise: State, query: Query) -> State:
        return clamped_velocity(clean, query, self.floor)

    def ends(self, keys: Tensor) -> Tensor:
        share, *times = rng.uniform(self.seed, "time/uniform", keys, 3).unbind(1)
        flat = torch.stack(times, dim=1)
        return torch.where(share[:, None] < self.uniform, flat, super().ends(keys))

    def collected(self, name: str, step: Step) -> Losses:
        losses = super().collected(name, step)
        perceptual = {name for name, term in self.added.items() if term.needs_data}
        parts = {
            name: self.weighed(part) if name in perceptual else part
            for name, part in losses.parts.items()
        }
        return replace(losses, parts=parts)
