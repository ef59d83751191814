"""Evaluation while a run trains: the same harness, and the same numbers, as afterwards.

Nothing here can disturb training: what is drawn is a function of the sampling seed and the weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nanogen import config, dist
from nanogen.bench import record
from nanogen.evaluation import measure
from nanogen.evaluation.measure import Plan
from nanogen.evaluation.subjects import DrawnByRun
from nanogen.files import whole_file
from nanogen.metrics import harness
from nanogen.metrics.base import Context
from nanogen.metrics.names import metric_of
from nanogen.metrics.reference import load_encoder
from nanogen.run import Parts, Run
from nanogen.run_folder import Opened
from nanogen.sampling.grid import grid
from nanogen.train.loop import Hooks
from nanogen.train.signals import Check

GRID = 40
"""samples of the grid that training draws"""


def plan_of(parts: Parts, out: Path, check: Check = lambda: None, quiet: bool = True) -> Plan:
    """What a run says is to be measured of it."""
    wanted = parts.run.evaluation
    context = Context(parts.task.source, parts.device, precision=wanted.precision)
    return Plan(wanted.metrics, context, out, wanted.repeats, check, quiet)


def hooks(parts: Parts, folder: Path) -> Hooks:
    """What a training run does at its due moments: a grid of samples, records of its metrics.

    What the folder already holds is not done again. Raises a UserError where data, conditioner or
    metrics do not suit each other: better before training than after it.
    """
    out = folder / "records"
    subject = DrawnByRun(Opened(parts, 0, "ema"), stay=True)
    measure.check(subject, plan_of(parts, out))
    # A network whose fingerprint was asked for would stay on the device while the run trains.
    load_encoder.cache_clear()
    parts.conditioner.encode(parts.task.batch(np.zeros(1, np.int64)))
    if parts.run.train.sample_every or parts.run.evaluation.metrics:
        parts.conditioner.encode(parts.task.request(0, 1))
        parts.sampler()

    def evaluate(seen: int, check: Check) -> None:
        done = dist.rank() == 0 and measured(parts.run, out, seen)
        if not dist.any_flag(done, parts.device):
            subject = DrawnByRun(Opened(parts, seen, "ema"), stay=True)
            measure.evaluate(subject, plan_of(parts, out, check))

    return Hooks(
        sample=lambda seen: save_grid(parts, folder / "samples" / f"{seen:012d}.png"),
        evaluate=evaluate,
    )


def measured(run: Run, folder: Path, seen: int) -> bool:
    """Whether records of every metric of a run exist at `seen` images, for its averaged weights."""
    if not folder.is_dir():
        return False
    digest = config.digest(run.identity())
    mine = [r for r in record.read(folder) if (r.config_hash, r.weights) == (digest, "ema")]
    found = {metric_of(r.metric) for r in mine if r.seen == seen}
    return found >= {metric.title for metric in harness.named(run.evaluation.metrics)}


def save_grid(parts: Parts, target: Path) -> None:
    """A fixed set of samples as one picture, unless it is there.

    The same seeds at every moment, so that pictures can be compared.
    """
    if dist.rank() == 0 and not target.exists():
        request = parts.task.request(0, GRID)
        images = torch.cat([images.cpu() for _, images in parts.sampler().stream(request)])
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as part:
            grid(images, parts.task.captions(request)).save(part, format="PNG")
    dist.barrier()
