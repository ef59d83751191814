"""What an objective and a term are.

A run has exactly one *objective* (flow matching, MeanFlow, ...): it draws times and noise, calls
the network, and returns the regression loss. Any number of *terms* (REPA, REG, perceptual losses,
internal guidance, ...) add to it: a term may add a leaf to the state or a head to the network, may
ask for features of the network, and returns one more loss from the same forward pass.

Either is one file in this folder: a chz config with `build` (for an objective, an
`ObjectiveConfig`), registered as an objective or as a term. `wiring` of an objective says what its
network must have been built with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import chz
from torch import Tensor, nn

from nanogen import rng
from nanogen.encoders.teachers import Teachers
from nanogen.errors import ConfigError
from nanogen.objectives import path
from nanogen.objectives.refusals import check_together
from nanogen.types import (
    Backbone,
    Batch,
    Condition,
    LatentSpec,
    Losses,
    Prediction,
    State,
    Wiring,
)

if TYPE_CHECKING:
    from nanogen.sampling.guidance import Guidance
    from nanogen.sampling.settings import Sampling


@dataclass(frozen=True)
class Facts:
    """What is known of the parts built so far, for building an objective or a term."""

    seed: int
    latent: LatentSpec
    image_size: int
    feature_width: int
    """D of the backbone's features"""
    decode: Callable[[Tensor], Tensor]
    """latents [B, C, h, w] -> images [B, 3, H, W], differentiable"""
    blocks: int = 1
    """encoder blocks whose features can be asked for"""
    batch: int = 1
    """images of one optimiser step, over all processes and micro-batches"""
    teachers: Teachers | None = None
    """frozen networks that terms learn from"""

    def known_teachers(self) -> Teachers:
        """The teachers, which a run always has."""
        if self.teachers is None:
            raise RuntimeError("these facts have no teachers; give Teachers(image_size)")
        return self.teachers

    def block(self, number: int, field: str) -> int:
        """`number`; ConfigError, naming the field that it stands in, where there is no such
        block.
        """
        if not 1 <= number <= self.blocks:
            raise ConfigError(f"{field}={number}: this backbone has blocks 1 to {self.blocks}")
        return number


@dataclass(frozen=True)
class Inputs:
    """One batch on its way into an objective."""

    batch: Batch
    latents: Tensor
    """[B, C, h, w]"""
    condition: Condition
    """after condition dropout"""
    kept: Tensor
    """bool [B]: False where the condition was dropped"""
    null: Condition
    """the null condition of as many samples"""


@dataclass(frozen=True)
class Step:
    """What a term may look at after the shared forward pass."""

    batch: Batch
    clean: State
    noisy: State
    t: Tensor
    """[B]"""
    prediction: Prediction
    velocity: State
    """predicted velocity, whatever the network predicts"""
    target: State
    """velocity of the path: what `velocity` is regressed on"""
    errors: Callable[[State], State]
    """the objective's own regression loss, [B] for each leaf given, of another prediction"""
    data: State | None = None
    """predicted data; None unless the network predicts data"""
    times: Callable[[Tensor], Tensor] | None = None
    """times [K] that this objective gives to the samples of any keys, int64 [K]; None where a time
    is no function of the key alone
    """


class Term(nn.Module):
    """One more loss on the shared forward pass. Subclass, set what applies, override what is
    needed.

    A frozen teacher (`facts.known_teachers()`) is kept out of the module tree: it is not trained
    and not saved. Heads are ordinary submodules.
    """

    weight: float = 1.0
    leaves: Mapping[str, int] = {}
    """name -> width of each leaf that this term adds to the state; the objective regresses it,
    with `weight`
    """
    heads: Mapping[str, int] = {}
    """further heads that the network needs: the encoder block that each reads, by name"""
    want: tuple[str, ...] = ()
    """features and heads of the backbone that this term reads"""
    needs_images: bool = False
    """whether it reads `batch.images`: with a cache of latents they are read for such terms only"""
    needs_data: bool = False
    """whether it reads `step.data`, which only a network that predicts data has"""
    needs_leaves: tuple[str, ...] = ()
    """leaves of other terms whose tokens it reads"""

    def clean_leaves(self, batch: Batch) -> State:
        """Clean values `[B, width]` of the leaves of this term."""
        return {}

    def loss(self, step: Step) -> Tensor | None:
        """[B], unweighted; None for a term that only adds a leaf."""
        return None


@chz.chz
class ObjectiveConfig:
    """What the config of every objective says besides its fields; subclass it, and override what
    differs.
    """

    @property
    def passes(self) -> float:
        """Forward passes that training on an image costs: a backward pass counts as two, as does a
        derivative.
        """
        return 3.0

    @property
    def kept(self) -> int:
        """Forward passes of an image whose activations are kept for the backward pass, or computed
        again there.
        """
        return 1

    @property
    def needs_null(self) -> bool:
        """Whether guidance when sampling needs the null condition trained."""
        return True

    @property
    def learns_guidance(self) -> bool:
        """Whether targets compare what the network predicts with a condition and without."""
        return False

    def check_sampling(self, sampling: Sampling) -> None:
        """ConfigError where samples cannot be drawn so of any network of this objective."""
        return


class Objective(nn.Module, ABC):
    """A regression loss with its terms, and the velocity field that samplers integrate."""

    interval: bool = False
    """whether its network is told the length t - r of a step"""
    scalars: tuple[str, ...] = ()
    """further numbers that condition its network"""
    own_heads: Mapping[str, int] = {}
    """heads that it reads itself"""
    guides_itself: bool = False
    """whether guidance is a number that the network is told (`scalars_of`), not a second branch"""
    one_step: bool = False
    """whether its velocity is that of the one step from t = 1 to 0, and of no other"""
    coupled: int = 1
    """so many samples that follow each other, counted from the start of a batch, share a loss:
    no micro-batch and no process may cut them
    """

    def __init__(
        self, facts: Facts, terms: Mapping[str, Term], predicts_data: bool = False
    ) -> None:
        """ConfigError where a term does not suit what the network predicts, or another term."""
        super().__init__()
        self.seed = facts.seed
        self.terms = nn.ModuleDict(terms)
        self.predicts_data = predicts_data
        for name, term in self.added.items():
            if term.needs_data and not predicts_data:
                raise ConfigError(
                    f"terms.{name} compares predicted images, but this objective predicts "
                    "velocities; choose objective=flow with objective.prediction=x, or "
                    f"objective=pixel-meanflow, or terms.{name}=off"
                )
        check_together(self.added, self.own_heads)

    @property
    def added(self) -> dict[str, Term]:
        """The terms, by name."""
        return {name: cast(Term, term) for name, term in self.terms.items()}

    @property
    def leaves(self) -> dict[str, int]:
        """Widths of the leaves that the terms add to the state."""
        return {leaf: width for term in self.added.values() for leaf, width in term.leaves.items()}

    @property
    def wiring(self) -> Wiring:
        """What the network of this objective and its terms is built with."""
        heads = dict(self.own_heads)
        for term in self.added.values():
            heads |= term.heads
        return Wiring(self.leaves, self.interval, self.scalars, heads)

    @property
    def want(self) -> list[str]:
        """Features and heads that the terms read."""
        return sorted({name for term in self.added.values() for name in term.want})

    @abstractmethod
    def forward(self, network: Backbone, inputs: Inputs) -> Losses:
        """Losses of one batch."""

    @abstractmethod
    def velocity(self, prediction: State, noisy: State, t: Tensor) -> State:
        """The velocity dx/dt, in float32, that a prediction at (noisy, t) stands for: the mean
        velocity over the interval where the network is told one. Leaf by leaf, for those given.
        """

    def scalars_of(self, guidance: Guidance) -> dict[str, float]:
        """What the network of an objective with `scalars` is told when samples are drawn."""
        return {}

    def clean(self, inputs: Inputs) -> State:
        """The state at t = 0: latents, and the leaves of the terms."""
        state = {"image": inputs.latents}
        for term in self.added.values():
            state |= term.clean_leaves(inputs.batch)
        return state

    def noise(self, clean: State, keys: Tensor) -> State:
        """N(0, 1) for every leaf; that of a sample is a function of (seed, its key) alone."""
        return {
            name: rng.normal(self.seed, f"noise/{name}", keys, tuple(x.shape[1:]))
            for name, x in clean.items()
        }

    def collected(self, name: str, step: Step) -> Losses:
        """The regression of the image as `name`, that of each leaf, and the loss of each term."""
        errors = step.errors(step.prediction.state)
        parts, weights = {name: errors["image"]}, {name: 1.0}
        for term_name, term in self.added.items():
            for leaf in term.leaves:
                parts[leaf], weights[leaf] = errors[leaf], term.weight
            loss = term.loss(step)
            if loss is not None:
                parts[term_name], weights[term_name] = loss, term.weight
        return Losses(parts, weights)


def squared_error(found: State, wanted: State) -> State:
    """Mean square over all elements of each leaf, [B]."""
    return path.leafwise(lambda a, b: (a - b).square().flatten(1).mean(1), found, wanted)
