"""The one evaluation harness: images in, scores out. Training, `nanogen eval` and benchmarks all
use it.

    chosen = choose(("fid", "geneval[compat=reference]"), context)
    scores = measure(chosen, Work(50_000, 100, read), context)

Each process measures its own share of the samples, block by block (see `blocks.py`). What crosses
processes are sums of float64 and, for the metrics that need them, rows of features: never images.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from nanogen import registry
from nanogen.data.base import Source
from nanogen.errors import ConfigError, MetricError, suggest
from nanogen.metrics.base import Context, Metric, Observation, Score
from nanogen.metrics.blocks import Block, Kept, Share, Tallies, blocks
from nanogen.metrics.names import Name, parse
from nanogen.metrics.reference import load_encoder
from nanogen.types import Request

Read = Callable[[int, int], Iterator[tuple[Request, Tensor]]]
"""samples start .. stop, batch by batch: requests with their images, uint8 [B, 3, H, W]; fewer
where some could not be read
"""


@dataclass(frozen=True)
class Measured:
    """A score, with what is known of its metric and how many samples could not be judged."""

    score: Score
    version: int
    skipped: int = 0
    precision: str = ""
    """see `Metric.precision`"""


Scores = dict[str, Measured]
"""by the name of the score: the metric's title, or `title/part`"""


@dataclass(frozen=True)
class Work:
    """Samples to be measured."""

    samples: int
    batch: int
    """how many are read at once, unless sizes differ"""
    read: Read
    kept: Kept = field(default_factory=lambda: Kept(None))
    """where measured blocks are kept, so that a killed evaluation continues"""
    check: Callable[[], None] = lambda: None
    """called before each batch, equally often on every process: it may be collective; what it
    raises ends the evaluation
    """
    show: Callable[[int], None] = lambda seen: None
    """is told how many samples of this process are done"""


def choose(names: Sequence[str], context: Context) -> list[Metric]:
    """The named metrics. ConfigError for an unknown name, an unknown option, or a name twice."""
    chosen: dict[str, Metric] = {}
    for name in map(parse, names):
        metric = _chosen(name, context)
        if metric.title in chosen:
            raise ConfigError(f"metric {metric.title} is named twice; name it once")
        chosen[metric.title] = metric
    return list(chosen.values())


def _chosen(name: Name, context: Context) -> Metric:
    target = cast(type[Metric], registry.get("metric", name.plain))
    for option, value in name.options.items():
        if option not in target.options:
            known = suggest(option, target.options)
            raise ConfigError(f"metric {name.plain} has no option {option!r}; {known}")
        choices = target.options[option].choices
        if choices and value not in choices:
            raise ConfigError(f"metric {name.plain}: {option}={value}; {suggest(value, choices)}")
    return target(context, name.options)


def named(names: Sequence[str]) -> list[Metric]:
    """The metrics without any data, for their titles, kinds and needs; see `choose`."""
    return choose(names, Context(cast(Source, None), torch.device("cpu")))


def fits(metrics: Sequence[Metric], kind: str, samples: int) -> None:
    """Raise a UserError where one of the metrics is not for a task of this kind ("any" where it is
    not known), or cannot be computed from so many samples.
    """
    for metric in metrics:
        is_for(metric, kind)
        metric.check(samples)


def is_for(metric: Metric, kind: str) -> None:
    """Raise a MetricError where the metric is for tasks of another kind."""
    if "any" not in (kind, metric.task) and metric.task != kind:
        raise MetricError(
            f"metric {metric.title} is for {metric.task} tasks, this one is {kind}; leave it out"
        )


def measure(metrics: Sequence[Metric], work: Work, context: Context) -> Scores:
    """Scores of all metrics over all processes; the models of the metrics are freed."""
    try:
        total = _total(metrics, work, context)
        return _scores(metrics, total)
    finally:
        for metric in metrics:
            metric.close()
        load_encoder.cache_clear()
        # Networks of libraries may hold themselves in a cycle: they go when that is collected.
        gc.collect()
        if context.device.type == "cuda":
            torch.cuda.empty_cache()


def _total(metrics: Sequence[Metric], work: Work, context: Context) -> Tallies:
    cut = blocks(work.samples, work.batch)
    work.kept.ready()
    share = Share(len(cut), work.kept)
    batches = -(-(cut[0].stop - cut[0].start) // work.batch)
    networks = functools.partial(load_encoder, device=context.device)
    done = 0
    for place in range(share.longest):
        number = share.numbers[place] if place < len(share.numbers) else None
        ready = number is None or work.kept.has(number)
        reading = iter(()) if ready else work.read(cut[number].start, cut[number].stop)
        seen: list[Tensor] = []
        for turn in range(batches):
            work.check()
            # Batches may be more than foreseen where sizes differ: the last turn takes the rest.
            for request, images in _next(reading, rest=turn == batches - 1):
                images = images.to(context.device)
                _observe(metrics, Observation(images, request, networks))
                seen.append(request.indices.cpu())
                work.show(done + sum(map(len, seen)))
        if number is None:
            continue
        done += cut[number].stop - cut[number].start
        share.add(number, _tallied(metrics, cut[number], seen, ready, work.kept))
        work.show(done)
    return share.total()


def _next(
    reading: Iterator[tuple[Request, Tensor]], *, rest: bool
) -> Iterator[tuple[Request, Tensor]]:
    """One more batch, or all that are left."""
    for batch in reading:
        yield batch
        if not rest:
            return


def _observe(metrics: Sequence[Metric], observation: Observation) -> None:
    for metric in metrics:
        metric.update(observation)


def _tallied(
    metrics: Sequence[Metric], block: Block, seen: list[Tensor], ready: bool, kept: Kept
) -> Tallies:
    """The tallies of a block: just measured, or kept from before."""
    if ready:
        return kept.read(block.number)
    indices = torch.cat(seen) if seen else torch.zeros(0, dtype=torch.int64)
    tallies = Tallies.taken(metrics, indices, block.stop - block.start - len(indices))
    kept.write(block.number, tallies)
    return tallies


def _scores(metrics: Sequence[Metric], total: Tallies) -> Scores:
    found = len(total.indices) if total.rows else 0
    if not found:
        raise MetricError("there are no samples to measure; draw at least one")
    scores: Scores = {}
    for number, metric in enumerate(metrics):
        if total.skipped:
            _enough(metric, found, total.skipped)
        computed: Mapping[str, Score] = metric.compute(total.sums_of(number), total.rows_of(number))
        for name, score in computed.items():
            title = metric.title + name.removeprefix(metric.name)
            scores[title] = Measured(score, metric.version, total.skipped, metric.precision)
    return scores


def _enough(metric: Metric, found: int, skipped: int) -> None:
    """Raise a MetricError where too few samples are left for a metric."""
    try:
        metric.check(found)
    except MetricError as problem:
        whole = found + skipped
        raise MetricError(
            f"{problem} ({skipped} of {whole} could not be read); repair these, or take more"
        ) from problem
