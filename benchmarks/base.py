"""What a benchmark is: a module of this folder with two functions.

    def counted(options: Options) -> list[Count]:     # exact, in seconds: gates
    def timed(options: Options) -> list[Timing]:      # ratios of two arms of one run: advice

An arm is a function that does one unit of work. Arms are run in turns, A B, B A, A B ..., so that a
machine that becomes slower or faster meanwhile does so for both; medians and the median of the
ratios of neighbours are reported, never a best time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

PAIRS, WARM = 9, 2
NOISY = 0.25
"""of the quartiles' distance to the median: from there on a ratio only hints"""


@dataclass(frozen=True)
class Options:
    """Where it runs."""

    device: torch.device
    pairs: int = PAIRS


@dataclass(frozen=True)
class Count:
    """An exact number, and what it must be."""

    what: str
    found: float
    must_be: float

    @property
    def holds(self) -> bool:
        return self.found == self.must_be


@dataclass(frozen=True)
class Timing:
    """Two arms that gave the same result."""

    what: str
    unit: str
    """what is done so many times a second"""
    plain: float
    """units a second of the plain arm, the median"""
    shipped: float
    ratio: float
    """the median over pairs of shipped to plain"""
    spread: float
    """distance of the quartiles of these ratios, in medians"""
    clock: str
    agreement: str
    """how it was made sure that both arms did the same"""

    @property
    def noisy(self) -> bool:
        return self.spread > NOISY


@dataclass(frozen=True)
class Arms:
    """Two ways to do one thing, and how much of it a call does."""

    plain: Callable[[], object]
    shipped: Callable[[], object]
    units: int = 1
    warm: int = WARM
    """calls before times are taken; what runs for minutes needs none"""


class Disagreement(Exception):
    """The arms gave different results: their times mean nothing."""


def compare(what: str, unit: str, arms: Arms, options: Options, agreement: str) -> Timing:
    """Time both arms in turns; call it once it is certain that they agree."""
    clock, read = _clock(options.device)
    for _ in range(arms.warm):
        arms.plain()
        arms.shipped()
    plain, shipped = [], []
    for number in range(options.pairs):
        both = [(arms.plain, plain), (arms.shipped, shipped)]
        for work, times in both if number % 2 == 0 else reversed(both):
            start = read()
            work()
            times.append(read() - start)
    ratios = [a / b for a, b in zip(plain, shipped, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return Timing(
        what=what,
        unit=unit,
        plain=arms.units / statistics.median(plain),
        shipped=arms.units / statistics.median(shipped),
        ratio=statistics.median(ratios),
        spread=(quartiles[2] - quartiles[0]) / statistics.median(ratios),
        clock=clock,
        agreement=agreement,
    )


def _clock(device: torch.device) -> tuple[str, Callable[[], float]]:
    """Seconds of this process on a CPU, which others may share; of the wall on a GPU, once it is
    done.
    """
    if device.type == "cpu":
        return "CPU seconds, one thread", time.process_time

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return "wall, synchronised", read
