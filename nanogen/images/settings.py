"""How a pipeline of somebody else draws: the `pipeline` of an evaluation."""

from __future__ import annotations

import math
from typing import Literal

import chz
import torch

from nanogen.errors import ConfigError
from nanogen.rng import SEEDS


@chz.chz
class PipelineConfig:
    """What is None is left to the pipeline."""

    steps: int | None = chz.field(default=None, doc="steps of the sampler")
    guidance: float | None = chz.field(default=None, doc="the pipeline's guidance_scale")
    true_guidance: float | None = chz.field(
        default=None, doc="true_cfg_scale, where guidance_scale is told to a distilled network"
    )
    negative: str | None = chz.field(default=None, doc="negative prompt of every sample")
    height: int | None = chz.field(default=None, doc="pixels")
    width: int | None = chz.field(default=None, doc="pixels")
    dtype: Literal["float32", "bfloat16", "float16"] | None = chz.field(
        default=None, doc="of weights and computation; None: bfloat16 on a GPU, float32 without"
    )
    offload: Literal["none", "model", "sequential"] = chz.field(
        default="none", doc="what waits in main memory: each model, or each of their layers"
    )
    revision: str | None = chz.field(default=None, doc="commit, tag or branch on the hub")
    seed: int = 0
    batch: int = chz.field(default=4, doc="samples at once; changes speed, memory and rounding")

    @chz.validate
    def _ranges(self) -> None:
        for name in ("steps", "height", "width", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"pipeline.{name}={value}: must be at least 1")
        for name in ("guidance", "true_guidance"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"pipeline.{name}={value}: must be finite")
        if not 0 <= self.seed < SEEDS:
            raise ConfigError(f"pipeline.seed={self.seed}: must lie in [0, 2^63)")

    def precision(self, device: torch.device) -> torch.dtype:
        """Of weights and computation on a device."""
        usual = "bfloat16" if device.type == "cuda" else "float32"
        return getattr(torch, self.dtype or usual)
