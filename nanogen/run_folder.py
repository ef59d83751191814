"""The folder of a run: `run.yaml`, `log.jsonl`, `checkpoints/`, `samples/`, `records/`, and
`averages/` where those are kept.

The same command again resumes; another run in the same folder is refused with what differs.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self

from nanogen import config, dist
from nanogen.errors import CheckpointError, ConfigError
from nanogen.files import remove_parts, whole_file, writable_folder
from nanogen.model import parameter_count
from nanogen.run import Parts, Run, build
from nanogen.train import checkpoint, posthoc

log = logging.getLogger(__name__)

CONFIG = "run.yaml"
LOCK = ".lock"
WEIGHTS = ("ema", "raw")
USED_AFTER_TRAINING = ("sampling.", "evaluation.", "machine.", "task.data.path")
"""fields that a trained run may be sampled and measured with other values of"""


class AnyRun(Protocol):
    """A config that is trained in a folder: of a diffusion model, of a tokenizer."""

    folders: ClassVar[tuple[str, ...]]

    def identity(self) -> Self:
        """Without what does not change its result."""
        ...


def prepare(run: AnyRun, folder: Path, fresh: bool) -> Path:
    """Make the folder ready to train `run` in: new, or holding the same run."""
    if dist.rank() == 0:
        writable_folder(folder)
        known = folder / CONFIG
        if fresh and known.exists():
            clear(folder, run.folders)
        if known.exists():
            refuse_other(run, config.read(type(run), known), folder)
        elif begun(folder):
            raise CheckpointError(
                f"{folder} holds checkpoints but no {CONFIG}; choose another --out"
            )
        with whole_file(known) as part:
            config.write(run, part)
        for name in ("", *run.folders):
            remove_parts(folder / name)
    dist.barrier()
    return folder


def begun(folder: Path) -> bool:
    """Whether a folder holds checkpoints: training goes on from them, and needs no other run."""
    return any((folder / "checkpoints").glob("[0-9]*"))


@contextlib.contextmanager
def held(folder: Path) -> Generator[None, None, None]:
    """Within, no other command may train in the folder: two would write over each other's files."""
    if dist.rank() != 0:
        yield
        return
    with (writable_folder(folder) / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{folder} is in use by another training process; end it, or choose another --out"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s); train in it only once at a time", folder, error)
        yield


def clear(folder: Path, made: Sequence[str] = Run.folders) -> None:
    """Remove what a run made, and nothing else that may lie in the folder."""
    for name in made:
        shutil.rmtree(folder / name, ignore_errors=True)
    # The config goes last: it says that the folder is ours to clear.
    for name in ("log.jsonl", CONFIG):
        (folder / name).unlink(missing_ok=True)


def refuse_other(
    run: AnyRun, known: AnyRun, folder: Path, instead: str = "use --fresh to start over"
) -> None:
    """CheckpointError, with what differs, unless both are one run; `instead` is what to do."""
    rows = config.differences(known.identity(), run.identity())
    if rows:
        listed = ", ".join(f"{path}: {old} there, {new} here" for path, old, new in rows[:3])
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        raise CheckpointError(
            f"{folder} holds another run ({listed}{more}); choose another --out, or {instead}"
        )


@dataclass(frozen=True)
class Opened:
    """A trained run, ready to sample."""

    parts: Parts
    seen: int
    """images the weights were trained on"""
    weights: str
    """"ema", "raw", or the name of a reconstructed average"""


def open_run(folder: Path, weights: str = "ema", overrides: list[str] | None = None) -> Opened:
    """The newest checkpoint of a run folder. Everything else is read from its `run.yaml`, save
    what is overridden.
    """
    width = posthoc.width_of(weights)
    if weights not in WEIGHTS and width is None:
        raise ConfigError(
            f"--weights {weights!r}: choose ema or raw, or posthoc-0.07 after nanogen ema RUN "
            "--width 0.07"
        )
    if not (folder / CONFIG).exists():
        raise CheckpointError(
            f"{folder} is not a run folder: it has no {CONFIG}; train one with nanogen train"
        )
    run = _changed(config.read(Run, folder / CONFIG), overrides or [])
    path = checkpoint.latest(folder / "checkpoints")
    if path is None:
        raise CheckpointError(f"{folder} has no checkpoint yet; train it for longer")
    parts = build(run)
    seen = checkpoint.load_weights(path, parts.model, weights if width is None else "raw")
    if width is not None:
        seen = posthoc.load(folder, width, parts.model.trained())
        weights = posthoc.name_of(width)
    parts.model.eval()
    return Opened(parts, seen, weights)


def _changed(run: Run, overrides: list[str]) -> Run:
    """A trained run with other settings of its use; what it was trained with stays as it was."""
    changed = config.override(run, overrides) if overrides else run
    for path, old, new in config.differences(run, changed):
        if not path.startswith(USED_AFTER_TRAINING):
            raise ConfigError(
                f"{path}={config.shown(new)} does not fit this run: it was trained with "
                f"{config.shown(old)}; only {', '.join(USED_AFTER_TRAINING)} can be changed now"
            )
    return changed


def start(parts: Parts) -> None:
    """Give the model of a run that starts from another's averaged weights (`train.start`) those
    weights. ConfigError where there are none, or where they are of another architecture.
    """
    name = parts.run.train.start
    if not name:
        return
    path = checkpoint.latest(Path(name) / "checkpoints")
    if path is None:
        raise ConfigError(
            f"train.start={name} has no checkpoint; train that run first, or name another folder"
        )
    try:
        checkpoint.load_weights(path, parts.model, "ema")
    except CheckpointError as error:
        raise ConfigError(f"train.start={name} does not fit this run: {error}") from error


def describe(parts: Parts, folder: Path) -> str:
    """One line on what is about to be trained, where, and how."""
    run, latent = parts.run, parts.tokenizer.spec
    pieces = dist.world(), run.machine.micro_batch
    split = f" = {pieces[0]} processes" if pieces[0] > 1 else ""
    micro = f", at most {pieces[1]} at once" if pieces[1] else ""
    return (
        f"{run.name}: {parameter_count(parts.model):,} parameters, "
        f"{latent.channels}x{latent.height}x{latent.width} "
        f"in {latent.tokens} tokens; {run.train.images:,} images "
        f"in batches of {run.train.batch}{split}{micro}; "
        f"{run.train.precision} on {parts.device.type}; {folder}"
    )
