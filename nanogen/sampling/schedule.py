"""The times at which a solver evaluates the network: a uniform grid from 1 (noise) to 0 (data),
shifted.

u_i = 1 - i / n,   t_i = a u_i / (1 + (a - 1) u_i),   i = 0 .. n
"""

from __future__ import annotations


def times(steps: int, ratio: float = 1.0) -> list[float]:
    """n + 1 times from 1.0 to 0.0; `ratio` is the shift a. Plain floats, so that no solver waits
    for a device.
    """
    grid = [1 - i / steps for i in range(steps + 1)]
    return [ratio * u / (1 + (ratio - 1) * u) for u in grid]
