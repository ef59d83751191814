"""Gradients across processes, for training that updates several networks in a step.

    total.backward()                     # each process: its share of the batch
    sum_gradients(trained(network))      # now the gradient of the whole batch, on every process

A parallel wrapper would reduce in each backward pass; here nothing is sent before it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from nanogen import dist


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that receive gradients, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def sum_gradients(parameters: Mapping[str, nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes, in one reduction."""
    if dist.world() == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    summed = dist.sum_across({"gradients": flat})["gradients"]
    pieces = summed.split([gradient.numel() for gradient in gradients])
    for p, piece in zip(parameters.values(), pieces, strict=True):
        p.grad = piece.view_as(p)
