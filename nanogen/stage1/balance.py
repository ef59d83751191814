"""Two losses that pull equally hard on one layer: rest + weight * balance * adversarial.

    balance = balanced_backward([piece], parameters, last, weight=0.75)    # gradients are in .grad

`balance` is that of the whole batch, over all processes and micro-batches, so that no result
depends on how a batch is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanogen import dist
from nanogen.stage1.adversarial import adaptive_weight


@dataclass(frozen=True)
class Sides:
    """The two losses of a part of a batch: scalars that add up over parts."""

    rest: Tensor
    adversarial: Tensor


def balanced_backward(
    pieces: Sequence[Callable[[], Sides]],
    parameters: Mapping[str, nn.Parameter],
    last: nn.Parameter,
    weight: float,
) -> Tensor:
    """Add this process's share of the gradients of both sides to `.grad`; returns the balance.

    `pieces` compute the sides of one micro-batch each; `last` is the parameter at which gradients
    are compared. A collective call.
    """
    if len(pieces) == 1:
        return _at_once(pieces[0](), last, weight)
    return _apart(pieces, parameters, last, weight)


def _at_once(sides: Sides, last: nn.Parameter, weight: float) -> Tensor:
    """One pass through the network, after two through its last layer."""
    (rest,) = torch.autograd.grad(sides.rest, last, retain_graph=True)
    (adversarial,) = torch.autograd.grad(sides.adversarial, last, retain_graph=True)
    balance = _balance(rest, adversarial)
    (sides.rest + weight * balance * sides.adversarial).backward()
    return balance


def _apart(
    pieces: Sequence[Callable[[], Sides]],
    parameters: Mapping[str, nn.Parameter],
    last: nn.Parameter,
    weight: float,
) -> Tensor:
    """The balance is known only after the last piece, so that until then gradients of the two sides
    are kept apart: two passes through the network.
    """
    pulls = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for piece in pieces:
        sides = piece()
        found = torch.autograd.grad(
            sides.adversarial, list(parameters.values()), retain_graph=True, allow_unused=True
        )
        for pull, gradient in zip(pulls.values(), found, strict=True):
            if gradient is not None:
                pull += gradient
        sides.rest.backward()
    assert last.grad is not None
    balance = _balance(last.grad, next(pulls[n] for n, p in parameters.items() if p is last))
    for name, p in parameters.items():
        pull = pulls[name] * (weight * balance)
        p.grad = pull if p.grad is None else p.grad.add_(pull)
    return balance


def _balance(rest: Tensor, adversarial: Tensor) -> Tensor:
    summed = dist.sum_across({"rest": rest.float(), "adversarial": adversarial.float()})
    return adaptive_weight(summed["rest"], summed["adversarial"])
