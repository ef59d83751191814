"""Checkpoints: one folder for each, whole or absent, safetensors and JSON only.

    checkpoints/000000012800/      named by the images seen
        model.safetensors          weights that are trained, by name
        ema.safetensors            their averages
        optimiser.safetensors      "<parameter>/<moment>"
        state.json                 the clock and the log window
        hashes.json                the hash of each file above

What is trained decides which safetensors there are; those above are a diffusion model's.

A resumed run needs nothing else: data order, noise and learning rate are functions of the clock.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nanogen.errors import CheckpointError, RunFailed
from nanogen.files import whole_folder, write_text
from nanogen.model import Model
from nanogen.train.ema import Ema

log = logging.getLogger(__name__)

STATE = "state.json"
HASHES = "hashes.json"
LONGEST = 200
"""letters of a reason that are shown"""


@dataclass
class Progress:
    """Where a run stands. `window` holds the sums of the log line being gathered, so that a
    resumed log is the same.
    """

    seen: int = 0
    """images consumed: the one clock"""
    steps: int = 0
    skipped: int = 0
    """steps that were skipped because a gradient was not finite"""
    window: dict[str, float] = field(default_factory=dict)
    window_steps: int = 0
    window_counts: dict[str, int] = field(default_factory=dict)
    """steps that each sum of the window is over"""


def save(
    folder: Path,
    progress: Progress,
    groups: Mapping[str, Mapping[str, Tensor]],
    keep: int,
) -> Path:
    """Write checkpoint `progress.seen` into `folder`, with a file for each group of named tensors,
    then drop all but the newest `keep`.

    RunFailed where it cannot be written, such as on a full disk; older checkpoints are untouched.
    """
    target = folder / f"{progress.seen:012d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if broken(target) is None:
                prune(target, keep)
                return target
            shutil.rmtree(target)
        with whole_folder(target) as part:
            _fill(part, groups, progress)
    except (OSError, SafetensorError) as error:
        raise RunFailed(
            f"cannot save checkpoint {target}: {error}; make room there, and the same command "
            "continues from the checkpoint before"
        ) from error
    prune(target, keep)
    return target


def prune(newest: Path, keep: int) -> None:
    """Drop all but `keep` checkpoints up to `newest`.

    Newer ones are left: they can only be broken, or training would have continued from them.
    """
    older = [path for path in sorted(_named(newest.parent)) if path.name <= newest.name]
    for path in older[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def _fill(part: Path, groups: Mapping[str, Mapping[str, Tensor]], progress: Progress) -> None:
    for name, group in groups.items():
        file = part / f"{name}.safetensors"
        save_file({key: value.contiguous().cpu() for key, value in group.items()}, file)
    write_text(part / STATE, json.dumps(asdict(progress), indent=1))
    hashes = {file.name: _hash(file) for file in sorted(part.iterdir())}
    write_text(part / HASHES, json.dumps(hashes, indent=1))


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a folder, None where there are no checkpoints.

    Broken ones are passed over with a reason; CheckpointError where all of them are broken.
    """
    found = sorted(_named(folder), reverse=True)
    for path in found:
        reason = broken(path)
        if reason is None:
            return path
        log.warning("checkpoint %s is skipped: %s", path, reason)
    if found:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {folder} is whole ({reason}); "
            "restore one, or start over with nanogen train --fresh"
        )
    return None


def broken(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        hashes = json.loads((path / HASHES).read_text(encoding="utf-8"))
        for name, digest in hashes.items():
            if _hash(path / name) != digest:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def load(path: Path, restore: Callable[[Callable[[str], dict[str, Tensor]]], None]) -> Progress:
    """Restore everything, strictly: a name or shape that does not fit is a CheckpointError.

    `restore` is given a function that reads a group by its name.
    """

    def group(name: str) -> dict[str, Tensor]:
        file = path / f"{name}.safetensors"
        if not file.exists():
            raise CheckpointError(
                f"checkpoint {path} has no {file.name}, as one that was converted: it can be "
                "sampled, but training does not go on from it; start another run from its averaged "
                f"weights with train.start={path.parent.parent}"
            )
        return load_file(file)

    try:
        restore(group)
        return Progress(**json.loads((path / STATE).read_text(encoding="utf-8")))
    except (RuntimeError, SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise _unfit(path, error) from error


def load_weights(path: Path, model: Model, weights: str) -> int:
    """Put the "ema" or "raw" weights of a checkpoint into a model; returns the images seen."""
    try:
        model.load_state_dict(load_file(path / "model.safetensors"), strict=True)
        if weights == "ema":
            ema = Ema(model.trained(), decay=0.0)
            restore_averages(ema, load_file(path / "ema.safetensors"))
            for name, p in model.trained().items():
                p.data.copy_(ema.values[name])
        return int(json.loads((path / STATE).read_text(encoding="utf-8"))["seen"])
    except (RuntimeError, SafetensorError, OSError, ValueError, KeyError) as error:
        raise _unfit(path, error) from error


def restore_averages(ema: Ema, stored: Mapping[str, Tensor]) -> None:
    """RuntimeError where the averages are of other parameters, or of other shapes."""
    if stored.keys() != ema.values.keys():
        raise RuntimeError(
            f"averages of other parameters: {sorted(stored.keys() ^ ema.values.keys())[:3]}"
        )
    for name, value in stored.items():
        ema.values[name].copy_(value)


def moments(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The state of an optimiser as named tensors."""
    return {
        f"{name}/{moment}": value
        for name, p in parameters.items()
        for moment, value in optimiser.state.get(p, {}).items()
    }


def restore_moments(
    optimiser: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    stored: Mapping[str, Tensor],
) -> None:
    """The inverse of `moments`; KeyError where a parameter is not there."""
    optimiser.state.clear()
    for key, value in stored.items():
        name, _, moment = key.rpartition("/")
        p = parameters[name]
        # Step counts stay on the CPU unless the optimiser is fused on a device, where they follow
        # the parameter.
        optimiser.state[p][moment] = value.to(p.device)


def _named(folder: Path) -> list[Path]:
    return [path for path in folder.glob("[0-9]*") if path.is_dir() and path.name.isdigit()]


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unfit(path: Path, error: Exception) -> CheckpointError:
    lines = str(error).splitlines() or [type(error).__name__]
    # torch names the module first, and what is amiss with it below.
    first = lines[1].strip() if len(lines) > 1 else lines[0]
    first = first if len(first) < LONGEST else f"{first[:LONGEST]} ..."
    return CheckpointError(f"checkpoint {path} does not fit this run: {first}")
