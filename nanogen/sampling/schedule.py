"""The times at which a solver evaluates the network: from 1 (noise) to 0 (data), shifted.

t_i = a u_i / (1 + (a - 1) u_i)         u: a uniform grid, a: the shift of the latent space
"""

from __future__ import annotations

SETTLED = 0.04
"""time below which a stochastic solver adds no noise: the score grows as 1 / t (arXiv 2410.06940)
"""


def times(steps: int, ratio: float = 1.0) -> list[float]:
    """n + 1 times from 1.0 to 0.0; `ratio` is the shift a. Plain floats, so that no solver waits
    for a device, and each k / n the nearest there is: an interval of guidance may begin or end
    there, which 1 - i / n would miss by a rounding.
    """
    return [_shifted((steps - i) / steps, ratio) for i in range(steps + 1)]


def stochastic_times(steps: int, ratio: float = 1.0) -> list[float]:
    """n + 1 times: n from 1.0 to 0.04, evenly spaced where a = 1, and 0.0.

    The grid of REPA's sampler (arXiv 2410.06940). A shift moves the times between its ends, which
    stay where they are.
    """
    last = SETTLED / (ratio + (1 - ratio) * SETTLED)
    grid = [1 - (1 - last) * i / max(steps - 1, 1) for i in range(steps)]
    return [*(_shifted(u, ratio) for u in grid), 0.0]


def _shifted(u: float, ratio: float) -> float:
    return ratio * u / (1 + (ratio - 1) * u)
