"""Evaluating a trained run: `nanogen eval RUN`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import chz

from nanogen import config, registry
from nanogen.bench.record import Record
from nanogen.errors import ConfigError, MetricError
from nanogen.evaluation import measure
from nanogen.evaluation.measure import Plan
from nanogen.evaluation.online import plan_of
from nanogen.evaluation.subjects import DrawnByRun, drawn_otherwise
from nanogen.metrics import harness
from nanogen.metrics.base import Metric, Unfit
from nanogen.run import Run
from nanogen.run_folder import CONFIG, open_run


def device_of(folder: Path, overrides: list[str]) -> str:
    """The device that a run is to be measured on; a folder without a run is refused later."""
    if not (folder / CONFIG).exists():
        return "cpu"
    return _configured(folder, overrides).machine.device


def _configured(folder: Path, overrides: list[str]) -> Run:
    run = config.read(Run, folder / CONFIG)
    return config.override(run, overrides) if overrides else run


def _measured(run: Run, metrics: Sequence[str]) -> Run:
    """The run with the metrics that are named, or its own."""
    named = tuple(metrics) or run.evaluation.metrics
    return chz.replace(run, evaluation=chz.replace(run.evaluation, metrics=named))


def _check(run: Run) -> None:
    """Raise a UserError for what is wrong with the metrics by the config alone: before networks
    are opened, which takes long and shows how it gets on.
    """
    kind = registry.entry_of(type(run.task)).name
    for metric in harness.named(run.evaluation.metrics):
        harness.is_for(metric, kind)
        samples = metric.minimum if metric.prompts else run.evaluation.samples
        try:
            # What subclasses check besides is looked up in the data, which is not opened yet.
            Metric.check(metric, samples)
        except Unfit as problem:
            raise MetricError(f"{problem}; {drawn_otherwise(problem)}") from problem


def of_run(
    folder: Path, metrics: Sequence[str], weights: str, overrides: list[str], out: Path
) -> list[Record]:
    """Measure the newest checkpoint of a run folder, with its own metrics unless others are
    named.
    """
    if metrics and any(override.startswith("evaluation.metrics=") for override in overrides):
        raise ConfigError("name metrics with --metrics or with evaluation.metrics, not with both")
    if (folder / CONFIG).exists():
        _check(_measured(_configured(folder, overrides), metrics))
    opened = open_run(folder, weights, overrides)
    run = opened.parts.run
    if metrics:
        opened = replace(opened, parts=replace(opened.parts, run=_measured(run, metrics)))
    elif not run.evaluation.metrics:
        raise ConfigError(
            f"{folder} names no metrics; give some with --metrics (see nanogen ls metrics)"
        )
    plan = plan_of(opened.parts, out, quiet=False)
    _refuse_unused(plan, overrides)
    return measure.evaluate(DrawnByRun(opened), plan)


def _refuse_unused(plan: Plan, overrides: list[str]) -> None:
    """ConfigError for a setting that none of the metrics makes use of."""
    chosen = plan.chosen()
    own = {bool(metric.prompts) for metric in chosen}
    for field, unused, why in (
        ("samples", own == {True}, "bring their prompts"),
        ("images_per_prompt", own == {False}, "bring no prompts"),
        ("precision", not any(m.takes_precision for m in chosen), "have a precision of their own"),
    ):
        if unused and any(o.startswith(f"evaluation.{field}=") for o in overrides):
            raise ConfigError(
                f"evaluation.{field} has no effect: {', '.join(plan.metrics)} {why}; leave it out"
            )
