"""Files of diffusion-bench's diffusion models: read without unpickling, tensors left as they are.

    stored = read(Path("step-0100080.pt"))
    stored.ema, stored.model, stored.step

A file is the dictionary of a training, {step, epoch, model, ema, optimizer, scheduler}, or holds
weights alone, as .pt or .safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogen.encoders.weights import WRAPPERS, bare_name, read_plain
from nanogen.errors import DataError
from nanogen.files import whole_file

MODEL, EMA, STEP = "model", "ema", "step"
LEFT = ("optimizer", "scheduler")
"""what training needs to go on, which this package cannot use"""


@dataclass(frozen=True)
class Stored:
    """What a file holds. Its tensors may lie in the file still."""

    model: Mapping[str, Tensor]
    """weights by the names of diffusion-bench, without the prefixes of parallel modules"""
    ema: Mapping[str, Tensor]
    """their averages; the weights themselves where the file has no other"""
    step: int | None = None
    """optimiser steps, where the file says"""
    notes: tuple[str, ...] = ()
    """what was not taken over, and what stands in for something else"""


def read(file: Path) -> Stored:
    """The weights of a checkpoint; DataError for a file that holds something else."""
    if not file.is_file():
        raise DataError(f"there is no file {file}; give a checkpoint of diffusion-bench")
    found = read_plain(file)
    where = str(file)
    if not isinstance(found, Mapping):
        raise DataError(f"{where} holds no weights by name; give a state dict, or a checkpoint")
    weights = {key: found[key] for key in (MODEL, EMA) if isinstance(found.get(key), Mapping)}
    if not weights:
        while inner := [key for key in WRAPPERS if isinstance(found.get(key), Mapping)]:
            found = found[inner[0]]
        plain = tensors_of(found, where)
        return Stored(plain, plain, notes=("weights alone: they stand for their averages too",))
    notes = [f"{key} is left: training cannot go on from it" for key in LEFT if key in found]
    named = {key: tensors_of(value, f"{where} ({key})") for key, value in weights.items()}
    for key, other in ((MODEL, EMA), (EMA, MODEL)):
        if key not in named:
            notes.append(f"it has no {key}: its {other} stands for both")
            named[key] = named[other]
    return Stored(named[MODEL], named[EMA], _step(found.get(STEP), where), tuple(notes))


def write(file: Path, model: Mapping[str, Tensor], ema: Mapping[str, Tensor], step: int) -> None:
    """A checkpoint that diffusion-bench samples from: it appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as part:
        torch.save({STEP: step, MODEL: dict(model), EMA: dict(ema)}, part)


def tensors_of(found: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    """A state dict without the prefixes of parallel and compiled modules; DataError where it holds
    something else than tensors by name.
    """
    others = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if others or not found:
        what = f"{others[0]} is no tensor" if others else "it is empty"
        raise DataError(
            f"{where} holds no state dict: {what}; give a checkpoint of diffusion-bench"
        )
    named = {bare_name(str(name)): value for name, value in found.items()}
    if len(named) < len(found):
        raise DataError(
            f"{where} holds {len(found) - len(named)} weights twice, with and without the prefix "
            "of a parallel or compiled module; give one of them"
        )
    return named


def _step(value: Any, where: str) -> int | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if value is None:
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool) or value < 0:
        raise DataError(f"{where} says {STEP}={value!r}, which is no number of optimiser steps")
    return int(value)
