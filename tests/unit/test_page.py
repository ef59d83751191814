"""What the page of a benchmark folder is made from."""

from __future__ import annotations

import json

import pytest

from nanogen import config
from nanogen.bench import page, record
from nanogen.errors import DataError
from nanogen.recipes import preset


def one(run: str, metric: str, value: float, seen: int = 64) -> record.Record:
    task, _, method = run.partition("/")
    return record.Record(
        run=run,
        task={"animals": "class_conditional", "scenes": "text_to_image"}[task],
        method=method,
        metric=metric,
        version=1,
        value=value,
        standard_error=None,
        n=50,
        higher_is_better=not metric.startswith("fd"),
        seen=seen,
    )


@pytest.fixture
def bench(tmp_path):
    """Two runs with a log; one of them measured twice."""
    for name in ("animals/pixels-v", "scenes/pixels-v"):
        folder = tmp_path / name.replace("/", "-")
        folder.mkdir()
        config.write(preset(name), folder / "run.yaml")
        lines = [{"seen": 32, "loss": 1.5}, {"seen": 64}, {"seen": 96, "loss": 0.5}]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for seen, value in ((32, 9.0), (64, 4.0)):
        mine = one("animals/pixels-v", "fd-animals", value, seen)
        record.write(tmp_path / "animals-pixels-v" / "records", mine)
    record.write(tmp_path / "sanity" / "animals", one("animals/noise", "fd-animals", 99.0))
    return tmp_path


def test_run_folders_are_those_with_a_config(bench):
    assert [p.name for p in page.run_folders(bench)] == ["animals-pixels-v", "scenes-pixels-v"]
    alone = bench / "animals-pixels-v"
    assert page.run_folders(alone) == [alone]
    for folder, message in ((bench / "sanity", "holds no run"), (bench / "no", "does not exist")):
        with pytest.raises(DataError, match=message):
            page.run_folders(folder)


def test_records_of_unmeasured_runs_and_sanity_rows_are_left_out(bench):
    assert [(r.method, r.value) for r in page.own_records(bench)] == [
        ("pixels-v", 9.0),
        ("pixels-v", 4.0),
    ]
    with pytest.raises(DataError, match="holds no records yet"):
        page.own_records(bench / "scenes-pixels-v")


def test_the_summary_names_the_best_of_the_last_values():
    records = [
        one("animals/a", "fd-animals", 1.0, seen=32),
        one("animals/a", "fd-animals", 5.0, seen=64),
        one("animals/b", "fd-animals", 4.0, seen=64),
        one("scenes/a", "scene-eval", 0.2),
        one("scenes/b", "scene-eval", 0.6),
    ]
    assert page._summary(records, 4) == (
        "4 runs. b is best in fd-animals with 4; b is best in scene-eval with 0.6."
    )


def test_curves_of_loss_and_of_scores_measured_more_than_once(bench):
    runs = {path: config.read(page.Run, path / "run.yaml") for path in page.run_folders(bench)}
    panels = {panel.title: panel.series for panel in page._curves(runs)}
    assert set(panels) == {"animals: loss", "animals: fd-animals", "scenes: loss"}
    assert panels["animals: loss"][0].points == ((32, 1.5), (96, 0.5))
    assert panels["animals: fd-animals"][0].points == ((32.0, 9.0), (64.0, 4.0))


def test_a_run_without_a_checkpoint_has_no_grid(bench):
    assert page._grid(bench / "scenes-pixels-v") is None
