"""Muon (Jordan et al. 2024, github.com/KellerJordan/Muon), batched and shared by all processes.

`torch.optim.Muon` takes the same step to rounding, but matrix by matrix, in bfloat16 whatever the
device, and all of it on every process.
"""

from __future__ import annotations

from collections.abc import Mapping

import chz
import torch
from torch import nn

from nanogen.registry import register
from nanogen.train.momentum import MomentumConfig, OrthogonalMomentum, matrices_of_blocks
from nanogen.train.orthogonal import JORDAN


@register("optimiser", "muon", summary="Muon for the matrices of the blocks, AdamW for the rest")
@chz.chz
class MuonConfig(MomentumConfig):
    """Momentum orthogonalised by five equal Newton-Schulz steps."""

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return OrthogonalMomentum(self, parameters, matrices_of_blocks(parameters), JORDAN)
