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

from nanogen import dist
from nanogen.bench.record import Plain, Record
from nanogen.errors import ConfigError, DataError, MetricError
from nanogen.evaluation.foreign_settings import (
    REFERENCES,
    Foreign,
    Settled,
    refuse,
    refuse_mixed,
    refuse_own,
    refuse_unused,
    refuse_without_prompts,
    settle,
)
from nanogen.evaluation.measure import Plan, check, check_one, evaluate
from nanogen.evaluation.subjects import Given, drawn_otherwise, prompted, samples_of
from nanogen.files import writable_folder
from nanogen.images.base import Images
from nanogen.images.open import open_images
from nanogen.images.pipeline import Pipeline
from nanogen.images.settings import PipelineConfig
from nanogen.metrics.base import Unfit
from nanogen.sampling.draw import read_prompts
from nanogen.types import Request

log = logging.getLogger(__name__)

MOST_NAMED = 10
"""images that could not be read of which each gets a line"""


def of_images(place: Path, metrics: Sequence[str], settings: Foreign, out: Path) -> list[Record]:
    """Measure a folder, a tar or an npz of images."""
    if settings.pipeline != PipelineConfig():
        raise ConfigError("pipeline.* has no effect on --images; leave it out")
    refuse(settings, ("samples", "images_per_prompt", "every", "quantise"), "--images")
    refuse_own(settings, ("classes",), "--images")
    settled, images = _opened(place, metrics, settings)
    refuse_unused(settled, settings)
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
    settled = settle(metrics, settings)
    if settled.size is None:
        refuse_mixed(settled)
    images = open_images(place, settled.size, settled.context.source.classes)
    if not metrics and not settings.reference and images.request(0, 1).texts:
        captioned = chz.replace(settings, reference=REFERENCES["text_to_image"])
        settled = settle(metrics, captioned)
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
    refuse(settings, ("every",), "--pipeline")
    refuse_own(settings, ("size",), "--pipeline")
    if not metrics:
        raise ConfigError("name what to measure with --metrics (see nanogen ls metrics)")
    settled = settle(metrics, settings)
    refuse_unused(settled, settings, prompts)
    pipeline = Pipeline(name, settings.pipeline, settled.context.device)
    if pipeline.kind == "class_conditional" and prompts:
        raise ConfigError(f"--prompts has no effect: {name} draws classes; leave it out")
    texts = tuple(read_prompts(prompts)) if prompts else settled.texts
    if pipeline.kind == "text_to_image":
        refuse_own(settings, ("classes",), name)
        if not (prompts or settings.reference):
            refuse_without_prompts(settled)
    subject = DrawnByPipeline(pipeline, texts, settings)
    try:
        return evaluate(subject, _plan(settled, settings, out, texts))
    finally:
        pipeline.close()


def _plan(settled: Settled, settings: Foreign, out: Path, captions: tuple[str, ...]) -> Plan:
    repeats = settings.evaluation.repeats
    context = replace(settled.context, captions=captions)
    return Plan(settled.metrics, context, out, repeats, quiet=False)


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
