"""A benchmark: a table of runs, tasks x methods, each cell trained and measured by `nanogen train`.

Cells are processes of their own, several at a time. A cell is a run folder, so whatever was killed
continues, and what is finished is not done again.

    runs/bench-animals-quick/
        animals-pixels-v/  scenes-pixels-v/ ...    one run folder for each cell
        sanity/                                    records of real data, and of real data made worse
        leaderboard.md  report.html
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from nanogen import config, recipes
from nanogen.errors import ConfigError, RunFailed, suggest
from nanogen.evaluation import online
from nanogen.evaluation.online import measured
from nanogen.files import whole_file, whole_folder, writable_folder
from nanogen.run import Run, build
from nanogen.run_folder import CONFIG, refuse_other
from nanogen.train import checkpoint
from nanogen.train.log import read

POLL = 1.0
"""seconds between looks at the running cells"""
SPEAK = 20.0
"""seconds between progress lines"""


@dataclass(frozen=True)
class Budget:
    """What a budget changes in the presets of a benchmark."""

    images: int
    """to train on, for each run"""
    samples: dict[str, int]
    """to measure, by task"""
    most_steps: int | None = None
    """of a sampler, for methods that would take more; None: as many as they take"""
    halfway: bool = False
    """measure in the middle of the training too"""


@dataclass(frozen=True)
class Benchmark:
    tasks: tuple[str, ...]
    budgets: dict[str, Budget]


BENCHMARKS = {
    "animals": Benchmark(
        tasks=("animals", "scenes"),
        budgets={
            "smoke": Budget(128, {"animals": 256, "scenes": 60}, most_steps=4),
            "quick": Budget(6_080, {"animals": 320, "scenes": 265}),
            "full": Budget(48_000, {"animals": 1_000, "scenes": 530}, halfway=True),
        },
    ),
}


@dataclass(frozen=True)
class Cell:
    """One run of a benchmark and its folder."""

    task: str
    method: str
    run: Run
    folder: Path
    trained_as: Path | None = None
    """folder of the cell whose trained network this one samples otherwise"""

    @property
    def name(self) -> str:
        return f"{self.task}/{self.method}"

    def seen(self) -> int:
        lines = read(self.folder / "log.jsonl")
        return int(lines[-1]["seen"]) if lines else 0

    def finished(self) -> bool:
        """Whether records of the fully trained run exist."""
        batch = self.run.train.batch
        return measured(
            self.run, self.folder / "records", -(-self.run.train.images // batch) * batch
        )


def cells(name: str, methods: list[str] | None, budget: str, folder: Path) -> list[Cell]:
    """All cells of a benchmark, in the order in which they are started."""
    if name not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {name!r}; {suggest(name, BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    if budget not in benchmark.budgets:
        raise ConfigError(f"unknown budget {budget!r}; {suggest(budget, benchmark.budgets)}")
    known = recipes.methods_of(benchmark.tasks[0])
    for method in methods or ():
        if method not in known:
            raise ConfigError(f"unknown method {method!r}; {suggest(method, known)}")
    wanted = dict.fromkeys(methods or known)
    made = [
        _cell(benchmark, budget, task, method, folder)
        for method in wanted
        for task in benchmark.tasks
    ]
    return [_with_source(cell, made) for cell in made]


def _with_source(cell: Cell, every: list[Cell]) -> Cell:
    """A cell whose network another one trains takes it from there; without that one it trains."""
    source = recipes.METHODS[cell.method].trained_as
    found = [one.folder for one in every if (one.task, one.method) == (cell.task, source)]
    return replace(cell, trained_as=found[0] if found else None)


def _cell(benchmark: Benchmark, budget: str, task: str, method: str, folder: Path) -> Cell:
    chosen = benchmark.budgets[budget]
    marks = chosen.images // 4
    values = (
        f"budget={budget}",
        f"schedule.warmup={chosen.images // 20}",
        f"train.images={chosen.images}",
        f"train.save_every={marks}",
        f"train.sample_every={marks}",
        f"evaluation.samples={chosen.samples[task]}",
        f"evaluation.every={chosen.images // 2 if chosen.halfway else 0}",
    )
    preset = recipes.preset(f"{task}/{method}")
    steps = min(preset.sampling.steps, chosen.most_steps or preset.sampling.steps)
    run = config.override(preset, [*values, f"sampling.steps={steps}"])
    return Cell(task, method, run, folder / f"{task}-{method}")


def train_all(todo: list[Cell], jobs: int) -> None:
    """Train and measure cells, `jobs` at a time. On an interrupt each saves its state before it
    ends.
    """
    waiting, running, failed = list(todo), {}, []
    console, spoken = Console(stderr=True), time.monotonic()
    with _ended_with_us(running):
        while waiting or running:
            while len(running) < jobs and (ready := _ready(waiting, running)):
                cell = ready[0]
                waiting.remove(cell)
                console.print(
                    f"{cell.name}: started; log in {cell.folder / 'train.log'}", highlight=False
                )
                running[cell] = _start(cell)
            time.sleep(POLL)
            for cell, process in list(running.items()):
                if process.poll() is not None:
                    del running[cell]
                    if process.returncode or not cell.finished():
                        failed.append(cell)
                        # Whoever samples its network has none.
                        waiting = [one for one in waiting if one.trained_as != cell.folder]
                    console.print(
                        f"{cell.name}: {'failed' if cell in failed else 'done'}", highlight=False
                    )
            if time.monotonic() - spoken > SPEAK and running:
                spoken = time.monotonic()
                console.print(
                    ", ".join(f"{c.name} {c.seen() / c.run.train.images:.0%}" for c in running),
                    highlight=False,
                )
    if failed:
        last = (
            (failed[0].folder / "train.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
        )
        raise CellFailed(
            f"{failed[0].name} failed: {' '.join(last)} (see {failed[0].folder / 'train.log'})"
        )


def _ready(waiting: list[Cell], running: Iterable[Cell]) -> list[Cell]:
    """The cells that need not wait for another one's network."""
    unfinished = {cell.folder for cell in (*waiting, *running)}
    return [cell for cell in waiting if cell.trained_as not in unfinished]


class CellFailed(RunFailed):
    """A run of the benchmark ended with an error."""


def _start(cell: Cell) -> subprocess.Popen[bytes]:
    cell.folder.mkdir(parents=True, exist_ok=True)
    if not (cell.folder / CONFIG).exists():
        with whole_file(cell.folder / CONFIG) as part:
            config.write(cell.run, part)
    if cell.trained_as is not None:
        _take_over(cell.trained_as, cell.folder)
    command = [
        sys.executable,
        "-m",
        "nanogen",
        "train",
        "--from",
        str(cell.folder / CONFIG),
        "--out",
        str(cell.folder),
    ]
    with (cell.folder / "train.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def _take_over(trained: Path, folder: Path) -> None:
    """Copy the last checkpoint of a trained run, with its log: the run in `folder` then begins at
    its end, and is only measured.
    """
    newest = checkpoint.latest(trained / "checkpoints")
    if newest is None or (folder / "checkpoints" / newest.name).exists():
        return
    # The checkpoint goes last: it says that the log is there too.
    with whole_file(folder / "log.jsonl") as part:
        shutil.copyfile(trained / "log.jsonl", part)
    (folder / "checkpoints").mkdir(exist_ok=True)
    with whole_folder(folder / "checkpoints" / newest.name) as part:
        shutil.copytree(newest, part, dirs_exist_ok=True)


@contextlib.contextmanager
def _ended_with_us(running: dict[Cell, subprocess.Popen[bytes]]) -> Generator[None, None, None]:
    """Whatever ends this process, by an error or a signal, ends the cells too, and gives them time
    to save.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, old)


def run(
    name: str, methods: list[str] | None, budget: str, jobs: int | None, folder: Path
) -> list[Cell]:
    """Train and measure what is not finished yet; returns all cells, finished."""
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs {jobs}: must be at least 1")
    every = cells(name, methods, budget, folder)
    writable_folder(folder)
    for cell in every:
        if (cell.folder / CONFIG).exists():
            known = config.read(Run, cell.folder / CONFIG)
            refuse_other(cell.run, known, cell.folder, "remove that folder to start over")
    todo = [cell for cell in every if not cell.finished()]
    for cell in {cell.task: cell for cell in todo}.values():
        # What is missing is said now, in one line, and not when the other cells have been trained.
        online.hooks(build(cell.run), cell.folder)
    train_all(todo, jobs or os.cpu_count() or 1)
    return every
