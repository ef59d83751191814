"""The matrix of tasks and methods: cells, resuming, failing, and the page that it ends in."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import PATCH, TINY, WORDS, checkpoints, environment, invoke, wait_for

from nanogen import config
from nanogen.bench import matrix, page, record
from nanogen.bench.matrix import Benchmark, Budget, Cell, CellFailed
from nanogen.errors import CheckpointError

KEPT = tuple(p for p in TINY if not p.startswith(("evaluation", "train.images", "train.save")))
OWN = {
    "animals": (*KEPT, "evaluation.metrics=accuracy-animals"),
    "scenes": (*KEPT, *WORDS),
}
"""what makes a cell of a task tiny"""


def micro(monkeypatch, *tasks: str, images: int = 64) -> None:
    """Make the benchmark `animals` so small that a cell takes seconds."""
    cell = matrix._cell

    def sized(benchmark, budget, task, method, folder) -> Cell:
        patch = (PATCH[task],) if method.startswith("pixels") else ()
        small = Budget(images, {"animals": 50, "scenes": 24}, most_steps=2)
        made = cell(Benchmark(tasks, {budget: small}), budget, task, method, folder)
        steps = f"sampling.steps={made.run.sampling.steps}"
        return replace(made, run=config.override(made.run, [*OWN[task], *patch, steps]))

    named = Benchmark(tasks, {"micro": Budget(images, {})})
    monkeypatch.setitem(matrix.BENCHMARKS, "animals", named)
    monkeypatch.setattr(matrix, "_cell", sized)
    monkeypatch.setattr(matrix, "POLL", 0.05)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Cells are processes of their own."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_both_tasks_and_methods_end_in_a_page(tmp_path, monkeypatch, capfd):
    micro(monkeypatch, "animals", "scenes")
    methods = ["pixels-v", "vae"]
    cells = matrix.run("animals", methods, "micro", 2, tmp_path)
    assert [cell.name for cell in cells] == [
        "animals/pixels-v",
        "scenes/pixels-v",
        "animals/vae",
        "scenes/vae",
    ]
    assert all(cell.finished() for cell in cells)
    assert capfd.readouterr().err.count(": done") == 4

    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.record.json")}
    matrix.run("animals", methods, "micro", 2, tmp_path)
    assert capfd.readouterr().err == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.record.json")} == made

    written = page.write(tmp_path, command="nanogen bench animals")
    html = written.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", html)
    assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", html)
    assert html.count("data:image/png;base64,") >= 4
    for name in ("animals/pixels-v", "scenes/vae", "real, held out", "nanogen bench animals"):
        assert name in html
    markdown = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "What latent spaces keep: scenes" in markdown and "rfd-animals" in markdown
    assert "Reconstructions: animals" in html and 'class="grid wide"' in html
    assert "vae" in markdown and "noise" in markdown and "Correlation" in markdown

    assert invoke(monkeypatch, "report", str(tmp_path)) == 0
    assert invoke(monkeypatch, "leaderboard", str(tmp_path), "--json") == 0
    out = capfd.readouterr().out
    assert out.startswith(f"{written}\n")
    assert {"pixels-v", "vae"} <= set(re.findall(r'"(pixels-v|vae)"', out))


@pytest.mark.slow
def test_a_network_is_trained_once_and_sampled_in_two_ways(tmp_path, monkeypatch):
    """`meanflow-2` measures the weights that `meanflow` trained; the page shows both."""
    micro(monkeypatch, "animals")
    one, two = matrix.run("animals", ["meanflow-2", "meanflow"], "micro", 2, tmp_path)
    assert (one.method, one.trained_as) == ("meanflow-2", two.folder) and two.trained_as is None
    assert one.finished() and two.finished()
    name = "checkpoints/000000000064/ema.safetensors"
    assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    assert (one.folder / "log.jsonl").read_bytes() == (two.folder / "log.jsonl").read_bytes()
    assert "images/s" not in (one.folder / "train.log").read_text()
    found = {r.method: r.sampler for r in record.read(tmp_path) if not r.known}
    assert {name: sampler["steps"] for name, sampler in found.items()} == {
        "meanflow": 1,
        "meanflow-2": 2,
    }
    assert "meanflow-2" in page.write(tmp_path, command="bench").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_killed_bench_continues(tmp_path, monkeypatch):
    """SIGTERM to the bench: its cells save; the next bench starts them where they were."""
    work = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import pytest, test_bench
from nanogen.bench import matrix
with pytest.MonkeyPatch.context() as patch:
    test_bench.micro(patch, "animals", images=8_000)
    matrix.run("animals", ["pixels-v"], "micro", 1, test_bench.Path({str(tmp_path)!r}))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", work], env=environment(), start_new_session=True, text=True
    )
    log = tmp_path / "animals-pixels-v" / "log.jsonl"
    try:
        wait_for(lambda: log.exists() and log.stat().st_size > 0, process, 90)
        process.terminate()
        assert process.wait(timeout=60) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    (saved,) = checkpoints(tmp_path / "animals-pixels-v")
    assert 0 < saved < 8_000
    assert "stopped by SIGTERM" in (tmp_path / "animals-pixels-v" / "train.log").read_text()

    # The same cell with the same budget goes on; here it is enough that it does not start over.
    micro(monkeypatch, "animals", images=8_000)
    monkeypatch.setattr(matrix, "train_all", lambda todo, jobs: todo)
    (cell,) = matrix.run("animals", ["pixels-v"], "micro", 1, tmp_path)
    assert not cell.finished() and 0 < cell.seen() <= saved


def test_a_failing_cell_is_reported_with_its_log(tmp_path, monkeypatch, capfd):
    micro(monkeypatch, "animals")
    (cell,) = matrix.cells("animals", ["pixels-v"], "micro", tmp_path)
    cell.folder.mkdir(parents=True)
    (cell.folder / "checkpoints").write_text("in the way")
    with pytest.raises(CellFailed) as failure:
        matrix.train_all([cell], 1)
    message = str(failure.value)
    assert message.startswith("animals/pixels-v failed: error: ")
    assert message.endswith(f"(see {cell.folder / 'train.log'})")
    assert "Traceback" not in (cell.folder / "train.log").read_text()


def test_another_run_in_a_cell_is_refused_before_anything_starts(tmp_path, monkeypatch):
    micro(monkeypatch, "animals")
    monkeypatch.setattr(matrix, "train_all", lambda todo, jobs: [matrix._start(c) for c in todo])
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: None)
    matrix.run("animals", ["pixels-v"], "micro", 1, tmp_path)
    monkeypatch.undo()
    micro(monkeypatch, "animals", images=128)
    with pytest.raises(CheckpointError, match="train.images: 64 there, 128 here"):
        matrix.run("animals", ["pixels-v"], "micro", 1, tmp_path)
