"""The straight path between data and noise, and the law of the times at which it is trained.

    x_t = (1 - t) x + t e        t = 0 is data x, t = 1 is noise e ~ N(0, I)
    v   = dx_t / dt = e - x

(Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003.) All functions work on tensors `[B,
...]` with t `[B]` and, through `leafwise`, on every leaf of a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nanogen.types import State


def mix(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x + t e."""
    t = along(t, x)
    return (1 - t) * x + t * noise


def velocity(x: Tensor, noise: Tensor) -> Tensor:
    """The velocity of the path, e - x: the exact regression target at every t."""
    return noise - x


def velocity_from_data(x_hat: Tensor, noisy: Tensor, t: Tensor, floor: float) -> Tensor:
    """(x_t - x_hat) / max(t, floor): the velocity that a prediction of the data implies (arXiv
    2511.13720).
    """
    return (noisy - x_hat) / along(t, noisy).clamp(min=floor)


def data_from_velocity(v: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """x_hat = x_t - t v."""
    return noisy - along(t, noisy) * v


def score_from_velocity(v: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """grad log p_t(x_t) = -((1 - t) v + x_t) / t."""
    t = along(t, noisy)
    return -((1 - t) * v + noisy) / t


def shift(u: Tensor, ratio: float) -> Tensor:
    """t = a u / (1 + (a - 1) u): moves times towards noise for a > 1; logit t = logit u + ln a
    exactly.
    """
    return ratio * u / (1 + (ratio - 1) * u)


def shift_ratio(dim: int, base: int = 4096) -> float:
    """a = sqrt(dim / base): larger spaces need more noise for the same loss of signal (arXiv
    2403.03206).
    """
    return math.sqrt(dim / base)


def logit_normal(normal: Tensor, mean: float, std: float) -> Tensor:
    """Times t = sigmoid(mean + std n) from standard normal draws n."""
    return torch.sigmoid(mean + std * normal)


def leafwise(function: Callable[..., Tensor], *states: State) -> State:
    """Apply a function of tensors to the same leaf of each state."""
    return {name: function(*(state[name] for state in states)) for name in states[0]}


def along(t: Tensor, like: Tensor) -> Tensor:
    """t `[B]` as `[B, 1, ...]`, so that it multiplies `like` row by row."""
    return t.view(-1, *[1] * (like.ndim - 1))
