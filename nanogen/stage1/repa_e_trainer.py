"""The trainer of a `RepaERun`: what a batch is turned into, and what a checkpoint holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from nanogen import rng
from nanogen.model import to_device
from nanogen.stage1.repa_e import Subject
from nanogen.stage1.repa_e_run import RepaEParts
from nanogen.stage1.repa_e_step import RepaEStep
from nanogen.train import checkpoint
from nanogen.train.ema import Ema
from nanogen.train.gradients import trained
from nanogen.train.trainer import Trainer
from nanogen.types import Batch


class RepaETrainer(Trainer):
    """Checkpoints hold `vae`, `discriminator` and `diffusion`, the `_optimiser` of each, and `ema`,
    the average of the transformer, its projector and the statistics of the norm.
    """

    def __init__(self, parts: RepaEParts) -> None:
        super().__init__(parts.run, parts.task, parts.device)
        self.parts, self.run = parts, parts.run
        optimisers = {"vae": self.run.optimiser, "diffusion": self.run.optimiser}
        if parts.game is not None:
            optimisers["discriminator"] = parts.game.rules.optimiser
        self.take = RepaEStep(parts.model, optimisers, self.run.train.clip)
        self.rates = {
            name: [group["lr"] for group in optimiser.param_groups]
            for name, optimiser in self.take.optimisers.items()
        }
        averaged = cast(dict[str, nn.Parameter], parts.model.diffusion.averaged())
        self.ema = Ema(averaged, self.run.train.ema, self.run.train.ema_warmup)

    def update(self, stream: Iterator[Batch]) -> dict[str, float]:
        train, skipped = self.run.train, self.progress.skipped
        factor = self.run.schedule.factor(self.progress.seen, train.batch, train.images)
        for name, optimiser in self.take.optimisers.items():
            for group, rate in zip(optimiser.param_groups, self.rates[name], strict=True):
                group["lr"] = rate * factor
        values = self.take(self.subject(next(stream)), train.batch, self.accepts)
        if self.progress.skipped == skipped:
            self.ema.update(self.progress.steps)
        return values | {"learning_rate_factor": factor}

    @torch.no_grad()
    def subject(self, batch: Batch) -> Subject:
        """A batch with all that is computed of it once: target features and conditions."""
        parts, batch = self.parts, to_device(batch, self.device)
        condition = parts.conditioner.encode(batch).to(self.device)
        null = parts.conditioner.null(len(batch)).to(self.device)
        coins = rng.uniform(self.run.seed, "dropout", batch.keys, 1)[:, 0]
        kept = coins >= self.run.train.condition_dropout
        return Subject(
            images=batch.images * 2 - 1,
            keys=batch.keys,
            target=parts.encoder(batch.images).patches.float(),
            condition=condition,
            dropped=condition.where(kept, null),  # ty: ignore[invalid-argument-type]
        )

    def groups(self) -> dict[str, Mapping[str, Tensor]]:
        found: dict[str, Mapping[str, Tensor]] = {"ema": self.ema.values}
        for name, module in self.take.modules.items():
            found[name] = {key: value.detach() for key, value in module.state_dict().items()}
            moments = checkpoint.moments(self.take.optimisers[name], trained(module))
            found[f"{name}_optimiser"] = moments
        return found

    def restore(self, read: Callable[[str], dict[str, Tensor]]) -> None:
        for name, module in self.take.modules.items():
            module.load_state_dict(read(name), strict=True)
            moments = read(f"{name}_optimiser")
            checkpoint.restore_moments(self.take.optimisers[name], trained(module), moments)
        checkpoint.restore_averages(self.ema, read("ema"))

    @contextlib.contextmanager
    def averaged(self) -> Generator[None, None, None]:
        for module in self.take.modules.values():
            module.eval()
        with self.ema.applied():
            yield
