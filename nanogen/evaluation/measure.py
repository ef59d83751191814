"""From a subject and names of metrics to records in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from nanogen import dist
from nanogen.bench import outcomes, record
from nanogen.bench.record import Record
from nanogen.errors import MetricError
from nanogen.evaluation.subjects import Subject
from nanogen.files import writable_folder
from nanogen.metrics import harness
from nanogen.metrics.base import Context, Metric, Outcomes, Unfit
from nanogen.metrics.blocks import SUFFIX, Kept
from nanogen.metrics.harness import Scores, Work
from nanogen.metrics.prompted import PromptedMetric
from nanogen.progress import Display
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
    if dist.rank() > 0:
        yield blocks
        blocks.clear()
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.parent / f"{folder.name}.lock"
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MetricError(
                f"another command measures the same for {folder.parents[1]}; wait for it, or "
                "choose another --out"
            ) from None
        except OSError:
            pass  # some network file systems have no locks
        try:
            yield blocks
            blocks.clear()
        finally:
            _remove_empty(folder, file)


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
    """Metrics of one set of prompts are measured on the same images, in one pass; but where images
    can be had again for nothing, each scoring model is alone in memory.
    """

    def passes(metric: Metric) -> tuple[str, str]:
        scores_alone = subject.rereads and isinstance(metric, PromptedMetric) and metric.assets
        return metric.prompts, metric.title if scores_alone else ""

    scores: Scores = {}
    for (prompts, _), group in groupby(sorted(plan.chosen(), key=passes), key=passes):
        metrics = list(group)
        blocks = kept.enter_context(kept_in(plan.out / KEPT / _digest(subject, metrics)))
        scores |= _measured(subject, plan, prompts, metrics, blocks)
    return scores


def _measured(
    subject: Subject, plan: Plan, prompts: str, metrics: list[Metric], kept: Kept
) -> Scores:
    samples = subject.samples(prompts)
    what = prompts or "samples"
    display = Display(
        f"measuring {what}", -(-samples // dist.world()), plan.quiet or dist.rank() > 0
    )
    work = Work(
        samples=samples,
        batch=subject.batch,
        read=lambda start, stop: subject.read(prompts, start, stop),
        kept=kept,
        check=plan.check,
        show=display.show,
    )
    try:
        return harness.measure(metrics, work, plan.context)
    finally:
        display.close()


def _digest(subject: Subject, metrics: Sequence[Metric]) -> str:
    """A name for everything that decides what is kept of an evaluation."""
    context = metrics[0].context
    said = {
        **subject.identity,
        "metrics": [f"{metric.title} {metric.version}" for metric in metrics],
        "assets": {a.name: find(a).sha256 for metric in metrics for a in metric.needed()},
        "samples": subject.samples(metrics[0].prompts),
        "batch": subject.batch,
        "data": context.source.fingerprint,
        "precision": context.precision,
        "measured_on": context.device.type,
        "versions": record.versions(),
        "commit": record.commit(),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def averaged(found: Sequence[Scores]) -> Scores:
    """The mean over repeats with other noise.

    Its error: of the mean over repeats, or what the score itself knows (which prompts there are,
    say), whichever is larger. The values stand in the facts.
    """
    scores: Scores = {}
    for name, first in found[0].items():
        each = [scores[name].score for scores in found]
        values = [score.value for score in each]
        deviation = statistics.stdev(values)
        errors = [deviation / len(values) ** 0.5]
        errors += [score.standard_error for score in each if score.standard_error is not None]
        facts = {
            **first.score.facts,
            "repeats": len(values),
            "deviation_of_repeats": deviation,
            "values_of_repeats": ", ".join(f"{value:.6g}" for value in values),
        }
        score = replace(
            first.score,
            value=statistics.fmean(values),
            standard_error=max(errors) or None,
            facts=facts,
            outcomes=together([one.outcomes for one in each if one.outcomes is not None]),
        )
        skipped = sum(scores[name].skipped for scores in found)
        scores[name] = replace(first, score=score, skipped=skipped)
    return scores


def together(found: Sequence[Outcomes]) -> Outcomes | None:
    """The outcomes of all repeats, one after another; None where there are none."""
    if not found:
        return None
    return Outcomes(
        tuple(prompt for one in found for prompt in one.prompts),
        tuple(tag for one in found for tag in one.tags),
        tuple(value for one in found for value in one.values),
    )


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
