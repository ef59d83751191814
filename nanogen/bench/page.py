"""The result of a benchmark folder: its tables, and its page.

Everything is read from the folder (records, logs, configs), so the page can be made again at any
time, and of a benchmark that is still running.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image

from nanogen import config
from nanogen.bench import reconstructions, record, sanity
from nanogen.bench.correlate import correlation_table, record_pairings
from nanogen.bench.leaderboard import leaderboards, published_leaderboard
from nanogen.bench.plot import Curve
from nanogen.bench.reconstructions import latent_runs, task_of
from nanogen.bench.record import Record
from nanogen.bench.report import Curves, Grid, Picture, ReportData, render
from nanogen.bench.table import Table
from nanogen.errors import DataError
from nanogen.files import write_text
from nanogen.run import Run
from nanogen.run_folder import CONFIG, open_run
from nanogen.sampling import draw
from nanogen.train import checkpoint
from nanogen.train.log import read

SANITY, SPACES = "sanity", "reconstruction"
HEADLINES = {"class_conditional": "fd-animals", "text_to_image": "scene-eval"}
"""the scores that stand first and on the axes of the correlation"""
SHOWN = 30
"""samples of each run on the page"""


@dataclass(frozen=True)
class Result:
    """What a benchmark found."""

    leaderboards: tuple[Table, ...]
    correlation: Table
    sanity: tuple[Table, ...]
    spaces: tuple[Table, ...] = ()
    """what the latent spaces keep of real images, by task"""
    reconstructions: tuple[Grid, ...] = ()

    @property
    def tables(self) -> list[Table]:
        return [*self.leaderboards, *self.spaces, *self.sanity, self.correlation]


def run_folders(folder: Path) -> list[Path]:
    """The run folders inside a benchmark folder, or the folder itself if it is one."""
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; make it with nanogen bench")
    found = [
        path.parent
        for path in sorted([folder / CONFIG, *folder.glob(f"*/{CONFIG}")])
        if path.exists()
    ]
    if not found:
        raise DataError(
            f"{folder} holds no run; give a folder that nanogen bench or nanogen train made"
        )
    return found


def result(folder: Path) -> Result:
    """Tables of a benchmark folder. Rows of sanity are measured once for each data set."""
    runs = [config.read(Run, path / CONFIG) for path in run_folders(folder)]
    records = own_records(folder)
    tables = {}
    for run in runs:
        task = run.name.partition("/")[0]
        if task not in tables and run.evaluation.metrics:
            rows = sanity.measure(run, folder / SANITY)
            tables[task] = sanity.table(rows, f"What the metrics say of known images: {task}")
    spaces = {run: reconstructions.measure(run, folder / SPACES) for run in latent_runs(runs)}
    by_task = [list(mine) for _, mine in groupby(spaces, key=task_of)]
    rows = [[one for run in mine for one in spaces[run]] for mine in by_task]
    return Result(
        tuple(leaderboards(records)),
        correlation_table(_pairings(records), "Correlation"),
        tuple(tables.values()),
        tuple(
            reconstructions.table(found, f"What latent spaces keep: {task_of(mine[0])}")
            for mine, found in zip(by_task, rows, strict=True)
        ),
        tuple(
            reconstructions.pictures(mine, found) for mine, found in zip(by_task, rows, strict=True)
        ),
    )


def own_records(folder: Path) -> list[Record]:
    """Records of the runs in a folder, without the sanity rows."""
    found = [
        r
        for path in run_folders(folder)
        if (path / "records").is_dir()
        for r in record.read(path / "records")
    ]
    if not found:
        raise DataError(f"{folder} holds no records yet; train its runs to the end")
    return found


def write(folder: Path, command: str = "") -> Path:
    """Write `leaderboard.md` and `report.html` into the folder; returns the page."""
    found = result(folder)
    write_text(folder / "leaderboard.md", "\n".join(table.to_markdown() for table in found.tables))
    page = folder / "report.html"
    write_text(page, render(_data(folder, found, command)))
    return page


def _data(folder: Path, found: Result, command: str) -> ReportData:
    paths, records = run_folders(folder), own_records(folder)
    runs = {path: config.read(Run, path / CONFIG) for path in paths}
    return ReportData(
        title=f"DiffusionBench: {folder.name}",
        summary=_summary(records, len(paths)),
        command=command,
        commit=record.commit(),
        hardware=f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
        leaderboards=(*found.leaderboards, published_leaderboard()),
        correlations=(found.correlation,),
        scatters=tuple(p for p in _pairings(records) if len(p.points) > 1),
        grids=tuple(grid for path in paths if (grid := _grid(path)) is not None),
        curves=tuple(_curves(runs)),
        spaces=found.spaces,
        reconstructions=found.reconstructions,
        sanity=found.sanity,
        configs={
            run.name: (path / CONFIG).read_text(encoding="utf-8") for path, run in runs.items()
        },
    )


def _pairings(records: list[Record]) -> list:
    """The headline score of each task against the other's, where both were measured."""
    measured = {(r.task, r.metric) for r in records}
    if all((task, metric) in measured for task, metric in HEADLINES.items()):
        return record_pairings(records, HEADLINES["class_conditional"], HEADLINES["text_to_image"])
    return record_pairings(records) if len({task for task, _ in measured}) > 1 else []


def _summary(records: list[Record], runs: int) -> str:
    parts = []
    for task, metric in HEADLINES.items():
        shown = {
            r.method: r
            for r in sorted(records, key=lambda r: r.seen)
            if (r.task, r.metric) == (task, metric)
        }
        if shown:
            sign = 1 if next(iter(shown.values())).higher_is_better else -1
            best = max(shown.values(), key=lambda r: sign * r.value)
            parts.append(f"{best.method} is best in {metric} with {best.value:.3g}")
    return f"{runs} runs. " + ("; ".join(parts) + "." if parts else "")


def _grid(path: Path) -> Grid | None:
    """Samples of a run's newest checkpoint, drawn once; None where there is none yet."""
    if checkpoint.latest(path / "checkpoints") is None:
        return None
    opened = open_run(path)
    target = path / "samples" / f"{opened.seen:012d}"
    if not (target / "samples.json").exists():
        request = opened.parts.task.request(0, SHOWN)
        draw.write(opened.parts, request, target, {"seen": opened.seen, "weights": opened.weights})
    rows = draw.rows(target)
    pictures = tuple(
        Picture(Image.open(target / row["file"]).convert("RGB"), row["caption"]) for row in rows
    )
    note = (
        f"The first {len(rows)} of the evaluation, not chosen; "
        f"{opened.seen:,} images seen, averaged weights."
    )
    return Grid(opened.parts.run.name, pictures, note)


def _curves(runs: dict[Path, Run]) -> list[Curves]:
    """Loss by images seen, and every headline score that was measured more than once, by task."""
    panels = []
    for task in dict.fromkeys(run.name.partition("/")[0] for run in runs.values()):
        mine = {path: run for path, run in runs.items() if run.name.startswith(f"{task}/")}
        series = [
            Curve(
                run.name,
                tuple(
                    (line["seen"], line["loss"])
                    for line in read(path / "log.jsonl")
                    if "loss" in line
                ),
            )
            for path, run in mine.items()
        ]
        panels.append(Curves(f"{task}: loss", tuple(series)))
        panels += _score_curves(task, mine)
    return panels


def _score_curves(task: str, runs: dict[Path, Run]) -> list[Curves]:
    panels = []
    for metric in HEADLINES.values():
        series = []
        for path, run in runs.items():
            records = record.read(path / "records") if (path / "records").exists() else []
            points = sorted((r.seen, r.value) for r in records if r.metric == metric)
            if len(points) > 1:
                series.append(Curve(run.name, tuple((float(x), y) for x, y in points)))
        if series:
            panels.append(Curves(f"{task}: {metric}", tuple(series), y_label=metric))
    return panels
