"""From a subject and names of metrics to records in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import cast

import torch

from nanogen import dist, registry
from nanogen.bench import outcomes, record
from nanogen.bench.record import Record
from nanogen.errors import MetricError
from nanogen.evaluation.drawn import DrawnOnce
from nanogen.evaluation.repeats import averaged
from nanogen.evaluation.subjects import Subject
from nanogen.files import writable_folder
from nanogen.metrics import harness
from nanogen.metrics.base import Context, Metric, Unfit
from nanogen.metrics.blocks import SUFFIX, Kept
from nanogen.metrics.harness import Read, Scores, Work
from nanogen.metrics.prompted import PromptedMetric
from nanogen.progress import Display
from nanogen.prompts.base import PromptSet
from nanogen.store import find

log = logging.getLogger(__name__)

KEPT = ".blocks"
"""folder beside the records with what was measured so far"""


@dataclass(frozen=True)
class Plan:
    """What is to be measured of a subject."""

    metrics: Sequence[str]
    context: Context
    out: Path
    """folder of the records"""
    repeats: int = 1
    check: Callable[[], None] = lambda: None
    """called before each batch, equally often on every process; what it raises ends the evaluation
    """
    quiet: bool = True
    """show no progress"""

    def chosen(self) -> list[Metric]:
        return harness.choose(self.metrics, self.context)


def check(subject: Subject, plan: Plan) -> None:
    """Raise a UserError where something cannot be measured: better now than hours later."""
    if plan.repeats > 1:
        subject.again(1)
    for metric in plan.chosen():
        check_one(subject, metric)


def check_one(subject: Subject, metric: Metric) -> None:
    """The same of one metric."""
    samples = subject.samples(metric.prompts)
    try:
        harness.fits([metric], subject.kind, samples)
        metric.check_request(subject.request(metric.prompts, 0, samples))
    except Unfit as problem:
        raise MetricError(f"{problem}; {subject.remedy(problem)}") from problem


def evaluate(subject: Subject, plan: Plan) -> list[Record]:
    """Measure a subject and write one record for each score; the same on every process.

    What was measured before a kill is not measured again.
    """
    if not plan.metrics:
        return []
    check(subject, plan)
    writable_folder(plan.out)
    started = time.monotonic()
    with contextlib.ExitStack() as kept:
        found = [
            _scores(subject if repeat == 0 else subject.again(repeat), plan, kept)
            for repeat in range(plan.repeats)
        ]
        scores = averaged(found) if len(found) > 1 else found[0]
        seconds = round(time.monotonic() - started, 3)
        records = write(list(_records(subject, scores, seconds)), plan.out)
        if dist.rank() == 0:
            for name, measured in scores.items():
                one = next(r for r in records if r.metric == name)
                outcomes.write(plan.out, one, measured.score.outcomes)
    if dist.rank() == 0 and not plan.quiet:
        _tell_unfinished(plan.out / KEPT)
    return records


@contextlib.contextmanager
def kept_in(folder: Path) -> Generator[Kept]:
    """What is kept in a folder of blocks: of this command alone, and removed when all went well, or
    nothing came to be kept.

    MetricError where another command measures the same: two would take each other's blocks.
    """
    blocks = Kept(folder)
    file = folder.parent / f"{folder.name}.lock"
    with contextlib.ExitStack() as held:
        taken = dist.rank() == 0 and not _locked(file, held)
        # Every process hears of it: none waits for one that has left.
        if dist.any_flag(taken, torch.device("cpu")):
            raise MetricError(
                f"another command measures the same for {folder.parents[1]}; wait for it, or "
                "choose another --out"
            )
        try:
            yield blocks
            blocks.clear()
        finally:
            if dist.rank() == 0:
                _remove_empty(folder, file)


def _locked(file: Path, held: contextlib.ExitStack) -> bool:
    """Take a lock until `held` closes; whether nobody else has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = held.enter_context(file.open("w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # some network file systems have no locks
    return True


def _remove_empty(folder: Path, lock: Path) -> None:
    """Leave nothing behind where no block is kept."""
    with contextlib.suppress(OSError):
        folder.rmdir()
    if not folder.exists():
        lock.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another evaluation still keeps some there
        folder.parent.rmdir()


def _tell_unfinished(folder: Path) -> None:
    """Say what other evaluations keep on disk: who never continues one never learns of it."""
    unfinished = {file.parent for file in folder.glob(f"*/*{SUFFIX}")}
    if unfinished:
        log.warning(
            "%s keeps the blocks of %d evaluation%s that did not end; the same command goes on "
            "with each, and without any the folder can be removed",
            *(folder, len(unfinished), "s" * (len(unfinished) > 1)),
        )


def _scores(subject: Subject, plan: Plan, kept: contextlib.ExitStack) -> Scores:
    """Metrics of one set of prompts are measured on the same images."""

    def prompts_of(metric: Metric) -> str:
        return metric.prompts

    scores: Scores = {}
    for prompts, group in groupby(sorted(plan.chosen(), key=prompts_of), key=prompts_of):
        passes = _passes(list(group), subject)
        with contextlib.ExitStack() as drawn:
            read = functools.partial(subject.read, prompts)
            if len(passes) > 1 and not subject.rereads:
                images = plan.out / KEPT / f"{_digest(subject, plan, prompts, ())}-images"
                drawn.enter_context(kept_in(images)).ready()
                read = DrawnOnce(images, read).read
            for number, metrics in enumerate(passes):
                if number == 1:
                    subject.rest()
                blocks = kept_in(plan.out / KEPT / _digest(subject, plan, prompts, metrics))
                one = Pass(prompts, metrics, read, kept.enter_context(blocks))
                scores |= _measured(subject, plan, one)
    return scores


@dataclass(frozen=True)
class Pass:
    """Metrics that see each image of a set of prompts at the same time."""

    prompts: str
    metrics: Sequence[Metric]
    """none: the images are only drawn"""
    read: Read
    kept: Kept

    @property
    def name(self) -> str:
        """For whoever waits for it."""
        if not self.metrics:
            return f"drawing {self.prompts or 'samples'}"
        alone = self.metrics[0].title if len(self.metrics) == 1 else ""
        return f"measuring {alone or self.prompts or 'samples'}"


def _passes(metrics: Sequence[Metric], subject: Subject) -> list[list[Metric]]:
    """What is measured together: while images are drawn, the metrics that share small networks;
    then each scoring model, alone in memory.
    """
    scoring = [m for m in metrics if isinstance(m, PromptedMetric) and m.assets]
    shared = [metric for metric in metrics if metric not in scoring]
    first = [shared] if shared or not subject.rereads else []
    return first + [[metric] for metric in scoring]


def _measured(subject: Subject, plan: Plan, one: Pass) -> Scores:
    samples = subject.samples(one.prompts)
    display = Display(one.name, -(-samples // dist.world()), plan.quiet or dist.rank() > 0)
    work = Work(
        samples=samples,
        batch=subject.batch,
        read=one.read,
        kept=one.kept,
        check=plan.check,
        show=display.show,
    )
    try:
        return harness.measure(one.metrics, work, plan.context)
    finally:
        display.close()


def _digest(subject: Subject, plan: Plan, prompts: str, metrics: Sequence[Metric]) -> str:
    """A name for everything that decides what is kept of an evaluation."""
    context = plan.context
    needed = [asset for metric in metrics for asset in metric.needed()]
    needed += cast(type[PromptSet], registry.get("prompts", prompts)).assets if prompts else ()
    said = {
        **subject.identity,
        "prompts": prompts,
        "metrics": [f"{metric.title} {metric.version}" for metric in metrics],
        "assets": {asset.name: find(asset).sha256 for asset in needed},
        "samples": subject.samples(prompts),
        "batch": subject.batch,
        "data": context.source.fingerprint,
        "precision": context.precision,
        "measured_on": context.device.type,
        "versions": record.versions(),
        "commit": record.commit(),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _records(subject: Subject, scores: Scores, seconds: float) -> Iterator[Record]:
    commit, versions = record.commit(), record.versions()
    for name, measured in scores.items():
        score = measured.score
        yield subject.record(
            {
                "metric": name,
                "version": measured.version,
                "value": score.value,
                "standard_error": score.standard_error,
                "n": score.n,
                "higher_is_better": score.higher_is_better,
                "facts": dict(score.facts),
                "skipped": measured.skipped,
                "precision": measured.precision,
                "commit": commit,
                "versions": versions,
                "seconds": seconds,
            }
        )


def write(records: list[Record], folder: Path) -> list[Record]:
    """Write records on the first process; returns them."""
    if dist.rank() == 0:
        for one in records:
            record.write(folder, one)
    dist.barrier()
    return records
