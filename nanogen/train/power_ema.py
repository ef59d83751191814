"""Averages of the weights whose length grows with the run: EDM2's power-function averages
(arXiv 2312.02696, section 3).

    average(t) = integral of tau^gamma weight(tau) over [0, t], divided by that of tau^gamma

Time t is in images seen. A relative width, such as 0.05 of the run, says the same as the exponent
gamma. Averages of two widths, kept at moments of a run, hold those of every width between: see
`nanogen.train.posthoc`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

WIDEST = 12**-0.5
"""relative width of the plain mean over the whole run, gamma = 0"""


def exponent(width: float) -> float:
    """gamma of a relative width in (0, WIDEST): the standard deviation of tau / t under the density
    (gamma + 1) tau^gamma, sigma^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).
    """
    inverse = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


class PowerEma:
    """Averages of parameters in float32, for each width by name. A function of the weights after
    each step alone: the initial weights leave with the first.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], widths: Sequence[float]) -> None:
        self.parameters = dict(parameters)
        self.exponents = {width: exponent(width) for width in widths}
        self.values: dict[float, dict[str, Tensor]] = {
            width: {name: p.detach().float().clone() for name, p in self.parameters.items()}
            for width in widths
        }

    @torch.no_grad()
    def update(self, seen: int, batch: int) -> None:
        """Add the present weights as those of the images from `seen - batch` to `seen`.

        value <- beta value + (1 - beta) weight with beta = (1 - batch / seen)^(gamma + 1), which
        gives each step the integral of tau^gamma over its images.
        """
        weights = [p.float() for p in self.parameters.values()]
        for width, gamma in self.exponents.items():
            beta = (1 - batch / seen) ** (gamma + 1)
            torch._foreach_lerp_(list(self.values[width].values()), weights, 1 - beta)

    def named(self) -> dict[str, Tensor]:
        """All averages, by `<width>/<parameter>`."""
        return {
            f"{width:g}/{name}": value
            for width, values in self.values.items()
            for name, value in values.items()
        }

    def restore(self, stored: Mapping[str, Tensor]) -> None:
        """The inverse of `named`; RuntimeError where the averages are others."""
        mine = self.named()
        if stored.keys() != mine.keys():
            raise RuntimeError(f"other averages: {sorted(stored.keys() ^ mine.keys())[:3]}")
        for name, value in stored.items():
            mine[name].copy_(value)
