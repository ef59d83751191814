"""A run that trains in a second, and what tests compare of a run folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from nanogen import config, recipes, run_folder
from nanogen.evaluation import online
from nanogen.run import Parts, Run, build
from nanogen.train.diffusion import DiffusionTrainer
from nanogen.train.log import CLOCKED, read
from nanogen.train.loop import train

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "machine.device=cpu",
    "backbone.depth=1",
    "backbone.width=32",
    "backbone.heads=2",
    "backbone.decoder_width=32",
    "backbone.decoder_heads=2",
    "schedule.warmup=0",
    "evaluation.metrics=",
    "sampling.steps=2",
    "train.images=64",
    "train.batch=8",
    "train.log_every=24",
    "train.save_every=16",
    "train.sample_every=0",
)
"""overrides of any preset on the embedded data; the log line falls between two checkpoints"""
PATCH = {"animals": "tokenizer.patch=7", "scenes": "tokenizer.patch=10"}
WORDS = ("conditioner=words", "conditioner.width=16")
GLOO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def overrides(preset: str = "animals/pixels-v", *more: str) -> list[str]:
    """The arguments that make a preset tiny."""
    return [*TINY, PATCH[preset.partition("/")[0]], *more]


def tiny(preset: str = "animals/pixels-v", *more: str) -> Run:
    return config.override(recipes.preset(preset), overrides(preset, *more))


def trained(run: Run, folder: Path, stop_at: int | None = None) -> Parts:
    """Train as the command does, in this process; `stop_at` sends SIGTERM once so much is seen."""
    parts = build(run)
    hooks = online.hooks(parts, folder)
    run_folder.prepare(run, folder, fresh=False)
    if stop_at is not None:
        stop_after(parts, stop_at // run.train.batch)
    train(DiffusionTrainer(parts), folder, hooks)
    return parts


def stop_after(parts: Parts, steps: int) -> None:
    """SIGTERM to this process in the forward pass of step `steps` of this process."""
    calls = []

    def count(*_: object) -> None:
        calls.append(None)
        if len(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    parts.model.register_forward_hook(count)


def final(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, `file/name` -> value."""
    newest = max((folder / "checkpoints").glob("[0-9]*"))
    return {
        f"{file.stem}/{name}": value
        for file in sorted(newest.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def unlike(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names that only one has, or whose bits differ."""
    return [
        name
        for name in sorted(a.keys() | b.keys())
        if name not in a
        or name not in b
        or a[name].dtype != b[name].dtype
        or not torch.equal(a[name], b[name])
    ]


def unclocked(folder: Path) -> list[dict[str, float]]:
    """The log without what says how fast it went."""
    lines = read(folder / "log.jsonl")
    return [{k: v for k, v in line.items() if k not in CLOCKED} for line in lines]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "samples").glob("*.png"))}


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, averages, moments, log and sample grids, bit for bit."""
    assert unlike(final(a), final(b)) == []
    assert unclocked(a) == unclocked(b)
    assert pictures(a) == pictures(b)
    assert checkpoints(a) == checkpoints(b)


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(arguments: list[str], *, processes: int = 1) -> subprocess.Popen[str]:
    """`nanogen ARGUMENTS` as a process group of its own, by torchrun where there are several."""
    launcher = (*GLOO, str(processes)) if processes > 1 else ()
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "nanogen", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def command(
    arguments: list[str], *, processes: int = 1, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """`nanogen ARGUMENTS` to its end."""
    process = start(arguments, processes=processes)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float) -> None:
    """Return once the condition holds; fail when the process ends before or it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a copy of this process; its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            work()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def invoke(monkeypatch, *arguments: str) -> int:
    """`nanogen ARGUMENTS` in this process; its exit status. An exception is a traceback."""
    from nanogen.cli import app

    monkeypatch.setattr(sys, "argv", ["nanogen", *arguments])
    try:
        app.main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 0


def ranks(count: int, store: Path, work: Callable[[], object]) -> list[int]:
    """Run `work` in `count` copies of this process that form a gloo group; their statuses.

    `store` is a file that does not exist yet, through which they meet.
    """

    def joined(rank: int) -> None:
        # A collective that one process misses would wait for ever.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=count
        )
        work()
        torch.distributed.destroy_process_group()

    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            status = 70
            try:
                joined(rank)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
