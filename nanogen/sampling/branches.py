"""The branches of guidance: a network asked with one condition for the velocity, or for the data.

    field = guided(Branch(network, condition).velocity, Branch(network, null).velocity, guidance)

Internal guidance happens here, since its two predictions come from one forward
pass:

    image = base + s (full - base)        leaves beside the image: full

Guidance is affine in predictions whose weights sum to 1, so it means the same for velocities and
for data at the same noisy state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from nanogen.objectives import path
from nanogen.objectives.base import Objective
from nanogen.objectives.internal_guidance import HEAD
from nanogen.types import Backbone, Condition, Conditioner, State

Reading: TypeAlias = Callable[[State, State, Tensor], State]
"""(prediction, noisy state, t [B]) -> velocity or data, of the leaves that were predicted"""


@dataclass(frozen=True)
class Network:
    """A trained network with what reads its output and what prepares its conditions."""

    backbone: Backbone
    objective: Objective
    conditioner: Conditioner
    seen: int = 0
    """images it was trained on, where that is of interest"""


class Asked(Protocol):
    """What a branch of guidance can be asked for; both are `Field`s."""

    def velocity(self, state: State, t: float, to: float) -> State: ...

    def data(self, state: State, t: float, to: float) -> State: ...


@dataclass(frozen=True)
class Branches:
    conditional: Asked
    null: Asked
    bad: Asked | None
    """of the bad model, with the condition"""


@dataclass(frozen=True)
class Branch:
    network: Network
    condition: Condition
    told: Mapping[str, float] = field(default_factory=dict)
    """further numbers that the network is told"""
    internal: Callable[[float], float] = lambda t: 1.0
    """scale of internal guidance at a time"""

    def velocity(self, state: State, t: float, to: float) -> State:
        """Velocity of each leaf, float32: the mean one from t to `to` where the network knows it.

        RuntimeError where internal guidance is on and the network has no head for it.
        """
        return self._ask(state, t, to, self.network.objective.velocity)

    def data(self, state: State, t: float, to: float) -> State:
        """Predicted data of each leaf, float32; of a network that predicts data its very output,
        without the floor of time that its velocity has.
        """
        return self._ask(state, t, to, self._data)

    def _ask(self, state: State, t: float, to: float, read: Reading) -> State:
        device = next(iter(state.values())).device

        def rows(value: float) -> Tensor:
            return torch.full((len(self.condition),), value, device=device)

        scale = self.internal(t)
        prediction = self.network.backbone(
            state,
            rows(t),
            self.condition,
            interval=rows(t - to) if self.network.objective.interval else None,
            scalars={name: rows(value) for name, value in self.told.items()} or None,
            want=(HEAD,) if scale != 1 else (),
        )
        full = read(prediction.state, state, rows(t))
        if scale == 1:
            return full
        if HEAD not in prediction.heads:
            raise RuntimeError(f"internal guidance needs a head {HEAD!r} of the network")
        base = read({"image": prediction.heads[HEAD]}, state, rows(t))["image"]
        return full | {"image": base + scale * (full["image"] - base)}

    def _data(self, prediction: State, noisy: State, t: Tensor) -> State:
        objective = self.network.objective
        if objective.predicts_data:
            return {name: leaf.float() for name, leaf in prediction.items()}
        velocity = objective.velocity(prediction, noisy, t)
        return {
            name: path.data_from_velocity(v, noisy[name].float(), t) for name, v in velocity.items()
        }


class Tally:
    """Stands in for a branch, and counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def velocity(self, state: State, t: float, to: float) -> State:
        self.calls += 1
        return state

    data = velocity
