"""AdamW, for every parameter or for those that are no matrices. `lr` is the rate at schedule
factor 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import chz
import torch
from torch import nn

from nanogen.errors import ConfigError
from nanogen.registry import register


@register("optimiser", "adamw", summary="AdamW (arXiv 1711.05101)")
@chz.chz
class AdamWConfig:
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0

    @chz.validate
    def _ranges(self) -> None:
        if min(self.lr, self.eps, self.weight_decay) < 0:
            raise ConfigError("optimiser: lr, eps and weight_decay must not be negative")
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
