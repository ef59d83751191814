"""A Fréchet distance from sums: by two symmetric eigenproblems, or by `scipy.linalg.sqrtm`; and the
memory of an evaluation at two numbers of samples.

The covariances share their eigenvectors, so that the distance is known: the sum of
(sqrt a - sqrt b)^2 over eigenvalues, and the gap of the means.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from benchmarks.base import Arms, Count, Disagreement, Options, Timing, compare
from nanogen.data.base import Source
from nanogen.metrics import harness
from nanogen.metrics.base import Context
from nanogen.metrics.frechet import FrechetDistance, frechet_distance
from nanogen.metrics.gaussian import Gaussian
from nanogen.metrics.harness import Work
from nanogen.registry import register
from nanogen.types import Request

FEATURES, FEW = 2048, 256
SAMPLES = 50_000
TOLERANCE = 1e-8
"""of the relative error of a distance"""
PAIRS = 3
"""at most: one matrix root of 2048 x 2048 takes minutes"""
BATCH = 8
BATCHES = (2_000, 8_000)
SHARE = 10
"""the memory may grow by less than this part of what features of the added samples would take"""


def counted(options: Options) -> list[Count]:
    """The error where the answer is known, and what more samples cost."""
    case = Case.made(FEW)
    few, many = _peaks()
    added = (BATCHES[1] - BATCHES[0]) * BATCH * FEW * torch.float32.itemsize
    return [
        Count(f"errors above {TOLERANCE:g} with {FEW} features", case.error() > TOLERANCE, 0),
        Count(
            f"peak memory added by {BATCHES[1]} batches after {BATCHES[0]}, in {SHARE}ths of their "
            f"features ({added // SHARE} bytes)",
            (many - few) * SHARE // added,
            0,
        ),
    ]


def timed(options: Options) -> list[Timing]:
    """Ratios at the size of FID. The root of the reference is known from the second evaluation
    on.
    """
    case = Case.made(FEATURES)
    error = case.error()
    if error > TOLERANCE:
        raise Disagreement(f"the distance is off by {error:.1e} with {FEATURES} features")
    agreement = f"relative error of the shipped one {error:.0e}"
    few = dataclasses.replace(options, pairs=min(options.pairs, PAIRS))
    first = Arms(case.by_matrix_root, case.first_evaluation, warm=0)
    later = Arms(case.first_evaluation, case.later_evaluation, warm=0)
    title = f"distance with {FEATURES} features"
    return [
        compare(f"{title}, sqrtm -> first evaluation", "distances", first, few, agreement),
        compare(f"{title}, first -> later evaluations", "distances", later, few, agreement),
    ]


@dataclasses.dataclass(frozen=True)
class Case:
    """Sums of samples, a reference, and their distance."""

    sums: dict[str, Tensor]
    reference: Gaussian
    distance: float

    @classmethod
    def made(cls, features: int) -> Case:
        """Eigenvalues over four orders of magnitude, as those of pooled features are."""
        draw = np.random.RandomState(0)
        basis = torch.from_numpy(np.linalg.qr(draw.randn(features, features))[0])
        a, b = (torch.from_numpy(10 ** draw.uniform(-4, 0, features)) for _ in range(2))
        mean = torch.from_numpy(draw.randn(features)) / features**0.5
        samples, reference = ((basis * values) @ basis.T for values in (a, b))
        outer = samples * (SAMPLES - 1) + SAMPLES * torch.outer(mean, mean)
        sums = {"n": torch.tensor(float(SAMPLES)), "total": SAMPLES * mean, "outer": outer}
        distance = (a.sqrt() - b.sqrt()).square().sum() + mean.square().sum()
        return cls(sums, Gaussian(torch.zeros_like(mean), reference, SAMPLES), distance.item())

    def first_evaluation(self) -> float:
        """The eigenvectors of the reference are to be found."""
        return frechet_distance(Gaussian.of_sums(self.sums), dataclasses.replace(self.reference))

    def later_evaluation(self) -> float:
        """They are known."""
        return frechet_distance(Gaussian.of_sums(self.sums), self.reference)

    def by_matrix_root(self) -> float:
        """As most code has it."""
        samples = Gaussian.of_sums(self.sums)
        product = (samples.covariance @ self.reference.covariance).numpy()
        root = scipy.linalg.sqrtm(product).real
        traces = samples.covariance.trace() + self.reference.covariance.trace()
        gap = (samples.mean - self.reference.mean).square().sum()
        return (gap + traces).item() - 2 * np.trace(root)

    def error(self) -> float:
        """Of the shipped distance, relative."""
        return abs(self.later_evaluation() / self.distance - 1)


class Distance(FrechetDistance):
    """Of features that are made on the spot, to a normal distribution."""

    name, version, task, network = "made-up", 1, "any", "made-up"

    @functools.cached_property
    def reference(self) -> Gaussian:
        return Gaussian(torch.zeros(FEW).double(), torch.eye(FEW).double(), SAMPLES)

    def described(self) -> dict[str, str | int]:
        return {}


class Network:
    """Features that depend on an image only by its first value: the seed."""

    fingerprint, classes = "made-up", ()

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(int(images[0, 0, 0, 0]))
        return {"pool": torch.randn(len(images), FEW, generator=generator)}


def _peaks() -> list[int]:
    """The most memory in bytes after an evaluation of each number of batches, in a process of its
    own.
    """
    command = [sys.executable, "-m", "benchmarks.frechet"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _evaluate(batches: int) -> None:
    def read(start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
        for first in range(start, stop, BATCH):
            indices = torch.arange(first, min(first + BATCH, stop))
            yield Request(indices), torch.full((len(indices), 3, 4, 4), 7, dtype=torch.uint8)

    context = Context(cast(Source, None), torch.device("cpu"))  # nothing real is looked at
    harness.measure([Distance(context)], Work(batches * BATCH, BATCH, read), context)


def _peak() -> int:
    """The most memory that this process has held, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Print the peaks as JSON."""
    register("network", Distance.network, summary="made on the spot")(Network)
    torch.set_num_threads(1)
    _evaluate(BATCHES[0] // 10)
    peaks = []
    for batches in BATCHES:
        _evaluate(batches)
        peaks.append(_peak())
    print(json.dumps(peaks))


if __name__ == "__main__":
    main()
