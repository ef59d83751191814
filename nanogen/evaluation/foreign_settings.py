"""What can be set of an evaluation of images or pipelines that are not ours, and what is refused.

What is named decides the rest: metrics of the package see images at the size of its data, and the
score of one never depends on which others are named beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import chz
import torch

from nanogen import recipes
from nanogen.errors import ConfigError
from nanogen.evaluation.settings import Evaluation
from nanogen.images.settings import PipelineConfig
from nanogen.metrics import harness
from nanogen.metrics.base import Context, Metric
from nanogen.run import pick_device

REFERENCES = {"class_conditional": "animals/pixels-v", "text_to_image": "scenes/pixels-v"}
"""presets whose data foreign images are compared with where none is named, by kind of metric"""


@chz.chz
class Place:
    """Where it is computed."""

    device: str = chz.field(default="auto", doc="cpu, cuda, or auto: cuda where there is one")
    threads: int = chz.field(default=1, doc="CPU threads of a process")

    @chz.validate
    def _counts(self) -> None:
        if not 1 <= self.threads <= 1024:
            raise ConfigError(f"machine.threads={self.threads}: must lie in [1, 1024]")


@chz.chz
class Foreign:
    """What can be set of such an evaluation."""

    reference: str = chz.field(default="", doc="preset whose data are the reference")
    size: int = chz.field(
        default=0,
        doc="side that images are cropped to; 0: that of the reference for its own metrics, or as "
        "they are",
    )
    classes: int = chz.field(default=1_000, doc="that a class-conditional pipeline knows")
    evaluation: Evaluation = chz.field(default_factory=Evaluation)
    machine: Place = chz.field(default_factory=Place)
    pipeline: PipelineConfig = chz.field(default_factory=PipelineConfig)


@dataclass(frozen=True)
class Settled:
    """The settings, with what follows from the metrics that are named."""

    metrics: tuple[str, ...]
    context: Context
    texts: tuple[str, ...]
    """captions that the reference data offer"""
    size: int | None


def settle(metrics: Sequence[str], settings: Foreign) -> Settled:
    """Settings for metrics that are named; for none, for those of the reference's preset.

    ConfigError for metrics that have no images in common, or no real images to compare with.
    """
    device = pick_device(settings.machine.device)
    torch.set_num_threads(settings.machine.threads)
    kind, own = _kind(metrics)
    preset = recipes.preset(settings.reference or REFERENCES[kind])
    task = preset.task.build(preset.seed)
    if not metrics:
        metrics, own = preset.evaluation.metrics, True
    if not settings.reference:
        _refuse_unnamed_data(metrics)
    size = settings.size or (task.source.size if own or settings.reference else None)
    context = Context(task.source, device, precision=settings.evaluation.precision)
    return Settled(tuple(metrics), context, task.source.prompts(), size)


def _kind(metrics: Sequence[str]) -> tuple[str, bool]:
    """The kind of task of the metrics, and whether all of them come with the package: these know
    nothing but its data.
    """
    chosen = harness.named(metrics)
    kinds = {metric.task for metric in chosen} - {"any"}
    if len(kinds) > 1:
        raise ConfigError(
            f"metrics of {' and '.join(sorted(kinds))} tasks have no images in common; "
            "give one kind at a time"
        )
    own = all(map(_is_own, chosen))
    return kinds.pop() if kinds else "class_conditional", own


def _is_own(metric: Metric) -> bool:
    return not metric.assets and not metric.prompts


def refuse_mixed(settled: Settled) -> None:
    """ConfigError where some metrics see images at the size of the package's data and others as
    they are: the score of one must not depend on which others are named.
    """
    chosen = harness.choose(settled.metrics, settled.context)
    if named := [metric.title for metric in chosen if _is_own(metric)]:
        size = settled.context.source.size
        raise ConfigError(
            f"{', '.join(named)} would see images at {size} px and the others as they are; measure "
            f"them one after the other, or add size={size}"
        )


def _refuse_unnamed_data(metrics: Sequence[str]) -> None:
    """ConfigError where the package's data would stand in for real images that are not named."""
    if named := [m.title for m in harness.named(metrics) if m.of_data and not _is_own(m)]:
        raise ConfigError(
            f"{', '.join(named)}: no real images to compare with; name a preset that has them with "
            "--reference PRESET, or another reference in brackets behind the metric"
        )


def refuse_without_prompts(settled: Settled) -> None:
    """ConfigError where captions of the package's data would stand in for those of the user."""
    chosen = harness.choose(settled.metrics, settled.context)
    if named := [metric.title for metric in chosen if not metric.prompts and not _is_own(metric)]:
        raise ConfigError(
            f"{', '.join(named)}: no prompts to draw; give some with --prompts FILE, or name data "
            "that have some with --reference"
        )


def refuse(settings: Foreign, fields: Sequence[str], where: str) -> None:
    """ConfigError where a field of the evaluation is set that has no effect there."""
    for field in fields:
        value = getattr(settings.evaluation, field)
        if value != getattr(Evaluation(), field):
            raise ConfigError(f"evaluation.{field}={value} has no effect on {where}; leave it out")
    if settings.evaluation.metrics:
        raise ConfigError("name metrics with --metrics, not with evaluation.metrics")


def refuse_own(settings: Foreign, fields: Sequence[str], where: str) -> None:
    """The same for fields of the settings themselves."""
    for field in fields:
        if getattr(settings, field) != getattr(Foreign(), field):
            value = getattr(settings, field)
            raise ConfigError(f"{field}={value} has no effect on {where}; leave it out")


def refuse_unused(settled: Settled, settings: Foreign, prompts: Path | None = None) -> None:
    """ConfigError for what only metrics use that are not among those that are named."""
    named = ", ".join(settled.metrics)
    chosen = harness.choose(settled.metrics, settled.context)
    if not any(metric.takes_precision for metric in chosen):
        refuse(settings, ("precision",), f"{named}: they have one of their own")
    own = {bool(metric.prompts) for metric in chosen}
    if own == {True}:
        if prompts:
            raise ConfigError(
                f"--prompts has no effect on {named}: they bring theirs; leave it out"
            )
        refuse(settings, ("samples",), f"{named}: they bring their prompts")
    if own == {False}:
        refuse(settings, ("images_per_prompt",), f"{named}: they bring no prompts")
