"""Trainings of tokenizers that take a second, trained in this process."""

from __future__ import annotations

import contextlib
import os
import signal

from nanogen import config, run_folder
from nanogen.stage1 import hooks, recipes
from nanogen.stage1.run import TokenizerRun, build
from nanogen.stage1.trainer import TokenizerTrainer
from nanogen.train.loop import train

TINY = (
    "train.images=64",
    "train.batch=8",
    "train.log_every=24",
    "train.save_every=16",
    "train.sample_every=32",
    "schedule.warmup=16",
    "statistics=16",
    "evaluation.samples=20",
    "machine.device=cpu",
)
VAE = (
    "autoencoder.widths=8,8,16",
    "autoencoder.groups=4",
    "discriminator=patch",
    "discriminator.channels=4",
    "discriminator.layers=2",
    "discriminator.learns_from=16",
    "discriminator.judges_from=32",
)
RAE = (
    "autoencoder.width=32",
    "autoencoder.depth=1",
    "autoencoder.heads=2",
    "autoencoder.hidden=32",
    "perceptual=features",
    "discriminator=patch",
    "discriminator.channels=4",
    "discriminator.layers=2",
    "discriminator.schedule_clock=updates",
    "discriminator.learns_from=24",
    "discriminator.judges_from=40",
)


def tiny(preset: str = "animals/vae", *more: str) -> TokenizerRun:
    own = VAE if preset.endswith("vae") else RAE
    return config.override(recipes.preset(preset), [*TINY, *own, *more])


def trained(run: TokenizerRun, folder, stop_at: int | None = None) -> TokenizerTrainer:
    """Train as the command does; `stop_at` is when SIGTERM would have come."""
    parts = build(run)
    due = hooks.hooks(parts, folder)
    run_folder.prepare(run, folder, fresh=False)
    trainer = TokenizerTrainer(parts)
    with stopped(trainer, stop_at):
        train(trainer, folder, due)
    return trainer


@contextlib.contextmanager
def stopped(trainer: TokenizerTrainer, at: int | None):
    update = trainer.update

    def watched(stream):
        values = update(stream)
        if trainer.progress.seen + trainer.run.train.batch == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    trainer.update = watched
    yield


def exported(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "tokenizer").iterdir()}
