"""Momentum that is orthogonalised before it is followed, for matrices; AdamW for all the rest.

    M <- mu M + G,    W <- (1 - lr decay) W - lr 0.2 sqrt(max(rows, columns)) orthogonal(G + mu M)

What Muon and its variants share. With several processes each orthogonalises its share of the
matrices, about as costly as that of any other, and sends the updates around: every process applies
the same ones, in the order of the owners. Momentum is elementwise, cheap and on every process, so a
checkpoint is the same whatever the number of processes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import chz
import torch
from torch import Tensor, nn

from nanogen import dist
from nanogen.errors import ConfigError
from nanogen.train.adamw import AdamWConfig, refuse_unbounded
from nanogen.train.orthogonal import Quintic, orthogonalised


@chz.chz
class MomentumConfig:
    """The fields that Muon and its variants share. `adamw` keeps a learning rate of its own; a
    schedule multiplies both by one factor.
    """

    lr: float = 0.015
    momentum: float = 0.95
    weight_decay: float = 0.0
    adamw: AdamWConfig = chz.field(default_factory=lambda: AdamWConfig(lr=2e-3))

    @chz.validate
    def _ranges(self) -> None:
        refuse_unbounded(self, "lr", "weight_decay")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"optimiser: momentum={self.momentum} must lie in [0, 1)")


def matrices_of_blocks(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of the matrices of the transformer blocks.

    Not embeddings, heads and modulations: their rows are not directions of one space.
    """
    return [
        name
        for name, p in parameters.items()
        if p.ndim == 2 and ".blocks." in f".{name}" and "adaln" not in name.lower()
    ]


@dataclass(frozen=True)
class Update:
    """A matrix with its orthogonalised momentum."""

    parameter: nn.Parameter
    direction: Tensor


class OrthogonalMomentum(torch.optim.Optimizer):
    """One optimiser to the loop: the matrices are its first group, the groups of AdamW follow.

    Matrices of one shape are orthogonalised together, as one batched product. After a step the
    parameters are the same on every process if gradients were.
    """

    def __init__(
        self,
        config: MomentumConfig,
        parameters: Mapping[str, nn.Parameter],
        matrices: Sequence[str],
        steps: Sequence[Quintic],
        half: bool = False,
    ) -> None:
        """`matrices` names the parameters that are not AdamW's; `steps` and `half` are those of
        `orthogonalised`. ConfigError where no matrix is named.
        """
        if not matrices:
            raise ConfigError(
                "optimiser: this network has no matrices to orthogonalise; choose optimiser=adamw"
            )
        mine = [parameters[name] for name in matrices]
        self.adamw = config.adamw.build(
            {name: p for name, p in parameters.items() if name not in set(matrices)}
        )
        self.steps, self.half = steps, half
        super().__init__(
            mine,
            {"lr": config.lr, "momentum": config.momentum, "weight_decay": config.weight_decay},
        )
        # One list of groups for the learning rate, one state for the checkpoint.
        self.param_groups = [*self.param_groups, *self.adamw.param_groups]
        self.adamw.state = self.state
        self.owners = shares([cost(p.shape) for p in mine], dist.world())

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # ty: ignore[incompatible-method-override]
        """Update every parameter that has a gradient; a collective call."""
        group = self.param_groups[0]
        owned: list[list[nn.Parameter]] = [[] for _ in range(dist.world())]
        for p, owner in zip(group["params"], self.owners, strict=True):
            if p.grad is not None:
                self._follow(p, group["momentum"])
                owned[owner].append(p)
        for update in self._updates(owned, group["momentum"]):
            p = update.parameter
            # Root mean square of 0.2, that of AdamW (arXiv 2502.16982).
            size = 0.2 * max(p.shape) ** 0.5
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.direction, alpha=-group["lr"] * size)
        self.adamw.step()

    def _follow(self, p: nn.Parameter, decay: float) -> None:
        """Add the gradient of a matrix to its momentum."""
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].mul_(decay).add_(p.grad)

    def _updates(self, owned: list[list[nn.Parameter]], decay: float) -> Iterator[Update]:
        """Those of all processes, owner by owner: one message each."""
        mine = self._computed(owned[dist.rank()], decay)
        if dist.world() == 1:
            yield from mine
            return
        # Nothing is sent before all is computed: the processes compute at the same time.
        ready = {id(update.parameter): update.direction for update in mine}
        for owner, matrices in enumerate(owned):
            if not matrices:
                continue
            if owner == dist.rank():
                flat = torch.cat([ready.pop(id(p)).flatten() for p in matrices])
            else:
                kind = torch.float16 if self.half else matrices[0].dtype
                size = sum(p.numel() for p in matrices)
                flat = torch.empty(size, dtype=kind, device=matrices[0].device)
            dist.broadcast(flat, owner)
            pieces = flat.split([p.numel() for p in matrices])
            for p, piece in zip(matrices, pieces, strict=True):
                yield Update(p, piece.view_as(p))

    def _computed(self, matrices: list[nn.Parameter], decay: float) -> Iterator[Update]:
        """Those of some matrices, shape by shape."""
        alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for p in matrices:
            alike[p.shape].append(p)
        for same in alike.values():
            ahead = torch.stack([self._ahead(p, decay) for p in same])
            found = orthogonalised(ahead, self.steps, self.half)
            for p, direction in zip(same, found, strict=True):
                yield Update(p, direction)

    def _ahead(self, p: nn.Parameter, decay: float) -> Tensor:
        """The gradient of a matrix one momentum step ahead (Nesterov)."""
        assert p.grad is not None
        return p.grad.add(self.state[p]["momentum"], alpha=decay)


def shares(costs: Sequence[int], count: int) -> list[int]:
    """Who of `count` does each piece of work: the costliest first, each to whom has least so far.

    A function of its arguments alone, so that all processes agree. No share costs more than the
    mean share and one piece together.
    """
    loads, owners = [0] * count, [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        owner = loads.index(min(loads))
        owners[number] = owner
        loads[owner] += costs[number]
    return owners


def cost(shape: Sequence[int]) -> int:
    """Multiplications of one Newton-Schulz step of a matrix, up to a factor."""
    small, large = sorted(shape)
    return small**2 * (2 * large + small)
