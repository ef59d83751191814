"""How far tokens are from those of a frozen encoder: what REPA and P-DINO minimise.

DISTANCES["cosine"](found, wanted)     # two [B, N, D] in float32 -> [B]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor
from torch.nn import functional

Distance = Literal["mse", "cosine"]


def squared_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean square over tokens and channels, [B].

    Of tokens of mean 0 and variance 1 it is twice one minus their mean correlation.
    """
    return (found - wanted).square().mean((1, 2))


def cosine_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """One minus the mean cosine of tokens, [B] in [0, 2]."""
    return 1 - functional.cosine_similarity(found, wanted, dim=-1).mean(1)


DISTANCES: Mapping[Distance, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": squared_distance,
    "cosine": cosine_distance,
}
