"""A checkpoint of diffusion-bench as a run folder of ours, and back.

    import_run(Path("ddt.pt"), Path("runs/flux2"), recipes.preset("imagenet/flux2"), Choice())
    export_run(Path("runs/flux2"), Path("ddt.pt"))

Weights and their averages are taken over, bit for bit where they are float32. The state of the
optimiser is not: training does not go on from it, sampling and evaluation do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from nanogen import config
from nanogen.errors import CheckpointError, ConfigError, DataError, suggest
from nanogen.exchange import files, fit
from nanogen.exchange.architecture import Architecture
from nanogen.exchange.diffusion_bench import Weights, check, from_reference, shapes_of, to_reference
from nanogen.exchange.fit import BACKBONE, PROJECTOR
from nanogen.files import whole_folder
from nanogen.run import Run
from nanogen.run import check as check_run
from nanogen.run_folder import CONFIG
from nanogen.train import checkpoint
from nanogen.train.checkpoint import Progress

WeightsOf: TypeAlias = Literal["both", "ema", "raw"]


@dataclass(frozen=True)
class Choice:
    """What of a checkpoint is taken over, and what it does not say."""

    weights: WeightsOf = "both"
    """both: the weights and their averages; ema or raw: one of them, which stands for both"""
    step: int | None = None
    """optimiser steps, of a file that does not say"""
    projector: bool = True
    """whether a REPA projector is kept: sampling does without"""

    def __post_init__(self) -> None:
        known = get_args(WeightsOf)
        if self.weights not in known:
            raise ConfigError(f"--weights {self.weights!r}: {suggest(self.weights, known)}")
        if self.step is not None and self.step < 0:
            raise ConfigError(f"--step {self.step}: must not be negative")


@dataclass(frozen=True)
class Written:
    """What was made."""

    path: Path
    seen: int
    notes: tuple[str, ...]
    """what was left out, and what stands in for something else"""


def import_run(source: Path, target: Path, run: Run, choice: Choice) -> Written:
    """Write a run folder that `nanogen sample` and `nanogen eval` open.

    DataError for a file that does not hold a network of diffusion-bench to the last tensor,
    ConfigError where it is not that of `run`.
    """
    check_run(run)
    stored = files.read(source)
    step, notes = _step(stored, choice, source), list(stored.notes)
    given = {
        name: from_reference(tensors, f"{source} ({name})", _ratio(run))
        for name, tensors in _kept(stored, choice, source).items()
    }
    if not choice.projector:
        if not any(weights.projector for weights in given.values()):
            raise ConfigError(f"--drop-projector has no effect: {source} has no REPA projector")
        notes.append("its REPA projector is left out")
        given = {name: _without_projector(weights) for name, weights in given.items()}
    groups = _groups(run, given, str(source))
    progress = Progress(seen=step * run.train.batch, steps=step)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(target) as part:
        checkpoint.save(part / "checkpoints", progress, groups, keep=1)
        config.write(run, part / CONFIG)
    return Written(target, progress.seen, tuple(notes))


def export_run(folder: Path, target: Path) -> Written:
    """Write the newest checkpoint of a run folder as a checkpoint of diffusion-bench, with weights,
    averages and step. ConfigError for a run whose network it does not have.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no {CONFIG}; give one")
    run = config.read(Run, folder / CONFIG)
    path = checkpoint.latest(folder / "checkpoints")
    if path is None:
        raise CheckpointError(f"{folder} has no checkpoint yet; train it for longer")
    architecture = fit.expected(run, fit.surroundings_of(run))
    groups: dict[str, dict[str, Tensor]] = {}
    progress = checkpoint.load(
        path, lambda read: groups.update({name: read(name) for name in ("model", "ema")})
    )
    model = groups["model"]
    # Averages are kept of what is trained; the rest of a network is the same in both.
    theirs = {
        name: _theirs(architecture, tensors, f"{path} ({name})")
        for name, tensors in {"model": model, "ema": model | groups["ema"]}.items()
    }
    taken = (BACKBONE, PROJECTOR) if architecture.projector is not None else (BACKBONE,)
    left = sorted({name.rpartition(".")[0] for name in model if not name.startswith(taken)})
    files.write(target, theirs["model"], theirs["ema"], progress.steps)
    notes = tuple(f"{name} is left out: only training uses it" for name in left)
    return Written(target, progress.seen, notes)


def _theirs(
    architecture: Architecture, tensors: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """The state dict of diffusion-bench of the tensors of a checkpoint of a run."""
    projector = _inner(tensors, PROJECTOR) if architecture.projector is not None else {}
    found = to_reference(Weights(architecture, _inner(tensors, BACKBONE), projector))
    shapes = {name: tensor.shape for name, tensor in found.items()}
    check(shapes_of(architecture), shapes, where)
    return found


def _kept(stored: files.Stored, choice: Choice, source: Path) -> dict[str, Mapping[str, Tensor]]:
    """The state dicts that become our two groups of weights."""
    if choice.weights == "both":
        return {"model": stored.model, "ema": stored.ema}
    if stored.model is stored.ema:
        raise ConfigError(
            f"--weights {choice.weights} has no effect: {source} has no other weights; leave it out"
        )
    one = stored.ema if choice.weights == "ema" else stored.model
    return {"model": one, "ema": one}


def _groups(run: Run, given: Mapping[str, Weights], where: str) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint of `run`, by file and name."""
    around = fit.surroundings_of(run)
    fit.check(run, around, given["model"].architecture, where)
    if given["ema"].architecture != given["model"].architecture:
        raise DataError(
            f"{where}: its ema and its model are different networks; take one of them with "
            "--weights ema or --weights raw"
        )
    modules = fit.trained_on_meta(run, around)
    wanted = modules.state_dict()
    trained = {name for name, p in modules.named_parameters() if p.requires_grad}
    named = {group: _named(weights) for group, weights in given.items()}
    missing = sorted(wanted.keys() - named["model"].keys())
    if missing:
        raise ConfigError(
            f"{run.name} trains {missing[0]}{f' and {len(missing) - 1} more' * (len(missing) > 1)}"
            f", which {where} does not hold; turn off the term that does, such as terms.repa=off"
        )
    for name in sorted(wanted.keys() - trained):
        if not torch.equal(named["model"][name], named["ema"][name]):
            raise DataError(
                f"{where}: {name.removeprefix(BACKBONE)}, which is not trained, is not the same in "
                "its ema and its model, as where several processes began with other weights; take "
                "one of them with --weights ema or --weights raw"
            )
    return {
        "model": named["model"],
        "ema": {name: tensor for name, tensor in named["ema"].items() if name in trained},
    }


def _named(weights: Weights) -> dict[str, Tensor]:
    """By the names of a checkpoint of a run, in float32."""
    named = {f"{BACKBONE}{name}": tensor for name, tensor in weights.backbone.items()}
    named |= {f"{PROJECTOR}{name}": tensor for name, tensor in weights.projector.items()}
    return {name: tensor.float() for name, tensor in named.items()}


def _inner(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _without_projector(weights: Weights) -> Weights:
    return Weights(replace(weights.architecture, projector=None), weights.backbone, {})


def _ratio(run: Run) -> float | None:
    """The mlp_ratio of a run's backbone; None for one of a kind that has none."""
    return getattr(run.backbone, "mlp_ratio", None)


def _step(stored: files.Stored, choice: Choice, source: Path) -> int:
    if stored.step is not None and choice.step not in (None, stored.step):
        raise ConfigError(
            f"--step {choice.step} contradicts {source}, which was saved at step {stored.step}; "
            "leave it out"
        )
    return stored.step if stored.step is not None else choice.step or 0
