"""Guidance: which way, and how far, to go beyond what the conditional network says.

    free of a classifier    g = v_null + s (v - v_null)     arXiv 2207.12598
    with a bad model        g = v_bad  + s (v - v_bad)      arXiv 2406.02507
    internal                g = v_base + s (v - v_base)     arXiv 2512.24176

each for low <= t <= high (arXiv 2404.07724), and g = v elsewhere. `v_base` is the prediction of a
head at an early block of the same network. They combine in this order: internal guidance within
each branch (`branches.py`), the bad model on the conditional branch, then the null branch.

The network sees only the branches that a step needs: outside the interval the null branch is never
run. The branches are not put into one batch: the null branch of captions has no text tokens, and
twice the batch would need twice the memory that `sampling.batch` was chosen for.
"""

from __future__ import annotations

import math
from typing import ClassVar

import chz

from nanogen.errors import ConfigError
from nanogen.objectives.path import leafwise
from nanogen.sampling.solvers import Field
from nanogen.types import State


@chz.chz
class Scale:
    """Scale s = 1 means none. The interval is in noise time: [0, 0.9] leaves the noisiest tenth
    unguided.
    """

    where: ClassVar[str] = "sampling"

    scale: float = 1.0
    low: float = 0.0
    high: float = 1.0

    @chz.validate
    def _ranges(self) -> None:
        refuse_scale(f"{self.where}.scale", self.scale)
        if not 0 <= self.low < self.high <= 1:
            raise ConfigError(
                f"{self.where}.low={self.low} and {self.where}.high={self.high}: "
                "need 0 <= low < high <= 1"
            )

    @property
    def on(self) -> bool:
        """Whether any step is guided."""
        return self.scale != 1

    def covers(self, t: float) -> bool:
        """Whether a step at time t is guided."""
        return self.on and self.low <= t <= self.high


@chz.chz
class Guidance(Scale):
    """Classifier-free guidance. Below 1 it leans towards the null branch, which 0 is."""

    where: ClassVar[str] = "sampling.guidance"

    leaves: float | None = chz.field(
        default=None, doc="scale of the leaves beside the image, as REG's class token; None: same"
    )

    @chz.validate
    def _leaves(self) -> None:
        refuse_scale("sampling.guidance.leaves", self.leaves)

    @property
    def on(self) -> bool:
        return self.scale != 1 or self.leaves not in (None, 1)

    @property
    def only_null(self) -> bool:
        """Whether nothing of the conditional branch is left."""
        return self.scale == 0 and not self.leaves

    def scale_of(self, leaf: str) -> float:
        return self.scale if leaf == "image" or self.leaves is None else self.leaves


@chz.chz
class Internal(Scale):
    """Guidance of the image by an early head of the same network (terms.internal), on both
    branches.
    """

    where: ClassVar[str] = "sampling.internal"

    null_scale: float | None = chz.field(default=None, doc="scale on the null branch; None: same")

    @chz.validate
    def _null_scale(self) -> None:
        refuse_scale("sampling.internal.null_scale", self.null_scale)

    @property
    def on(self) -> bool:
        return self.scale != 1 or self.null_scale not in (None, 1)

    def at(self, t: float) -> float:
        """The scale on the conditional branch at time t."""
        return self.scale if self.covers(t) else 1.0

    def at_null(self, t: float) -> float:
        """The scale on the null branch at time t."""
        scale = self.scale if self.null_scale is None else self.null_scale
        return scale if self.covers(t) else 1.0


@chz.chz
class Auto(Scale):
    """Guidance by a bad model: a smaller one, or one trained for less, on the same task."""

    where: ClassVar[str] = "sampling.auto"

    run: str = chz.field(default="", doc="run folder of the bad model; empty: none")
    weights: str = chz.field(default="ema", doc="ema, raw, or posthoc-0.07 as of nanogen ema")

    @chz.validate
    def _together(self) -> None:
        if self.run and not self.on:
            raise ConfigError(
                "sampling.auto.run has no effect with sampling.auto.scale=1; "
                "set a scale, or leave the run out"
            )
        for name, neutral in {"scale": 1.0, "low": 0.0, "high": 1.0, "weights": "ema"}.items():
            if not self.run and getattr(self, name) != neutral:
                raise ConfigError(
                    f"sampling.auto.{name}={getattr(self, name)} has no effect without "
                    "sampling.auto.run; name the run folder of the bad model"
                )


def refuse_scale(name: str, scale: float | None) -> None:
    if scale is not None and not 0 <= scale < math.inf:
        raise ConfigError(f"{name}={scale}: must be finite and not negative")


def guided(conditional: Field, null: Field, guidance: Guidance) -> Field:
    """Classifier-free guidance, in the precision of its two branches (float32)."""

    def field(state: State, t: float, to: float) -> State:
        if not guidance.covers(t):
            return conditional(state, t, to)
        if guidance.only_null:
            return null(state, t, to)
        c, n = conditional(state, t, to), null(state, t, to)
        return {
            leaf: n[leaf] + guidance.scale_of(leaf) * (of_leaf - n[leaf])
            for leaf, of_leaf in c.items()
        }

    return field


def autoguided(good: Field, bad: Field, auto: Auto) -> Field:
    """Guidance of every leaf by a bad model of the same condition."""

    def field(state: State, t: float, to: float) -> State:
        if not auto.covers(t):
            return good(state, t, to)
        if auto.scale == 0:
            return bad(state, t, to)
        return leafwise(
            lambda g, b: b + auto.scale * (g - b), good(state, t, to), bad(state, t, to)
        )

    return field
