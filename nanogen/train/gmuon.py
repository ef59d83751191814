"""GMuon, the optimiser that RAEv2 trains with: Muon with the polynomials of Polar Express
(arXiv 2505.16932).

The released code computes on matrices X; its "Gram" form, which iterates on X X^T, is the same
update up to rounding. `torch.optim.Muon` cannot express it: it takes one polynomial for all steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import chz
import torch
from torch import nn

from nanogen.errors import ConfigError
from nanogen.registry import register
from nanogen.train.adamw import AdamWConfig
from nanogen.train.momentum import MomentumConfig, OrthogonalMomentum, matrices_of_blocks
from nanogen.train.orthogonal import POLAR_EXPRESS


@register("optimiser", "gmuon", summary="Muon with the polynomials of Polar Express")
@chz.chz
class GMuonConfig(MomentumConfig):
    """Updates have the root mean square of AdamW's, so `lr` is on the scale of AdamW's rate.

    The released code overwrites the rate of its AdamW group with that of the matrices; here each
    keeps its own.
    """

    lr: float = 2e-4
    adamw: AdamWConfig = chz.field(default_factory=AdamWConfig)
    split: Literal["blocks", "matrices"] = chz.field(
        default="blocks",
        doc="what is orthogonalised: matrices of the transformer blocks, or every parameter with "
        "two axes, tables of classes, learned tokens, heads and modulations included, as in the "
        "released code",
    )
    precision: Literal["auto", "fp16", "fp32"] = chz.field(
        default="auto", doc="of the iterations; auto: fp16 on CUDA, as released, fp32 elsewhere"
    )

    @chz.validate
    def _choices(self) -> None:
        if self.split not in ("blocks", "matrices"):
            raise ConfigError(f"optimiser.split={self.split!r}: choose blocks or matrices")
        if self.precision not in ("auto", "fp16", "fp32"):
            raise ConfigError(f"optimiser.precision={self.precision!r}: choose auto, fp16 or fp32")

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """ConfigError where there is nothing to orthogonalise."""
        if self.split == "matrices":
            matrices = [name for name, p in parameters.items() if p.ndim == 2]
        else:
            matrices = matrices_of_blocks(parameters)
        half = self.precision == "fp16" or (
            self.precision == "auto" and all(p.is_cuda for p in parameters.values())
        )
        return OrthogonalMomentum(self, parameters, matrices, POLAR_EXPRESS, half)
