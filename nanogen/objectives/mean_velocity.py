"""Mean velocities: the identity that they obey, and what every objective that learns them shares.

    u(z, r, t) = 1 / (t - r) * integral of v from r to t        a step from t to r is z - (t - r) u
    u + (t - r) du/dt = v            du/dt along the path: dz/dt = v, dt/dt = 1, r fixed

(MeanFlow, arXiv 2505.13447, eq. 6.) The network is told t and the interval h = t - r, so along the
path both grow at rate 1. The left side, with a constant du/dt, is regressed on the velocity:

    V = u + h sg(du/dt),    S = |V - v|^2 summed over a leaf,    loss = S / sg(S + epsilon)^p

Its gradient is that of |u - sg(v - h du/dt)|^2. So u comes from an ordinary forward pass with a
gradient, and du/dt from a second one without: nothing of the derivative is kept for the backward
pass, fused attention serves the first, and only samples with h > 0 take part in the second.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import chz
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanogen import rng
from nanogen.errors import ConfigError
from nanogen.objectives import path
from nanogen.objectives.base import Facts, Objective, Step, Term, squared_error
from nanogen.objectives.times import TimedConfig
from nanogen.types import Backbone, Batch, Condition, Losses, Prediction, State

EPSILON = 0.01


@chz.chz
class MeanVelocityConfig(TimedConfig):
    """Intervals [r, t] lie between two logit-normal(mean, std) times, shifted as those of `flow`.

    A share of the samples has r = t instead and learns the velocity itself.
    """

    time_mean: float = -0.4
    instantaneous: float = chz.field(default=0.75, doc="share of samples with r = t")
    instants: Literal["single", "later"] = chz.field(
        default="single", doc="t where r = t: one draw, or the later of the two"
    )
    power: float = chz.field(default=1.0, doc="p of the adaptive weight 1 / (S + epsilon)^p")
    epsilon: float = EPSILON
    jvp_precision: Literal["fp32", "autocast"] = chz.field(
        default="fp32", doc="of du/dt; autocast: that of the run, about 1 % off in bf16"
    )

    @chz.validate
    def _law(self) -> None:
        if not 0 <= self.instantaneous <= 1:
            raise ConfigError(f"objective.instantaneous={self.instantaneous}: must lie in [0, 1]")
        if self.instants not in ("single", "later"):
            raise ConfigError(f"objective.instants={self.instants!r}: choose single or later")
        if self.jvp_precision not in ("fp32", "autocast"):
            raise ConfigError(
                f"objective.jvp_precision={self.jvp_precision!r}: choose fp32 or autocast"
            )

    @chz.validate
    def _weight(self) -> None:
        if not 0 <= self.power <= 2:
            raise ConfigError(f"objective.power={self.power}: must lie in [0, 2]")
        if not 0 < self.epsilon < math.inf:
            raise ConfigError(f"objective.epsilon={self.epsilon}: must be above 0 and finite")
        if self.power == 0 and self.epsilon != EPSILON:
            raise ConfigError(
                f"objective.epsilon={self.epsilon} has no effect with objective.power=0; leave it "
                "out"
            )

    @property
    def passes(self) -> float:
        # A derivative for those alone that have an interval.
        return 3 + 2 * (1 - self.instantaneous)


@dataclass(frozen=True)
class Intervals:
    """Where a batch is trained."""

    t: Tensor
    """[B]: the later end, at which the network sees the state"""
    length: Tensor
    """[B]: t - r, 0 where the velocity itself is learned"""


@dataclass(frozen=True)
class Query:
    """What the network is asked: the mean velocity over [t - interval, t] at a noisy state."""

    noisy: State
    t: Tensor
    """[B]"""
    interval: Tensor
    """[B]"""
    condition: Condition
    scalars: Mapping[str, Tensor] | None = None
    """further numbers, [B] each"""

    def at(self, rows: Tensor) -> Query:
        """The query of some of the samples; `rows` int64 indices, rising."""
        if len(rows) == len(self.t):
            return self
        return Query(
            {name: leaf[rows] for name, leaf in self.noisy.items()},
            self.t[rows],
            self.interval[rows],
            self.condition.at(rows),
            None if self.scalars is None else {n: value[rows] for n, value in self.scalars.items()},
        )

    def ask(self, network: Backbone, want: tuple[str, ...] = ()) -> Prediction:
        return network(
            self.noisy,
            self.t,
            self.condition,
            interval=self.interval,
            scalars=self.scalars,
            want=want,
        )


class MeanVelocity(Objective):
    """An objective whose network predicts mean velocities."""

    interval = True

    def __init__(
        self,
        config: MeanVelocityConfig,
        facts: Facts,
        terms: Mapping[str, Term],
        predicts_data: bool = False,
    ) -> None:
        super().__init__(facts, terms, predicts_data)
        self.law = config
        self.mean = config.effective_mean(facts.latent)

    def velocity(self, prediction: State, noisy: State, t: Tensor) -> State:
        return {name: wide(leaf) for name, leaf in prediction.items()}

    def intervals(self, keys: Tensor) -> Intervals:
        """Those of the samples `keys` [B]: functions of (seed, key) alone."""
        ends = self.ends(keys)
        later, earlier = ends.amax(1), ends.amin(1)
        instant = rng.uniform(self.seed, "instantaneous", self.decided_by(keys), 1)[:, 0]
        instant = instant < self.law.instantaneous
        lone = later if self.law.instants == "later" else ends[:, 0]
        return Intervals(
            torch.where(instant, lone, later),
            torch.where(instant, torch.zeros_like(later), later - earlier),
        )

    def ends(self, keys: Tensor) -> Tensor:
        """[B, 2]: two independent times of each sample."""
        draws = rng.normal(self.seed, "time", keys, (2,))
        return path.logit_normal(draws, self.mean, self.law.time_std)

    def decided_by(self, keys: Tensor) -> Tensor:
        """int64 [B]: samples with the same number have r = t together."""
        return keys

    def velocity_of_path(self, clean: State, noise: State, query: Query) -> State:
        """The velocity of the path, which unguided samples learn."""
        return path.leafwise(path.velocity, clean, noise)

    def slope(self, network: Backbone, query: Query, direction: State) -> State:
        """du/dt of every leaf along the path that moves in `direction`; 0 where the interval is,
        for it has no effect there. No gradient.
        """
        moving = (query.interval > 0).nonzero()[:, 0]
        if not len(moving):
            return path.leafwise(torch.zeros_like, direction)
        found = derivative(
            network,
            query.at(moving),
            {name: leaf[moving] for name, leaf in direction.items()},
            self.velocity,
            self.law.jvp_precision,
        )
        return with_rows(path.leafwise(torch.zeros_like, direction), moving, found)

    def step(
        self,
        batch: Batch,
        clean: State,
        query: Query,
        prediction: Prediction,
        target: State,
        slope: State,
    ) -> Step:
        """The regression of V on `target`, for the terms to look at."""

        def compound(other: State) -> State:
            u = self.velocity(other, query.noisy, query.t)
            return {
                name: leaf + path.along(query.interval, leaf) * slope[name]
                for name, leaf in u.items()
            }

        def errors(other: State) -> State:
            found = compound(other)
            return {name: self.weighed(squares(v, target[name])) for name, v in found.items()}

        return Step(
            batch,
            clean,
            query.noisy,
            query.t,
            prediction,
            velocity=compound(prediction.state),
            target=target,
            errors=errors,
            data=prediction.state if self.predicts_data else None,
            times=lambda keys: self.intervals(keys).t,
        )

    def collected(self, name: str, step: Step) -> Losses:
        """Divided by itself a loss is about 1 for ever: what it was is logged, by element."""
        losses = super().collected(name, step)
        error = squared_error(step.velocity, step.target)["image"].detach()
        return replace(losses, logged={f"{name}_error": error})

    def weighed(self, loss: Tensor) -> Tensor:
        """A loss [B] over a power of itself, which has no gradient (arXiv 2505.13447, sec. 4.3)."""
        return loss / (loss.detach() + self.law.epsilon) ** self.law.power


def derivative(
    network: Backbone,
    query: Query,
    direction: State,
    read: Callable[[State, State, Tensor], State],
    precision: Literal["fp32", "autocast"] = "fp32",
) -> State:
    """du/dt of every leaf, r fixed, where the state moves in `direction`; u is `read(prediction,
    noisy, t)`. No gradient.

    It is the plain forward pass of the network that is differentiated, never a compiled one, and
    with unfused attention, the only one that has a forward derivative.
    """
    names = list(query.noisy)
    forward = getattr(network, "forward", network)

    def along(t: Tensor, interval: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        noisy = dict(zip(names, leaves, strict=True))
        moved = Query(noisy, t, interval, query.condition, query.scalars)
        u = read(moved.ask(forward).state, noisy, t)
        return tuple(u[name] for name in names)

    one = torch.ones_like(query.t)
    given = (query.t, query.interval, *(query.noisy[name] for name in names))
    rates = (one, one, *(direction[name] for name in names))
    with untracked(one.device, autocast=precision == "autocast"), sdpa_kernel(SDPBackend.MATH):
        found = torch.func.jvp(along, given, rates)[1]
    return dict(zip(names, found, strict=True))


@contextlib.contextmanager
def untracked(device: torch.device, autocast: bool = True) -> Generator[None, None, None]:
    """No gradients; and autocast as it is around, or none.

    Its cache of weights is not touched: torch before 2.11 would hand copies without a gradient to
    the forward pass that needs one.
    """
    enabled = autocast and torch.is_autocast_enabled(device.type)
    with (
        torch.no_grad(),
        torch.autocast(device.type, enabled=enabled, cache_enabled=False),
    ):
        yield


def clamped_velocity(clean: State, query: Query, floor: float) -> State:
    """(x_t - x) / max(t, floor): that of the path, too small below the floor."""
    return path.leafwise(
        lambda x, z: path.velocity_from_data(x, z, query.t, floor), clean, query.noisy
    )


def with_rows(state: State, rows: Tensor, found: State) -> State:
    """`state` with other values in some of its rows; `rows` int64 indices."""
    return {
        name: leaf.index_copy(0, rows, found[name].to(leaf.dtype)) for name, leaf in state.items()
    }


def squares(found: Tensor, wanted: Tensor) -> Tensor:
    """[B]: the sum over all other elements of the squared difference."""
    return (found - wanted).square().flatten(1).sum(1)


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
