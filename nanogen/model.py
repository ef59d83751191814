"""What is trained: the backbone, the heads of the terms, and the conditioner where it learns.

One module with one forward, so that a parallel wrapper, an optimiser, an average and a checkpoint
each see all of it. Frozen networks (text encoders, teachers, tokenizers) stay outside.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nanogen import rng
from nanogen.objectives.base import Inputs, Objective
from nanogen.types import Batch, Condition, Conditioner


class Model(nn.Module):
    def __init__(
        self, backbone: nn.Module, objective: Objective, conditioner: Conditioner, dropout: float
    ) -> None:
        """`dropout`: share of samples whose condition is replaced by the null condition."""
        super().__init__()
        self.backbone = backbone
        self.objective = objective
        self.learned_conditioner = conditioner if getattr(conditioner, "trainable", False) else None
        # A frozen conditioner must not become a submodule: a tuple hides it.
        self._conditioner = (conditioner,)
        self.dropout = dropout

    @property
    def conditioner(self) -> Conditioner:
        return self._conditioner[0]

    @property
    def leaves(self) -> Mapping[str, int]:
        """Widths of the leaves that terms add to the state."""
        return self.objective.leaves

    def forward(
        self, batch: Batch, latents: Tensor, condition: Condition | None
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Losses `[B]` by name, and their weights, 0 of what is only logged; `condition` None means
        that the conditioner learns.
        """
        device = latents.device
        if condition is None:
            condition = self.conditioner.encode(batch).to(device)
        null = self.conditioner.null(len(batch)).to(device)
        kept = rng.uniform(self.objective.seed, "dropout", batch.keys, 1)[:, 0] >= self.dropout
        condition = condition.where(kept, null)  # ty: ignore[invalid-argument-type]
        inputs = Inputs(batch, latents, condition, kept, null)
        losses = self.objective(self.backbone, inputs)
        weights = dict(losses.weights) | dict.fromkeys(losses.logged, 0.0)
        return dict(losses.parts) | dict(losses.logged), weights

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that receive gradients, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def to_device(batch: Batch, device: torch.device) -> Batch:
    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device, non_blocking=True)

    return Batch(
        moved(batch.pixels),
        batch.keys.to(device),
        None if batch.labels is None else batch.labels.to(device),
        batch.texts,
        moved(batch.raw),
    )
