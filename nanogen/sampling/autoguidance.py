"""Opening the bad model of auto-guidance: another trained run of the same task and space.

    nanogen eval runs/large sampling.auto.run=runs/small sampling.auto.scale=1.5

It is read as any run is, has its own conditioner, and answers to the same labels or captions. A
process opens it once: all drawings of one training are guided by the same weights.
"""

from __future__ import annotations

import functools
from pathlib import Path

from nanogen.errors import ConfigError
from nanogen.objectives.base import Objective
from nanogen.run import Parts
from nanogen.run_folder import WEIGHTS, Opened, open_run
from nanogen.sampling.branches import Network
from nanogen.sampling.guidance import Auto
from nanogen.train import posthoc


def opened(auto: Auto, parts: Parts) -> Network | None:
    """The bad model for samples of `parts`, None where `auto` names none.

    CheckpointError where the folder holds no trained run; ConfigError, with what differs, where
    that run is of another space or task, or the weights have an unknown name.
    """
    if not auto.run:
        return None
    if auto.weights not in WEIGHTS and posthoc.width_of(auto.weights) is None:
        raise ConfigError(
            f"sampling.auto.weights={auto.weights!r}: choose ema or raw, or posthoc-0.07 after "
            f"nanogen ema {auto.run} --width 0.07"
        )
    machine = f"machine.device={parts.device.type}", f"machine.threads={parts.run.machine.threads}"
    bad = _open(Path(auto.run).resolve(), auto.weights, machine)
    theirs, ours = _traits(bad.parts), _traits(parts)
    for what, found in theirs.items():
        if found != ours[what]:
            raise ConfigError(
                f"sampling.auto.run={auto.run} does not fit this run ({what}: {found} there, "
                f"{ours[what]} here); name a run of the same task, tokenizer, objective and leaves"
            )
    model = bad.parts.model
    return Network(
        model.backbone,
        model.objective,
        bad.parts.conditioner,
        bad.seen,
    )


@functools.lru_cache(maxsize=1)
def _open(folder: Path, weights: str, overrides: tuple[str, ...]) -> Opened:
    return open_run(folder, weights, list(overrides))


def _traits(parts: Parts) -> dict[str, str]:
    """What two models must share, for the difference of their velocities to mean anything."""
    spec, classes = parts.tokenizer.spec, parts.task.source.classes
    by_class = parts.conditioner.spec.classes is not None
    return {
        "latent space": f"{spec.channels}x{spec.height}x{spec.width}",
        "tokenizer": parts.tokenizer.fingerprint,
        "leaves": ", ".join(f"{name} {width}" for name, width in parts.model.leaves.items())
        or "none beside the image",
        "condition": "classes" if by_class else "captions",
        "classes": ", ".join(classes) if by_class else "",
        "velocity": _velocity(parts.model.objective),
    }


def _velocity(objective: Objective) -> str:
    if objective.one_step:
        return "of one step"
    return "mean over a step" if objective.interval else "at a time"
