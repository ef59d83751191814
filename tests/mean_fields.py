"""Flows whose mean velocity is known, and networks that a test can look into."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from nanogen import rng
from nanogen.backbones.ddt import DdtConfig
from nanogen.objectives import path
from nanogen.objectives.base import Facts, Inputs, Term
from nanogen.objectives.mean_velocity import Query
from nanogen.objectives.meanflow import MeanFlow, MeanFlowConfig
from nanogen.types import (
    Batch,
    Condition,
    ConditionSpec,
    LabelCondition,
    LatentSpec,
    Prediction,
    State,
    Wiring,
)

CLASSES = 4
LATENT = LatentSpec(3, 4, 4, 2)
FACTS = Facts(
    seed=5, latent=LATENT, image_size=4, feature_width=16, decode=lambda x: x, blocks=2, batch=8
)


class Gaussian(nn.Module):
    """The exact mean velocity where the data of every class is N(mean, std^2 I)."""

    def __init__(self, mean: float = 0.7, std: float = 0.5) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def spread(self, t: Tensor) -> Tensor:
        return ((1 - t) ** 2 * self.std**2 + t**2).sqrt()

    def velocity(self, z: Tensor, t: Tensor) -> Tensor:
        slope = (t - (1 - t) * self.std**2) / self.spread(t) ** 2
        return slope * (z - (1 - t) * self.mean) - self.mean

    def moved(self, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """Where the flow takes z from t to r."""
        around = (z - (1 - t) * self.mean) / self.spread(t)
        return (1 - r) * self.mean + self.spread(r) * around

    def forward(
        self, state: State, t: Tensor, condition: Condition, *, interval: Tensor, **_: object
    ) -> Prediction:
        def u(z: Tensor) -> Tensor:
            time, length = path.along(t, z), path.along(interval, z)
            safe = torch.where(length > 0, length, 1)
            mean = (z - self.moved(z, time, time - safe)) / safe
            return torch.where(length > 0, mean, self.velocity(z, time))

        return Prediction({name: u(z) for name, z in state.items()})


class Tiny(nn.Module):
    """A smooth network of everything that it is told, one linear map of tanh of linear maps."""

    def __init__(
        self, size: int = 48, scalars: tuple[str, ...] = (), heads: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.scalars, self.heads = scalars, heads
        self.label = nn.Embedding(CLASSES + 1, 4)
        self.hidden = nn.Linear(size + 6 + len(scalars), 32)
        self.out = nn.Linear(32, size * (1 + len(heads)))
        self.rows: list[int] = []

    def forward(
        self,
        state: State,
        t: Tensor,
        condition: LabelCondition,
        *,
        interval: Tensor,
        scalars: Mapping[str, Tensor] | None = None,
        **_: object,
    ) -> Prediction:
        self.rows.append(len(t))
        z = state["image"]
        told = [t, interval, *((scalars or {})[name] for name in self.scalars)]
        given = [z.flatten(1), *(x[:, None] for x in told), self.label(condition.ids)]
        found = self.out(torch.tanh(self.hidden(torch.cat(given, dim=1))))
        main, *heads = found.unflatten(1, (1 + len(self.heads), *z.shape[1:])).unbind(1)
        return Prediction({"image": main}, heads=dict(zip(self.heads, heads, strict=True)))


class Told:
    """A network that returns what a function of all that it is told says, of the image in every
    head too.
    """

    def __init__(self, predict: Callable[[dict], State], heads: tuple[str, ...] = ()) -> None:
        self.predict, self.heads = predict, heads
        self.calls: list[dict] = []

    def __call__(
        self, state: State, t: Tensor, condition: LabelCondition, **more: object
    ) -> Prediction:
        asked = {"state": state, "t": t, "condition": condition, **more}
        self.calls.append(asked)
        found = self.predict(asked)
        return Prediction(found, heads=dict.fromkeys(self.heads, found["image"]))


def zeros(asked: dict) -> State:
    return path.leafwise(torch.zeros_like, asked["state"])


def batch(count: int, first: int = 0) -> Batch:
    keys = torch.arange(first, first + count)
    return Batch(None, keys, labels=keys % CLASSES)


def latents(given: Batch) -> Tensor:
    shape = (LATENT.channels, LATENT.height, LATENT.width)
    return rng.normal(1, "latents", given.keys, shape)


def inputs(given: Batch, kept: Tensor | None = None) -> Inputs:
    """With the condition dropped where `kept` is False; nowhere by default."""
    assert given.labels is not None
    kept = torch.ones(len(given), dtype=torch.bool) if kept is None else kept
    null = LabelCondition(torch.full_like(given.labels, CLASSES))
    condition = LabelCondition(given.labels).where(kept, null)
    return Inputs(given, latents(given), condition, kept, null)


def noise(given: Batch) -> Tensor:
    """What an objective of seed 5 mixes in."""
    return rng.normal(5, "noise/image", given.keys, (3, 4, 4))


def of_path(given: Batch) -> Tensor:
    """e - x."""
    return noise(given) - latents(given)


def as_it_is(prediction: State, noisy: State, t: Tensor) -> State:
    return prediction


def query(z: Tensor, t: Tensor, interval: Tensor) -> Query:
    return Query({"image": z}, t, interval, LabelCondition(torch.arange(len(t)) % CLASSES))


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ddt(wiring: Wiring, condition: ConditionSpec | None = None) -> nn.Module:
    """A small DDT that does not predict zero."""
    torch.manual_seed(0)
    config = DdtConfig(
        depth=2, width=16, heads=2, decoder_depth=1, decoder_width=24, decoder_heads=2
    )
    made = config.build(LATENT, condition or ConditionSpec(classes=4), wiring)
    for p in made.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return made


def meanflow(terms: dict[str, Term] | None = None, **given: object) -> MeanFlow:
    return MeanFlowConfig(**{"shift_base": None} | given).build(FACTS, terms or {})
