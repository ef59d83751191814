"""One step of training a tokenizer: the autoencoder first, then its discriminator.

    L1 + perceptual distance + what the autoencoder adds + weight * balance * adversarial loss

The discriminator is in eval mode while the decoder plays against it, and then learns from what the
updated decoder makes without noise, clamped and in 256 levels, as images are (RAE, arXiv
2510.11690). Works in any number of processes, whose weights are equal from the start: they are a
function of the seed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nanogen import dist
from nanogen.data.loader import micro_batches
from nanogen.model import to_device
from nanogen.stage1.adversarial import DISCRIMINATOR_LOSSES, generator_loss
from nanogen.stage1.augment import diff_augment
from nanogen.stage1.balance import Sides, balanced_backward
from nanogen.stage1.games import Game
from nanogen.stage1.repa_e import evaluated, held
from nanogen.stage1.run import TokenizerParts
from nanogen.train import checkpoint
from nanogen.train.ema import Ema
from nanogen.train.gradients import sum_gradients, trained
from nanogen.train.trainer import Trainer
from nanogen.types import Batch, to_float, to_uint8


class TokenizerTrainer(Trainer):
    """The trainer of a `TokenizerRun`.

    Its checkpoints hold `model`, `ema` and `optimiser`, and with a discriminator `discriminator`
    and `discriminator_optimiser`.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        super().__init__(parts.run, parts.task, parts.device)
        self.parts, self.run = parts, parts.run
        self.autoencoder, self.game = parts.autoencoder, parts.game
        self.ema = Ema(self.autoencoder.trained(), self.run.train.ema, self.run.train.ema_warmup)
        self.optimiser = self.run.optimiser.build(self.autoencoder.trained())
        self.rates = _rates(self.optimiser)
        if self.game is not None:
            self.opponent = self.game.rules.optimiser.build(trained(self.game.discriminator))
            self.opponent_rates = _rates(self.opponent)

    def update(self, stream: Iterator[Batch]) -> dict[str, float]:
        train, seen, game = self.run.train, self.progress.seen, self.game
        pieces = micro_batches(train.batch, self.run.machine.micro_batch or train.batch)
        batches = [to_device(next(stream), self.device) for _ in pieces]
        factor = self.run.schedule.factor(seen, train.batch, train.images)
        _set_rates(self.optimiser, self.rates, factor)
        values = self._reconstruct(batches) | {"learning_rate_factor": factor}
        accepted = self.accepts(values)
        if accepted:
            self.optimiser.step()
            self.ema.update(self.progress.steps)
        self.optimiser.zero_grad(set_to_none=True)
        if accepted and game is not None and seen >= game.rules.learns_from:
            values |= self._discriminate(batches, game)
        return values

    def _reconstruct(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Gradients of the autoencoder's losses over a whole step; the mean of each."""
        train, game, shares = self.run.train, self._playing(), Shares(self.run.train.batch)

        def sides(batch: Batch) -> Sides:
            parts, weights = self._losses(batch, game)
            rest = torch.stack([weights[name] * parts[name] for name in weights]).sum(0)
            share = shares.add({**parts, "loss": rest})
            return Sides(share["loss"], share.get("adversarial", torch.zeros_like(share["loss"])))

        self.autoencoder.train()
        weight = self._backward([functools.partial(sides, batch) for batch in batches], game)
        parameters = self.autoencoder.trained()
        sum_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters.values(), train.clip)
        values = shares.means() | {"gradient_norm": float(norm)}
        if game is not None:
            values["loss"] += weight * values["adversarial"]
            values["adversarial_weight"] = weight
        return values

    def _playing(self) -> Game | None:
        """The game, once the decoder plays it."""
        game = self.game
        started = game is not None and self.progress.seen >= game.rules.judges_from
        return game if started else None

    def _backward(self, pieces: Sequence[Callable[[], Sides]], game: Game | None) -> float:
        """Add up gradients; returns the weight that the adversarial loss had."""
        if game is not None and game.rules.adaptive:
            parameters, last = self.autoencoder.trained(), self.autoencoder.last
            balance = balanced_backward(pieces, parameters, last, game.rules.weight)
            return game.rules.weight * float(balance)
        weight = 0.0 if game is None else game.rules.weight
        for piece in pieces:
            sides = piece()
            (sides.rest + weight * sides.adversarial).backward()
        return weight

    def _losses(
        self, batch: Batch, game: Game | None
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Losses [B] of a micro-batch, and the weights of all but the adversarial one."""
        with self._autocast():
            made = self.autoencoder(batch)
            images = made.images.float()
            parts = {"l1": (images - batch.images).abs().flatten(1).mean(1), **made.parts}
            weights = {"l1": 1.0, **made.weights}
            if self.parts.distance is not None:
                parts["perceptual"] = self.parts.distance(batch.images, images).float()
                weights["perceptual"] = self.run.perceptual.weight
            if game is not None:
                with held(game.discriminator), evaluated(game.discriminator):
                    seen = self._augmented(images * 2 - 1, "generator", batch.keys, game)
                    parts["adversarial"] = generator_loss(game.discriminator(seen).float())
        return parts, weights

    def _discriminate(self, batches: Sequence[Batch], game: Game) -> dict[str, float]:
        """The discriminator's step, on the same images; the mean of its loss and logits."""
        train, module = self.run.train, game.discriminator
        factor = game.rules.factor(self.run.schedule, self.progress.seen, train.batch, train.images)
        _set_rates(self.opponent, self.opponent_rates, factor)
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        module.train()
        shares = Shares(train.batch)
        for batch in batches:
            # Buffers move with each look at images; all pieces of a batch begin where it does.
            _refill(module, before)
            shares.add(self._opposing_losses(batch, game))["discriminator"].backward()
        parameters = trained(module)
        sum_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters.values(), train.clip)
        values = shares.means()
        values |= {
            "gradient_norm_discriminator": float(norm),
            "learning_rate_factor_discriminator": factor,
        }
        if self.accepts(values):
            self.opponent.step()
        else:
            _refill(module, before)
        self.opponent.zero_grad(set_to_none=True)
        return values

    def _opposing_losses(self, batch: Batch, game: Game) -> dict[str, Tensor]:
        with self._autocast():
            self.autoencoder.eval()
            with torch.no_grad():
                made = self.autoencoder.from_raw(self.autoencoder.raw(batch.images)).float()
                # Real images have 256 levels: without them a fake would be told by its steps.
                fake = to_float(to_uint8(made)) * 2 - 1
            seen = self._augmented(fake, "fake", batch.keys, game)
            fake_logits = game.discriminator(seen).float()
            seen = self._augmented(batch.images * 2 - 1, "real", batch.keys, game)
            real_logits = game.discriminator(seen).float()
        loss = DISCRIMINATOR_LOSSES[game.rules.loss](real_logits, fake_logits)
        return {
            "discriminator": loss,
            "logits_real": real_logits.detach().mean(1),
            "logits_fake": fake_logits.detach().mean(1),
        }

    def _augmented(self, images: Tensor, purpose: str, keys: Tensor, game: Game) -> Tensor:
        return diff_augment(
            images, self.run.seed, f"augment/{purpose}", keys, game.rules.augmentation
        )

    def _autocast(self) -> torch.autocast:
        enabled = self.run.train.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def groups(self) -> dict[str, Mapping[str, Tensor]]:
        found: dict[str, Mapping[str, Tensor]] = {
            "model": _state(self.autoencoder),
            "ema": self.ema.values,
            "optimiser": checkpoint.moments(self.optimiser, self.autoencoder.trained()),
        }
        if self.game is not None:
            module = self.game.discriminator
            found["discriminator"] = _state(module)
            found["discriminator_optimiser"] = checkpoint.moments(self.opponent, trained(module))
        return found

    def restore(self, read: Callable[[str], dict[str, Tensor]]) -> None:
        self.autoencoder.load_state_dict(read("model"), strict=True)
        checkpoint.restore_averages(self.ema, read("ema"))
        checkpoint.restore_moments(self.optimiser, self.autoencoder.trained(), read("optimiser"))
        if self.game is not None:
            module = self.game.discriminator
            module.load_state_dict(read("discriminator"), strict=True)
            stored = read("discriminator_optimiser")
            checkpoint.restore_moments(self.opponent, trained(module), stored)

    @contextlib.contextmanager
    def averaged(self) -> Generator[None, None, None]:
        self.autoencoder.eval()
        with self.ema.applied():
            yield


@dataclass
class Shares:
    """Sums of losses over the samples of this process, divided by the size of the whole batch."""

    batch: int
    totals: dict[str, Tensor] = field(default_factory=dict)

    def add(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses [B] of a micro-batch -> its share of each mean, with a gradient."""
        share = {name: part.sum() / self.batch for name, part in parts.items()}
        for name, value in share.items():
            total = self.totals.get(name, torch.zeros_like(value))
            self.totals[name] = total + value.detach()
        return share

    def means(self) -> dict[str, float]:
        """Over the whole batch, on every process; a collective call."""
        return {name: float(value) for name, value in dist.sum_across(self.totals).items()}


def _rates(optimiser: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimiser.param_groups]


def _set_rates(optimiser: torch.optim.Optimizer, rates: Sequence[float], factor: float) -> None:
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate * factor


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.state_dict().items()}


def _refill(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, buffer in module.named_buffers():
        buffer.copy_(values[name])
