"""From requests to images: seeds -> noise -> solved flow -> decoded, one batch at a time.

The noise of a sample is a function of (sampling seed, index of the sample). So sample 7 is the
same picture in a batch of 1 or of 100, on one process or on many, during training or after it, but
for the rounding of sums: a grey level here and there. The noise that a stochastic solver adds is a
function of the step besides.

    sampler = open_run(folder).parts.sampler()
    images = sampler.draw(Request(torch.arange(4), labels=torch.arange(4)))
    sampler.counts().network_calls
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogen import rng
from nanogen.errors import ConfigError
from nanogen.metrics.similarity import Quantise, quantised
from nanogen.objectives.base import Objective
from nanogen.objectives.path import shift_ratio
from nanogen.sampling.branches import Asked, Branch, Branches, Network, Tally
from nanogen.sampling.guidance import autoguided, guided
from nanogen.sampling.schedule import stochastic_times, times
from nanogen.sampling.settings import SDE, Sampling
from nanogen.sampling.solvers import SOLVERS, Field, Last, Solver
from nanogen.sampling.stochastic import DIFFUSIONS, Noise, stochastic
from nanogen.types import Backbone, Condition, Conditioner, Request, State, Tokenizer


@dataclass(frozen=True)
class Counts:
    """What drawing one sample costs, and how much of it is guided.

    The share of guided steps depends on the shift: scales of guidance are comparable only where it
    is equal.
    """

    evaluations: int
    """of the guided velocity: NFE"""
    network_calls: int
    """of any network, on any branch"""
    auto_calls: int
    """of the bad model's network"""
    guided_steps: int
    """steps that start inside the interval of classifier-free guidance"""


@dataclass(frozen=True)
class Sampler:
    """Everything that turns requests into images. ConfigError where settings do not suit the
    objective.
    """

    backbone: Backbone
    objective: Objective
    conditioner: Conditioner
    tokenizer: Tokenizer
    leaves: Mapping[str, int]
    """widths of the leaves beside the image"""
    sampling: Sampling
    device: torch.device
    bad: Network | None = None
    """the bad model of `sampling.auto`"""

    def __post_init__(self) -> None:
        self.sampling.check(self.objective)
        if (self.bad is None) == self.sampling.auto.on:
            raise RuntimeError("a sampler has a bad model exactly where sampling.auto is on")
        if self.bad is not None:
            try:
                self.bad.objective.scalars_of(self.sampling.guidance)
            except ConfigError as problem:
                raise ConfigError(
                    f"sampling.auto.run={self.sampling.auto.run}: {problem}"
                ) from problem

    def move(self, device: torch.device) -> None:
        """Move every network that draws to a device; before it draws they must be on its own."""
        parts: list[object] = [self.tokenizer]
        for one in (self, self.bad):
            if one is not None:
                parts += [one.backbone, one.objective, one.conditioner]
        for part in parts:
            if isinstance(part, torch.nn.Module):
                part.to(device)

    def stream(
        self, request: Request, quantise: Quantise = "round"
    ) -> Iterator[tuple[Request, Tensor]]:
        """Batches of requests with their images, uint8 [B, 3, H, W], on the device."""
        for start in range(0, len(request), self.sampling.batch):
            rows = request.rows(start, start + self.sampling.batch)
            yield rows, quantised(self.draw(rows), quantise)

    @torch.no_grad()
    def draw(self, request: Request) -> Tensor:
        """Images of one batch, float [B, 3, H, W] in [0, 1]."""
        return self.tokenizer.decode(self.latents(request)["image"]).float().clamp(0, 1)

    @torch.no_grad()
    def latents(self, request: Request) -> State:
        """The state of one batch at t = 0, before it is decoded: the image and every other leaf."""
        noise = self.noise(request.indices)
        return self._solved(
            self._branches(request), noise, lambda step: self.step_noise(request.indices, step)
        )

    def noise(self, indices: Tensor) -> State:
        """The state at t = 1 of samples `indices` [B]."""
        return self._normal("sample", indices)

    def step_noise(self, indices: Tensor, step: int) -> State:
        """What a stochastic solver adds to samples `indices` [B] in a step, counted from 0."""
        return self._normal(f"sample/{step}", indices)

    def times(self) -> list[float]:
        """The grid of the solver, from 1 to 0."""
        sampling, base = self.sampling, self.sampling.shift_base
        ratio = 1.0 if base is None else shift_ratio(self.tokenizer.spec.dim, base)
        return (stochastic_times if sampling.solver == SDE else times)(sampling.steps, ratio)

    def counts(self) -> Counts:
        """Found by the solver itself, walking with branches that only count."""
        whole, conditional, null, bad = (Tally() for _ in range(4))
        self._walk(whole.velocity, whole.data, {}, lambda step: {})
        branches = Branches(conditional, null, None if self.bad is None else bad)
        self._solved(branches, {}, lambda step: {})
        return Counts(
            evaluations=whole.calls,
            network_calls=conditional.calls + null.calls + bad.calls,
            auto_calls=bad.calls,
            guided_steps=sum(self.sampling.guidance.covers(t) for t in self.times()[:-1]),
        )

    def facts(self) -> dict[str, str | int | float | list[float]]:
        """What a record says of how its samples were drawn; what is not in use is left out."""
        sampling, counts = self.sampling, self.counts()
        guidance, internal, auto = sampling.guidance, sampling.internal, sampling.auto
        found: dict[str, str | int | float | list[float]] = {
            "solver": sampling.solver,
            "steps": sampling.steps,
            "guidance": guidance.scale,
            "interval": [guidance.low, guidance.high],
            "seed": sampling.seed,
            "evaluations": counts.evaluations,
            "network_calls": counts.network_calls,
            "guided_steps": counts.guided_steps,
        }
        if sampling.solver == SDE:
            found["diffusion"] = sampling.diffusion
        if sampling.final != Sampling().final:
            found["final"] = sampling.final
        if guidance.leaves is not None:
            found["guidance_leaves"] = guidance.leaves
        if internal.on:
            found |= {
                "internal": internal.scale,
                "internal_interval": [internal.low, internal.high],
            }
            if internal.null_scale is not None:
                found["internal_null"] = internal.null_scale
        if self.bad is not None:
            found |= {"auto": auto.scale, "auto_interval": [auto.low, auto.high]}
            found |= {"auto_run": auto.run, "auto_weights": auto.weights}
            found |= {"auto_seen": self.bad.seen, "auto_calls": counts.auto_calls}
        return found

    def _normal(self, purpose: str, indices: Tensor) -> State:
        """N(0, 1) for every leaf, a function of (sampling seed, purpose, leaf, index) alone."""
        latent, keys = self.tokenizer.spec, indices.to(self.device)
        shapes: dict[str, tuple[int, ...]] = {
            "image": (latent.channels, latent.height, latent.width)
        }
        shapes |= {leaf: (width,) for leaf, width in self.leaves.items()}
        return {
            leaf: rng.normal(self.sampling.seed, f"{purpose}/{leaf}", keys, shape)
            for leaf, shape in shapes.items()
        }

    def _branches(self, request: Request) -> Branches:
        sampling, count = self.sampling, len(request)
        network = Network(self.backbone, self.objective, self.conditioner)

        def branch(of: Network, condition: Condition, internal: Callable[[float], float]) -> Branch:
            told = of.objective.scalars_of(sampling.guidance)
            return Branch(of, condition.to(self.device), told, internal)

        return Branches(
            branch(network, self.conditioner.encode(request), sampling.internal.at),
            branch(network, self.conditioner.null(count), sampling.internal.at_null),
            None
            if self.bad is None
            else branch(self.bad, self.bad.conditioner.encode(request), lambda t: 1.0),
        )

    def _solved(self, branches: Branches, state: State, noise: Noise) -> State:
        """The state at t = 0, from that at t = 1 and the noise of each step."""
        velocity = self._combined(branches, lambda branch: branch.velocity)
        data = self._combined(branches, lambda branch: branch.data)
        return self._walk(velocity, data, state, noise)

    def _combined(self, branches: Branches, read: Callable[[Asked], Field]) -> Field:
        """Velocity or data, guided."""
        field = read(branches.conditional)
        if branches.bad is not None:
            field = autoguided(field, read(branches.bad), self.sampling.auto)
        if self.objective.guides_itself:
            return field
        return guided(field, read(branches.null), self.sampling.guidance)

    def _walk(self, velocity: Field, data: Field, state: State, noise: Noise) -> State:
        def to_data(state: State, t: float) -> State:
            return data(state, t, 0.0)

        sampling = self.sampling
        solver: Solver = (
            stochastic(DIFFUSIONS[sampling.diffusion], noise)
            if sampling.solver == SDE
            else SOLVERS[sampling.solver]
        )
        last: Last | None = to_data if sampling.final == "data" else None
        return solver(velocity, state, self.times(), last)
