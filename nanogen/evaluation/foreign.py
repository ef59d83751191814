"""Evaluating what is not a run of ours: images that are there, and pipelines of others."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import chz
import torch
from torch import Tensor

from nanogen import dist, recipes
from nanogen.bench.record import Plain, Record
from nanogen.errors import ConfigError, DataError, MetricError
from nanogen.evaluation.measure import Plan, check, check_one, evaluate
from nanogen.evaluation.settings import Evaluation
from nanogen.evaluation.subjects import Given, drawn_otherwise, prompted, samples_of
from nanogen.files import writable_folder
from nanogen.images.base import Images
from nanogen.images.open import open_images
from nanogen.images.pipeline import Pipeline
from nanogen.images.settings import PipelineConfig
from nanogen.metrics import harness
from nanogen.metrics.base import Context, Metric, Unfit
from nanogen.run import pick_device
from nanogen.sampling.draw import read_prompts
from nanogen.types import Request

log = logging.getLogger(__name__)

MOST_NAMED = 10
"""images that could not be read of which each gets a line"""
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


def of_images(place: Path, metrics: Sequence[str], settings: Foreign, out: Path) -> list[Record]:
    """Measure a folder, a tar or an npz of images."""
    if settings.pipeline != PipelineConfig():
        raise ConfigError("pipeline.* has no effect on --images; leave it out")
    _refuse(settings, ("samples", "images_per_prompt", "every", "quantise"), "--images")
    _refuse_own(settings, ("classes",), "--images")
    settled, images = _opened(place, metrics, settings)
    _refuse_unused(settled, settings)
    context = settled.context
    subject = Given(images, device=context.device.type)
    texts = images.request(0, images.count()).texts or ()
    plan = _plan(settled, settings, out, texts)
    if not metrics:
        plan = _suited(subject, plan)
    try:
        return evaluate(subject, plan)
    finally:
        for name, reason in itertools.islice(images.skipped.items(), MOST_NAMED):
            log.warning("skipped %s: %s", name, reason)
        if len(images.skipped) > MOST_NAMED:
            log.warning("and %d more were skipped", len(images.skipped) - MOST_NAMED)


def _opened(place: Path, metrics: Sequence[str], settings: Foreign) -> tuple[Settled, Images]:
    """The images, and what they are measured by. Where neither metrics nor data are named, images
    with captions go with data that have captions.
    """
    settled = _settled(metrics, settings)
    if settled.size is None:
        _refuse_mixed(settled)
    images = open_images(place, settled.size, settled.context.source.classes)
    if not metrics and not settings.reference and images.request(0, 1).texts:
        captioned = chz.replace(settings, reference=REFERENCES["text_to_image"])
        settled = _settled(metrics, captioned)
        images = open_images(place, settled.size, settled.context.source.classes)
    return settled, images


def _suited(subject: Given, plan: Plan) -> Plan:
    """A plan with those of its metrics that can be computed from the images; says which cannot, and
    why. MetricError where there are no others.
    """
    unfit = dict[str, str]()
    for metric in plan.chosen():
        try:
            check_one(subject, metric)
        except (MetricError, DataError) as problem:
            unfit[metric.title] = str(problem)
    suited = tuple(metric for metric in plan.metrics if metric not in unfit)
    if not suited:
        raise MetricError(
            f"no metric of {', '.join(unfit)} suits these images; name some with --metrics (see "
            f"nanogen ls metrics), or other data with --reference; {next(iter(unfit.values()))}"
        )
    plan = replace(plan, metrics=suited)
    check(subject, plan)
    writable_folder(plan.out)
    for problem in unfit.values() if dist.rank() == 0 else ():
        log.warning("left out: %s", problem)
    return plan


def of_pipeline(
    name: str, metrics: Sequence[str], settings: Foreign, out: Path, prompts: Path | None = None
) -> list[Record]:
    """Draw with a pipeline of diffusers, and measure: for the prompts that each metric brings, or
    those of a file.
    """
    _refuse(settings, ("every",), "--pipeline")
    _refuse_own(settings, ("size",), "--pipeline")
    if not metrics:
        raise ConfigError("name what to measure with --metrics (see nanogen ls metrics)")
    settled = _settled(metrics, settings)
    _refuse_unused(settled, settings, prompts)
    pipeline = Pipeline(name, settings.pipeline, settled.context.device)
    if pipeline.kind == "class_conditional" and prompts:
        raise ConfigError(f"--prompts has no effect: {name} draws classes; leave it out")
    texts = tuple(read_prompts(prompts)) if prompts else settled.texts
    if pipeline.kind == "text_to_image":
        _refuse_own(settings, ("classes",), name)
        if not (prompts or settings.reference):
            _refuse_without_prompts(settled)
    subject = DrawnByPipeline(pipeline, texts, settings)
    try:
        return evaluate(subject, _plan(settled, settings, out, texts))
    finally:
        pipeline.close()


def _refuse(settings: Foreign, fields: Sequence[str], where: str) -> None:
    """ConfigError where a field of the evaluation is set that has no effect there."""
    for field in fields:
        value = getattr(settings.evaluation, field)
        if value != getattr(Evaluation(), field):
            raise ConfigError(f"evaluation.{field}={value} has no effect on {where}; leave it out")
    if settings.evaluation.metrics:
        raise ConfigError("name metrics with --metrics, not with evaluation.metrics")


def _refuse_own(settings: Foreign, fields: Sequence[str], where: str) -> None:
    """The same for fields of the settings themselves."""
    for field in fields:
        if getattr(settings, field) != getattr(Foreign(), field):
            value = getattr(settings, field)
            raise ConfigError(f"{field}={value} has no effect on {where}; leave it out")


def _refuse_unused(settled: Settled, settings: Foreign, prompts: Path | None = None) -> None:
    """ConfigError for what only metrics use that are not among those that are named."""
    named = ", ".join(settled.metrics)
    chosen = harness.choose(settled.metrics, settled.context)
    if not any(metric.takes_precision for metric in chosen):
        _refuse(settings, ("precision",), f"{named}: they have one of their own")
    own = {bool(metric.prompts) for metric in chosen}
    if own == {True}:
        if prompts:
            raise ConfigError(
                f"--prompts has no effect on {named}: they bring theirs; leave it out"
            )
        _refuse(settings, ("samples",), f"{named}: they bring their prompts")
    if own == {False}:
        _refuse(settings, ("images_per_prompt",), f"{named}: they bring no prompts")


def _plan(settled: Settled, settings: Foreign, out: Path, captions: tuple[str, ...]) -> Plan:
    repeats = settings.evaluation.repeats
    context = replace(settled.context, captions=captions)
    return Plan(settled.metrics, context, out, repeats, quiet=False)


def _settled(metrics: Sequence[str], settings: Foreign) -> Settled:
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


def _refuse_mixed(settled: Settled) -> None:
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
            "reference=PRESET, or another reference in brackets behind the metric"
        )


def _refuse_without_prompts(settled: Settled) -> None:
    """ConfigError where captions of the package's data would stand in for those of the user."""
    chosen = harness.choose(settled.metrics, settled.context)
    if named := [metric.title for metric in chosen if not metric.prompts and not _is_own(metric)]:
        raise ConfigError(
            f"{', '.join(named)}: no prompts to draw; give some with --prompts FILE, or name data "
            "that have some with --reference"
        )


@dataclass(frozen=True)
class DrawnByPipeline:
    """What a pipeline of somebody else draws."""

    pipeline: Pipeline
    texts: tuple[str, ...]
    settings: Foreign
    rereads: bool = False

    @property
    def kind(self) -> str:
        return self.pipeline.kind

    @property
    def batch(self) -> int:
        return self.pipeline.config.batch

    @property
    def identity(self) -> Mapping[str, Plain]:
        return {
            **{"pipeline": self.pipeline.fingerprint, "texts": list(self.texts)},
            **{"classes": self.settings.classes, "quantise": self.settings.evaluation.quantise},
        }

    def samples(self, prompts: str) -> int:
        wanted = self.settings.evaluation
        return samples_of(prompts, wanted) if prompts else wanted.samples

    def read(self, prompts: str, start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
        request = self.request(prompts, start, stop)
        return self.pipeline.draw(request, self.settings.evaluation.quantise)

    def remedy(self, problem: Unfit) -> str:
        return drawn_otherwise(problem)

    def rest(self) -> None:
        self.pipeline.close()

    def again(self, repeat: int) -> DrawnByPipeline:
        seed = self.pipeline.config.seed + repeat
        return replace(self, pipeline=self.pipeline.reseeded(seed))

    def record(self, values: Mapping[str, object]) -> Record:
        pipeline = self.pipeline
        pipeline.look()
        return Record(
            run=pipeline.origin,
            task=self.kind,
            method=pipeline.name,
            sampler=pipeline.facts,
            device=pipeline.device.type,
            quantisation=self.settings.evaluation.quantise,
            **values,  # ty: ignore[invalid-argument-type]
        )

    def request(self, prompts: str, start: int, stop: int) -> Request:
        if prompts:
            return prompted(prompts, start, stop)
        indices = torch.arange(start, stop)
        if self.kind == "class_conditional":
            return Request(indices, labels=indices % self.settings.classes)
        if not self.texts:
            raise ConfigError("these metrics bring no prompts; give some with --prompts FILE")
        texts = tuple(self.texts[int(i) % len(self.texts)] for i in indices)
        return Request(indices, texts=texts)
