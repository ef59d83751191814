"""AdamW, for every parameter or for those that are no matrices. `lr` is the rate at schedule
factor 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import chz
import torch
from torch import nn

from nanogen.errors import ConfigError
from nanogen.registry import register


def refuse_unbounded(config: object, *fields: str) -> None:
    """ConfigError where one of these fields of an optimiser is negative or infinite."""
    for name in fields:
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise ConfigError(f"optimiser: {name}={value} must be finite and not negative")


@register("optimiser", "adamw", summary="AdamW (arXiv 1711.05101)")
@chz.chz
class AdamWConfig:
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0

    @chz.validate
    def _ranges(self) -> None:
        refuse_unbounded(self, "lr", "eps", "weight_decay")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimiser: betas={self.betas} must lie in [0, 1)")

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            list(parameters.values()),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True,
        )
