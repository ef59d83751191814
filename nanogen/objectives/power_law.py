"""Scales of guidance to train at, where the network is told the scale."""

from __future__ import annotations

from torch import Tensor


def power_law(uniform: Tensor, most: float, power: float) -> Tensor:
    """Draws in [1, most] with a density in proportion to x^-power, from uniform ones in (0, 1)."""
    rest = 1 - power
    if abs(rest) < 1e-6:
        return most**uniform
    return (1 + uniform * (most**rest - 1)) ** (1 / rest)
