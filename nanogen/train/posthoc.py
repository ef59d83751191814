"""An average of the weights of any length, made after training (EDM2, arXiv 2312.02696, section
3.2).

    averages/000000012800.safetensors      a snapshot: what `PowerEma.named` gave, by images seen
    averages/posthoc-0.07.safetensors      what `reconstruct(folder, 0.07)` made of all of them

An average of relative width sigma at time t weighs the weights of the past by a profile
p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1). The mixture of stored averages whose profile is
nearest to the wanted one, in the least squares sense, is nearly the wanted average.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nanogen.errors import CheckpointError, ConfigError, RunFailed
from nanogen.files import whole_file
from nanogen.train.power_ema import WIDEST, PowerEma, exponent

FOLDER = "averages"
"""of a run folder: pruning of checkpoints does not reach it"""
PREFIX = "posthoc-"
LARGEST_ERROR = 0.1
"""a mixture whose profile is further from the wanted one, relative to its size, is refused"""


@dataclass(frozen=True)
class Profile:
    """The density p(tau) = (gamma + 1) tau^gamma / end^(gamma + 1) on [0, end]."""

    end: float
    gamma: float

    def inner(self, other: Profile) -> float:
        """The integral of the product of both, over the time that both cover."""
        first, last = (self, other) if self.end <= other.end else (other, self)
        ratio = (first.end / last.end) ** last.gamma
        top = (first.gamma + 1) * (last.gamma + 1)
        return top / (first.gamma + last.gamma + 1) * ratio / last.end


@dataclass(frozen=True)
class Mixture:
    """Factors of stored averages, and how far their mixture is from what was wanted."""

    factors: tuple[float, ...]
    error: float
    """norm of the difference of profiles, relative to that of the wanted one"""


def mixture(wanted: Profile, stored: Sequence[Profile]) -> Mixture:
    """The mixture of stored profiles that is nearest to the wanted one (least squares)."""
    norms = np.array([math.sqrt(profile.inner(profile)) for profile in stored])
    size = math.sqrt(wanted.inner(wanted))
    # Of unit norm, profiles of all ages weigh alike in the solution.
    gram = np.array([[a.inner(b) for b in stored] for a in stored]) / np.outer(norms, norms)
    side = np.array([a.inner(wanted) for a in stored]) / norms / size
    factors = np.linalg.lstsq(gram, side, rcond=1e-13)[0]
    missed = 1 - 2 * factors @ side + factors @ gram @ factors
    return Mixture(tuple((factors * size / norms).tolist()), math.sqrt(max(0.0, float(missed))))


def file_of(folder: Path, width: float) -> Path:
    """Where the average of a relative width of a run folder is, once it was made."""
    return folder / FOLDER / f"{name_of(width)}.safetensors"


def name_of(width: float) -> str:
    """posthoc-0.07 for 0.07: what these weights are called."""
    return f"{PREFIX}{width:g}"


def width_of(weights: str) -> float | None:
    """0.07 for `posthoc-0.07`, None for any other name of weights."""
    try:
        return float(weights.removeprefix(PREFIX)) if weights.startswith(PREFIX) else None
    except ValueError:
        return None


def keep(folder: Path, averages: PowerEma, seen: int) -> None:
    """Write the snapshot of `seen` images into a run folder, or nothing; RunFailed if it cannot
    be written.
    """
    target = folder / FOLDER / f"{seen:012d}.safetensors"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write({name: value.cpu() for name, value in averages.named().items()}, target, {})
    except (OSError, SafetensorError) as error:
        raise RunFailed(
            f"cannot save averages {target}: {error}; make room there, and the same command "
            "continues from the last checkpoint"
        ) from error


@dataclass(frozen=True)
class Reconstruction:
    file: Path
    snapshots: int
    """that it was made from"""
    error: float
    """of the mixture of profiles"""


def reconstruct(folder: Path, width: float) -> Reconstruction:
    """Make the average of a relative width, at the newest snapshot of a run folder, and write it.

    ConfigError where the width is out of range or too far from what was kept; CheckpointError where
    nothing was kept or cannot be read.
    """
    if not 0 < width < WIDEST:
        raise ConfigError(f"--width {width:g}: must lie between 0 and {WIDEST:.4f}")
    files = sorted((folder / FOLDER).glob("[0-9]*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder} kept no averages; train with train.posthoc=0.05,0.10 to choose their width "
            "afterwards"
        )
    with contextlib.ExitStack() as stack:
        try:
            kept = [track for file in files for track in _tracks(file, stack)]
            found = mixture(Profile(kept[-1].end, exponent(width)), [one.profile for one in kept])
            if found.error > LARGEST_ERROR:
                raise ConfigError(_too_far(width, found.error, kept, len(files)))
            mixed = {name: _mixed(name, kept, found.factors) for name in kept[-1].names}
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"averages of {folder} cannot be read: {error}") from error
    about = {"seen": str(kept[-1].end), "error": f"{found.error:.3g}"}
    _write(mixed, file_of(folder, width), about)
    return Reconstruction(file_of(folder, width), len(files), found.error)


def load(folder: Path, width: float, parameters: Mapping[str, nn.Parameter]) -> int:
    """Put what `reconstruct` made into parameters; returns the images that it was trained on.

    CheckpointError where it was not made, and with the command that makes it; or where it is of
    other parameters.
    """
    file = file_of(folder, width)
    again = f"make it with: nanogen ema {folder} --width {width:g}"
    if not file.exists():
        raise CheckpointError(f"{file} does not exist; {again}")
    try:
        with safe_open(file, "pt") as opened:
            seen, names = int(opened.metadata()["seen"]), set(opened.keys())
            if names != parameters.keys():
                raise ValueError(f"other parameters: {sorted(names ^ parameters.keys())[:3]}")
            for name, p in parameters.items():
                p.data.copy_(opened.get_tensor(name))
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} does not fit this run ({error}); {again}") from error
    return seen


@dataclass(frozen=True)
class _Track:
    """The average of one width in one snapshot; its tensors are read when they are asked for."""

    end: int
    """images seen"""
    label: str
    """its width, as it stands in names"""
    names: tuple[str, ...]
    opened: Any

    @property
    def profile(self) -> Profile:
        return Profile(self.end, exponent(float(self.label)))

    def read(self, name: str) -> Tensor:
        return self.opened.get_tensor(f"{self.label}/{name}")


def _tracks(file: Path, stack: contextlib.ExitStack) -> list[_Track]:
    """The averages of a snapshot."""
    opened = stack.enter_context(safe_open(file, "pt"))
    names: dict[str, list[str]] = {}
    for key in opened.keys():
        label, _, name = key.partition("/")
        names.setdefault(label, []).append(name)
    return [_Track(int(file.stem), label, tuple(mine), opened) for label, mine in names.items()]


def _mixed(name: str, kept: Sequence[_Track], factors: Sequence[float]) -> Tensor:
    """The mixture of one parameter, summed in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for one, factor in zip(kept, factors, strict=True):
        total = total + factor * one.read(name).double()
    return total.float()


def _too_far(width: float, error: float, kept: Sequence[_Track], snapshots: int) -> str:
    widths = ", ".join(sorted({one.label for one in kept}, key=float))
    return (
        f"--width {width:g}: {snapshots} snapshots of the widths {widths} come no nearer than "
        f"{error:.0%}; choose a width nearer to those, or train with train.posthoc around it or a "
        "lower train.posthoc_every"
    )


def _write(tensors: dict[str, Tensor], target: Path, about: dict[str, str]) -> None:
    with whole_file(target) as part:
        save_file(tensors, part, metadata=about)
