"""One step of REPA-E: its three updates, one after the other, each with its own optimiser.

    step = RepaEStep(model, {"vae": adamw, "discriminator": adamw, "diffusion": adamw}, clip=1.0)
    values = step(subject, batch=256, accepts=finite)         # means over the whole batch

Works in any number of processes: gradients are summed across them. Their weights must be the same
at the start, which holds for weights that are a function of the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from nanogen import dist
from nanogen.stage1.repa_e import RepaE, Subject
from nanogen.train.gradients import sum_gradients, trained
from nanogen.types import Losses

Values = dict[str, float]


Accepts = Callable[[Mapping[str, float]], bool]


@dataclass(frozen=True)
class Outcome:
    """What an update saw, and whether it was taken."""

    values: Values
    taken: bool


class OptimiserConfig(Protocol):
    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer: ...


class RepaEStep:
    """The networks by the name of their update, in order, and the optimiser of each."""

    def __init__(
        self, model: RepaE, optimisers: Mapping[str, OptimiserConfig], clip: float
    ) -> None:
        """`clip`: largest gradient norm of each update."""
        self.model, self.clip = model, clip
        self.modules: dict[str, nn.Module] = {"vae": model.vae}
        if model.discriminator is not None:
            self.modules["discriminator"] = model.discriminator
        self.modules["diffusion"] = model.diffusion
        self.optimisers = {
            name: optimisers[name].build(trained(module)) for name, module in self.modules.items()
        }

    def __call__(self, subject: Subject, batch: int, accepts: Accepts) -> Values:
        """Take a step on this process's part of a batch of `batch` samples.

        Returns the mean of each loss over the whole batch, their weighted sum over all updates
        ("loss"), and the gradient norm of each update. Before each update `accepts` is asked about
        its values; where it refuses, that update and those after it are left out.
        """
        for module in self.modules.values():
            module.train()
        losses, drawn = self.model.vae_losses(subject)
        outcome = self._update("vae", losses, batch, accepts)
        values = outcome.values
        later = {
            "discriminator": self.model.discriminator_losses,
            "diffusion": self.model.diffusion_losses,
        }
        for name in list(self.modules)[1:]:
            if not outcome.taken:
                break
            outcome = self._update(name, later[name](subject, drawn), batch, accepts)
            values |= outcome.values | {"loss": values["loss"] + outcome.values["loss"]}
        return values

    def _update(
        self,
        name: str,
        losses: Losses,
        batch: int,
        accepts: Accepts,
    ) -> Outcome:
        """One optimiser's step, where it is accepted."""
        parameters, optimiser = trained(self.modules[name]), self.optimisers[name]
        share = {part: value.sum() / batch for part, value in losses.parts.items()}
        total = torch.stack([losses.weights[part] * value for part, value in share.items()]).sum()
        total.backward()
        sum_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters.values(), self.clip)
        means = dist.sum_across({n: v.detach() for n, v in (share | {"loss": total}).items()})
        values = {part: float(value) for part, value in means.items()}
        values[f"gradient_norm_{name}"] = float(norm)
        taken = accepts(values)
        if taken:
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return Outcome(values, taken)
