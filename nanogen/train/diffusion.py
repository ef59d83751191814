"""Training a diffusion model: one network, one optimiser, one average.

batch -> losses -> backward -> finite on every process? -> clip -> step -> average

No tokenizer, backbone or objective is known by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from nanogen import dist
from nanogen.cache.use import training_task
from nanogen.data.loader import check_uncut, micro_batches
from nanogen.errors import ConfigError
from nanogen.model import to_device
from nanogen.run import Parts
from nanogen.train import checkpoint, posthoc
from nanogen.train.ema import Ema
from nanogen.train.loop import due
from nanogen.train.power_ema import PowerEma
from nanogen.train.settings import Machine
from nanogen.train.trainer import Trainer
from nanogen.types import Batch


class DiffusionTrainer(Trainer):
    """The trainer of a `Run`. Its checkpoints hold `model`, `ema` and `optimiser`, and `posthoc`
    where averages of several widths are kept.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.run, training_task(parts), parts.device)
        self.parts, self.run = parts, parts.run
        model, train = parts.model, self.run.train
        micro = self.run.machine.micro_batch
        check_uncut(model.objective.coupled, train.batch, micro, dist.world())
        _prepare(model.backbone, self.run.machine)
        if dist.world() > 1:
            devices = [parts.device.index or 0] if parts.device.type == "cuda" else None
            self.network: nn.Module = nn.parallel.DistributedDataParallel(
                model, device_ids=devices, gradient_as_bucket_view=True
            )
        else:
            self.network = model
        # Built from the wrapped model: weights are the same on every process from here on.
        self.ema = Ema(model.trained(), train.ema, train.ema_warmup)
        self.powers = PowerEma(model.trained(), train.posthoc)
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
        # The weights after a refused step are those before it, for as long as any.
        self.powers.update(progress.seen + train.batch, train.batch)
        self.optimiser.zero_grad(set_to_none=True)
        return values | {"learning_rate_factor": factor}

    def groups(self) -> dict[str, Mapping[str, Tensor]]:
        model = self.parts.model
        found: dict[str, Mapping[str, Tensor]] = {
            "model": {name: p.detach() for name, p in model.state_dict().items()},
            "ema": self.ema.values,
            "optimiser": checkpoint.moments(self.optimiser, model.trained()),
        }
        if self.run.train.posthoc:
            found["posthoc"] = self.powers.named()
        return found

    def restore(self, read: Callable[[str], dict[str, Tensor]]) -> None:
        model = self.parts.model
        model.load_state_dict(read("model"), strict=True)
        checkpoint.restore_averages(self.ema, read("ema"))
        checkpoint.restore_moments(self.optimiser, model.trained(), read("optimiser"))
        if self.run.train.posthoc:
            self.powers.restore(read("posthoc"))

    def keep(self, folder: Path) -> None:
        train, seen = self.run.train, self.progress.seen
        if train.posthoc and dist.rank() == 0 and due(self.run, seen, train.snapshot_every):
            posthoc.keep(folder, self.powers, seen)

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


def _prepare(backbone: nn.Module, machine: Machine) -> None:
    """Have a backbone compiled or recomputed, in place: names of parameters stay as they are.

    Objectives are never compiled: they draw random numbers and choose branches, and a compiler
    would do so once for all steps. ConfigError where a backbone cannot be recomputed.
    """
    if machine.recompute:
        if not hasattr(backbone, "recompute"):
            raise ConfigError(
                "machine.recompute=True: this backbone keeps all activations; leave it out, and "
                "lower machine.micro_batch to save memory"
            )
        cast(Any, backbone).recompute = True
    if machine.compile:
        backbone.compile()
