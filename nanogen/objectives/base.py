"""What an objective and a term are.

A run has exactly one *objective* (flow matching, MeanFlow, ...): it draws times and noise, calls
the network once, and returns the regression loss. Any number of *terms* (REPA, REG, perceptual
losses, ...) add to it: a term may add a leaf to the state, may ask for features of the network,
and returns one more loss from the same forward pass.

Either is one file in this folder: a chz config with `build`, registered as an objective or as a
term.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from nanogen.types import Backbone, Batch, Condition, LatentSpec, Losses, Prediction, State


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


class Term(nn.Module):
    """One more loss on the shared forward pass. Subclass, set what applies, override what is
    needed.

    A frozen teacher is kept out of the module tree (it is not trained and not saved); heads are
    ordinary submodules.
    """

    weight: float = 1.0
    leaves: Mapping[str, int] = {}
    """name -> width of each leaf that this term adds to the state; the objective regresses it,
    with `weight`
    """
    want: tuple[str, ...] = ()
    """features of the backbone that this term reads"""
    needs_images: bool = False
    """whether it reads `batch.images`: with a cache of latents they are read for such terms only"""

    def clean_leaves(self, batch: Batch) -> State:
        """Clean values `[B, width]` of the leaves of this term."""
        return {}

    def loss(self, step: Step) -> Tensor | None:
        """[B], unweighted; None for a term that only adds a leaf."""
        return None


class Objective(nn.Module, ABC):
    """A regression loss with its terms, and the velocity field that samplers integrate."""

    def __init__(self, facts: Facts, terms: Mapping[str, Term]) -> None:
        super().__init__()
        self.seed = facts.seed
        self.terms = nn.ModuleDict(terms)

    @property
    def added(self) -> dict[str, Term]:
        """The terms, by name."""
        return {name: cast(Term, term) for name, term in self.terms.items()}

    @property
    def leaves(self) -> dict[str, int]:
        """Widths of the leaves that the terms add to the state."""
        return {leaf: width for term in self.added.values() for leaf, width in term.leaves.items()}

    @abstractmethod
    def forward(self, network: Backbone, inputs: Inputs) -> Losses:
        """Losses of one batch, from one forward pass of the network."""

    @abstractmethod
    def velocity(self, prediction: State, noisy: State, t: Tensor) -> State:
        """The velocity dx/dt, in float32, that a prediction at (noisy, t) stands for."""
