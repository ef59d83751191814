"""Training a diffusion model: one network, one optimiser, one average.

batch -> losses -> backward -> finite on every process? -> clip -> step -> average

No tokenizer, backbone or objective is known by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from nanogen import dist
from nanogen.cache.use import training_task
from nanogen.data.loader import micro_batches
from nanogen.model import to_device
from nanogen.run import Parts
from nanogen.train import checkpoint
from nanogen.train.ema import Ema
from nanogen.train.trainer import Trainer
from nanogen.types import Batch


class DiffusionTrainer(Trainer):
    """The trainer of a `Run`. Its checkpoints hold `model`, `ema` and `optimiser`."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.run, training_task(parts), parts.device)
        self.parts, self.run = parts, parts.run
        model = parts.model
        if dist.world() > 1:
            devices = [parts.device.index or 0] if parts.device.type == "cuda" else None
            self.network: nn.Module = nn.parallel.DistributedDataParallel(
                model, device_ids=devices, gradient_as_bucket_view=True
            )
        else:
            self.network = model
        if self.run.machine.compile:
            self.network = cast(nn.Module, torch.compile(self.network))
        # Built from the wrapped model: weights are the same on every process from here on.
        self.ema = Ema(model.trained(), self.run.train.ema, self.run.train.ema_warmup)
        self.optimiser = self.run.optimiser.build(model.trained())
        self.rates = [group["lr"] for group in self.optimiser.param_groups]

    def update(self, stream: Iterator[Batch]) -> dict[str, float]:
        """One optimiser step; returns the mean of each loss over the whole batch, and the gradient
        norm.
        """
        train, progress = self.run.train, self.progress
        factor = self.run.schedule.factor(progress.seen, train.batch, train.images)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.parts.model.train()
        losses = self._accumulate(stream)
        norm = nn.utils.clip_grad_norm_(self.parts.model.trained().values(), train.clip)
        values = {name: float(value) for name, value in dist.sum_across(losses).items()} | {
            "gradient_norm": float(norm)
        }
        if self.accepts(values):
            self.optimiser.step()
            self.ema.update(progress.steps)
        self.optimiser.zero_grad(set_to_none=True)
        return values | {"learning_rate_factor": factor}

    def groups(self) -> dict[str, Mapping[str, Tensor]]:
        model = self.parts.model
        return {
            "model": {name: p.detach() for name, p in model.state_dict().items()},
            "ema": self.ema.values,
            "optimiser": checkpoint.moments(self.optimiser, model.trained()),
        }

    def restore(self, read: Callable[[str], dict[str, Tensor]]) -> None:
        model = self.parts.model
        model.load_state_dict(read("model"), strict=True)
        checkpoint.restore_averages(self.ema, read("ema"))
        checkpoint.restore_moments(self.optimiser, model.trained(), read("optimiser"))

    @contextlib.contextmanager
    def averaged(self) -> Generator[None, None, None]:
        self.parts.model.eval()
        with self.ema.applied():
            yield

    def _accumulate(self, stream: Iterator[Batch]) -> dict[str, Tensor]:
        """Gradients of the mean loss over the batch; returns this process's share of each mean
        loss.
        """
        train = self.run.train
        pieces = micro_batches(train.batch, self.run.machine.micro_batch or train.batch)
        sums: dict[str, Tensor] = {}
        for number, _ in enumerate(pieces):
            last = number == len(pieces) - 1
            with contextlib.nullcontext() if last else self._unsynchronised():
                parts, weights = self._losses(next(stream))
                share = {name: part.sum() / train.batch for name, part in parts.items()}
                total = torch.stack([weights[name] * value for name, value in share.items()]).sum()
                share["loss"] = total
                # DDP averages over processes; the shares of a batch must be summed.
                (dist.world() * total).backward()
            for name, value in share.items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        return sums

    def _losses(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        parts = self.parts
        batch = to_device(batch, parts.device)
        with torch.no_grad():
            latents = parts.latents(batch)
            learns = parts.model.learned_conditioner is not None
            condition = None if learns else parts.conditioner.encode(batch).to(parts.device)
        with torch.autocast(
            parts.device.type, torch.bfloat16, enabled=self.run.train.precision == "bf16"
        ):
            return self.network(batch, latents, condition)

    def _unsynchronised(self) -> contextlib.AbstractContextManager[None]:
        """Micro-batches before the last keep their gradients: one reduction a step."""
        wait = getattr(self.network, "no_sync", contextlib.nullcontext)
        return wait()
