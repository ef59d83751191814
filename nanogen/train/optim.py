"""Optimisers. A config builds a torch optimiser from named parameters; `lr` is the rate at
schedule factor 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import chz
import torch
from torch import Tensor, nn

from nanogen.errors import ConfigError
from nanogen.registry import register


@register("optimiser", "adamw", summary="AdamW (arXiv 1711.05101)")
@chz.chz
class AdamWConfig:
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0

    @chz.validate
    def _ranges(self) -> None:
        if min(self.lr, self.eps, self.weight_decay) < 0:
            raise ConfigError("optimiser: lr, eps and weight_decay must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimiser: betas={self.betas} must lie in [0, 1)")

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            list(parameters.values()),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True,
        )


@register("optimiser", "muon", summary="Muon for the matrices of the blocks, AdamW for the rest")
@chz.chz
class MuonConfig:
    """Momentum orthogonalised by five Newton-Schulz steps (Jordan et al. 2024,
    github.com/KellerJordan/Muon).

    Embeddings, heads, modulations, norms and biases are AdamW's: their rows are not directions of
    one space.
    """

    lr: float = 0.015
    momentum: float = 0.95
    weight_decay: float = 0.0
    adamw: AdamWConfig = chz.field(default_factory=lambda: AdamWConfig(lr=2e-3))

    @chz.validate
    def _ranges(self) -> None:
        if min(self.lr, self.weight_decay) < 0 or not 0 <= self.momentum < 1:
            raise ConfigError(
                "optimiser: lr and weight_decay must not be negative, momentum must lie in [0, 1)"
            )

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        matrices = {
            name: p
            for name, p in parameters.items()
            if p.ndim == 2 and ".blocks." in f".{name}" and "adaln" not in name
        }
        rest = {name: p for name, p in parameters.items() if name not in matrices}
        return Muon(self, list(matrices.values()), self.adamw.build(rest))


class Muon(torch.optim.Optimizer):
    """Muon over matrices, with the AdamW of all other parameters inside: one optimiser to the loop.

    Matrices of one shape are orthogonalised together, as one batched product.
    """

    def __init__(
        self, config: MuonConfig, matrices: list[nn.Parameter], adamw: torch.optim.Optimizer
    ) -> None:
        self.adamw = adamw
        super().__init__(
            matrices,
            {"lr": config.lr, "momentum": config.momentum, "weight_decay": config.weight_decay},
        )
        # One list of groups for the learning rate, one state for the checkpoint.
        self.param_groups = [*self.param_groups, *adamw.param_groups]
        adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # ty: ignore[incompatible-method-override]
        group = self.param_groups[0]
        alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                alike[p.shape].append(p)
        for shape, matrices in alike.items():
            updates = orthogonalised(
                torch.stack([self._ahead(p, group["momentum"]) for p in matrices])
            )
            size = 0.2 * max(shape) ** 0.5  # update RMS of 0.2, that of AdamW (arXiv 2502.16982)
            for p, update in zip(matrices, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * size)
        self.adamw.step()

    def _ahead(self, p: nn.Parameter, decay: float) -> Tensor:
        """Update the momentum of a matrix; the gradient one momentum step ahead (Nesterov)."""
        assert p.grad is not None
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].mul_(decay).add_(p.grad)
        return p.grad.add(state["momentum"], alpha=decay)


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """[n, rows, columns] -> the nearest (semi-)orthogonal matrices, roughly: singular values in
    about [0.7, 1.2].
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x
