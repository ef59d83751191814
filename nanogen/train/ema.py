"""The exponential moving average of the trained weights: what is sampled and published."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages of parameters, by name, in float32. Starts at the weights it is given.

    Build it after weights are the same on every process: an average of other weights takes
    thousands of steps to fade.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], decay: float, warmup: bool = False
    ) -> None:
        """`warmup`: in early steps average over a tenth of the past only, so that the initial
        weights fade however short the run is.
        """
        self.parameters = dict(parameters)
        self.decay, self.warmup = decay, warmup
        self.values: dict[str, Tensor] = {
            name: p.detach().float().clone() for name, p in self.parameters.items()
        }

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """value <- decay * value + (1 - decay) * weight, after optimiser step number `steps`."""
        decay = min(self.decay, (1 + steps) / (10 + steps)) if self.warmup else self.decay
        weights = [p.float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.values.values()), weights, 1 - decay)

    @contextmanager
    def applied(self) -> Generator[None, None, None]:
        """Within, the model holds the averages; afterwards its own weights again, bit for bit."""
        own = {name: p.data for name, p in self.parameters.items()}
        try:
            for name, p in self.parameters.items():
                p.data = self.values[name].to(p.dtype)
            yield
        finally:
            for name, p in self.parameters.items():
                p.data = own[name]
