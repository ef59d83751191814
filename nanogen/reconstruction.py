"""How well a tokenizer keeps images: a split through `encode` and `decode`, measured in pairs.

    records = measure(tokenizer, source, "held-out", Options(("psnr", "ssim")), Subject("pixels"))

Each process takes a contiguous share of the images. What crosses processes are sums of float64:
never images.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast, get_args

import torch
from torch import Tensor, nn

from nanogen import dist, registry
from nanogen.bench import record
from nanogen.bench.record import Record
from nanogen.data.base import SPLITS, Source, as_stored
from nanogen.errors import ConfigError, MetricError, suggest
from nanogen.metrics.pairs import PairContext, PairMetric
from nanogen.metrics.similarity import Quantise, quantised
from nanogen.model import parameter_count
from nanogen.train.signals import Check
from nanogen.types import Tokenizer, to_float

TASK = "reconstruction"
"""of the records"""
ALL = "all"
"""every split, one after the other: for a data set that is an evaluation set as a whole"""


@dataclass(frozen=True)
class Options:
    """What is measured, and how."""

    metrics: tuple[str, ...] = ("psnr", "ssim")
    """registered reconstruction metrics"""
    samples: int | None = None
    """images, evenly spaced over the split; None: all of it"""
    quantise: Quantise = "round"
    """how reconstructions become 8-bit; "truncate" is what published scores were measured with"""
    trunk: str = ""
    """file or folder with the VGG16 of LPIPS; empty asks the hub"""
    trunk_field: str = "evaluation.trunk"
    """what sets the trunk, for messages"""
    batch: int = 32
    """images at once; changes speed and memory only"""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        if self.quantise not in get_args(Quantise):
            known = suggest(self.quantise, get_args(Quantise))
            raise ConfigError(f"unknown way to quantise {self.quantise!r}; {known}")
        if not self.metrics:
            raise ConfigError("no metric is named; name some, such as psnr,ssim")


@dataclass(frozen=True)
class Subject:
    """Whose scores they are, as a record says it."""

    name: str
    config_hash: str = ""
    weights: str = "raw"
    """"ema" or "raw\""""
    seen: int = 0
    """images the tokenizer was trained on"""
    training_seed: int = 0


def measure(
    tokenizer: Tokenizer,
    source: Source,
    split: str,
    options: Options,
    subject: Subject,
    check: Check = lambda: None,
) -> list[Record]:
    """A record of each metric; the same on every process.

    `split` is one of the data set's or "all". MetricError where it has no images, a metric needs
    more of them, or a reconstruction is not finite. `check` is called before each batch, equally
    often on every process; what it raises ends the measurement.
    """
    started = time.monotonic()
    total = _count(source, split)
    n = total if options.samples is None else options.samples
    metrics = chosen_metrics(options, n, total, split)
    for images, others in _pairs(tokenizer, source, split, n, options, check):
        for metric in metrics:
            metric.update(images, others)
    facts = {
        "tokenizer": tokenizer.fingerprint,
        "latent": [tokenizer.spec.channels, tokenizer.spec.height, tokenizer.spec.width],
        "split": split,
        "split_images": total,
        "reference_hash": source.fingerprint,
    }
    scores = [metric.compute(dist.sum_across(metric.sums)) for metric in metrics]
    seconds = round(time.monotonic() - started, 3)
    return [
        Record(
            run=subject.name,
            task=TASK,
            method=subject.name,
            metric=metric.name,
            version=metric.version,
            value=score.value,
            standard_error=score.standard_error,
            n=score.n,
            higher_is_better=score.higher_is_better,
            weights=subject.weights,
            seen=subject.seen,
            facts=facts | dict(score.facts),
            training_seed=subject.training_seed,
            config_hash=subject.config_hash,
            parameters=parameter_count(tokenizer) if isinstance(tokenizer, nn.Module) else 0,
            quantisation=options.quantise,
            device=options.device.type,
            commit=record.commit(),
            versions=record.versions(),
            seconds=seconds,
        )
        for metric, score in zip(metrics, scores, strict=True)
    ]


def chosen_metrics(options: Options, n: int, total: int, split: str) -> list[PairMetric]:
    """The metrics of the options, fresh; MetricError unless `n` of `total` images suit them."""
    if not 1 <= n <= total:
        raise MetricError(f"{n} samples of a {split} split of {total} images; choose 1 to {total}")
    if n < dist.world():
        # A process without an image has no sums to add: the others would wait for it.
        raise MetricError(
            f"{n} images give {dist.world()} processes less than one each; start fewer"
        )
    known = {
        entry.name: cast(type[PairMetric], entry.target)
        for entry in registry.entries("reconstruction")
    }
    chosen = []
    for name in options.metrics:
        if name not in known:
            raise ConfigError(f"unknown metric {name!r}; {suggest(name, known)}")
        target = known[name]
        if n < target.minimum:
            raise MetricError(
                f"metric {name} needs at least {target.minimum} images, not {n}; "
                "take more, or leave it out"
            )
        chosen.append(target(PairContext(options.device, options.trunk, options.trunk_field)))
    return chosen


@torch.no_grad()
def _pairs(
    tokenizer: Tokenizer, source: Source, split: str, n: int, options: Options, check: Check
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's originals and reconstructions, uint8 [B, 3, H, W], in stored order."""
    total, rank, world = _count(source, split), dist.rank(), dist.world()
    # Even spacing keeps the shares of the classes whatever the order of the data.
    numbers = [i * total // n for i in range(n * rank // world, n * (rank + 1) // world)]
    largest_share = -(-n // world)
    for start in range(0, largest_share, options.batch):
        check()
        part = numbers[start : start + options.batch]
        if not part:
            continue
        images = torch.stack([_read(source, split, number) for number in part]).to(options.device)
        keys = torch.tensor(part, device=options.device)
        again = tokenizer.decode(tokenizer.encode(to_float(images), keys))
        _check_finite(again, part, split)
        yield images, quantised(again, options.quantise)


def _check_finite(images: Tensor, numbers: Sequence[int], split: str) -> None:
    """8-bit levels would hide what is not a number."""
    broken = ~images.flatten(1).isfinite().all(1)
    if broken.any():
        first = numbers[int(broken.nonzero()[0])]
        raise MetricError(
            f"the reconstruction of image {first} of the {split} split is not finite; the "
            "tokenizer's weights are broken, or its precision is too low"
        )


def _splits(split: str) -> tuple[str, ...]:
    if split != ALL and split not in SPLITS:
        raise MetricError(f"unknown split {split!r}; {suggest(split, (*SPLITS, ALL))}")
    return SPLITS if split == ALL else (split,)


def _count(source: Source, split: str) -> int:
    total = sum(source.count(one) for one in _splits(split))
    if not total:
        raise MetricError(f"the data set has no images in its {split} split; choose another")
    return total


def _read(source: Source, split: str, number: int) -> Tensor:
    for one in _splits(split):
        if number < source.count(one):
            return as_stored(source, one, number)
        number -= source.count(one)
    raise IndexError(number)
