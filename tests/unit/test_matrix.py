"""Tasks times methods: which runs a benchmark holds, and which of them are finished."""

from __future__ import annotations

import pytest

from nanogen import config
from nanogen.bench import matrix, record
from nanogen.errors import ConfigError, UserError


def result(cell: matrix.Cell, metric: str, seen: int) -> None:
    """Write a record of a cell, as its evaluation does."""
    one = record.Record(
        run=cell.name,
        task="class_conditional",
        method=cell.method,
        metric=metric,
        version=1,
        value=0.5,
        standard_error=None,
        n=50,
        higher_is_better=True,
        seen=seen,
        config_hash=config.digest(cell.run.identity()),
    )
    record.write(cell.folder / "records", one)


@pytest.mark.parametrize("budget", ["smoke", "quick", "full"])
def test_budgets_and_methods_make_the_cells(tmp_path, budget):
    cells = matrix.cells("animals", None, budget, tmp_path)
    assert {cell.task for cell in cells} == {"animals", "scenes"}
    assert {cell.method for cell in cells} >= {"pixels-v", "pixels-x"}
    assert len({cell.folder for cell in cells}) == len(cells)
    images = matrix.BENCHMARKS["animals"].budgets[budget].images
    for cell in cells:
        assert (cell.run.budget, cell.run.name) == (budget, cell.name)
        assert cell.run.train.images == images
        # What is due at a quarter is due at the end too.
        assert images % cell.run.train.save_every == 0


def test_methods_are_chosen_in_the_order_given(tmp_path):
    chosen = matrix.cells("animals", ["pixels-x", "pixels-v"], "quick", tmp_path)
    assert [cell.name for cell in chosen] == [
        "animals/pixels-x",
        "scenes/pixels-x",
        "animals/pixels-v",
        "scenes/pixels-v",
    ]


def test_a_cell_waits_for_the_network_that_it_samples(tmp_path):
    alone, _ = matrix.cells("animals", ["meanflow-2"], "quick", tmp_path)
    assert alone.trained_as is None
    cells = matrix.cells("animals", ["meanflow-2", "pixels-v", "meanflow"], "quick", tmp_path)
    two, one = cells[0], cells[4]
    assert (two.name, two.trained_as, one.folder) == (
        "animals/meanflow-2",
        tmp_path / "animals-meanflow",
        tmp_path / "animals-meanflow",
    )
    ready = [cell.method for cell in matrix._ready(cells, [])]
    assert ready == ["pixels-v", "pixels-v", "meanflow", "meanflow"]
    assert two in matrix._ready([two], []) and two not in matrix._ready([two], [one])


def test_a_smoke_run_takes_few_steps_but_no_method_takes_more_than_its_own(tmp_path):
    cells = matrix.cells("animals", ["pixels-v", "meanflow", "meanflow-2"], "smoke", tmp_path)
    steps = {cell.method: cell.run.sampling.steps for cell in cells}
    assert steps == {"pixels-v": 4, "meanflow": 1, "meanflow-2": 2}


def test_only_records_of_the_end_finish_a_cell(tmp_path):
    (cell, _) = matrix.cells("animals", ["pixels-v"], "smoke", tmp_path)
    end, metrics = cell.run.train.images, cell.run.evaluation.metrics
    assert not cell.finished() and cell.seen() == 0
    for metric in metrics:
        result(cell, f"{metric}/part", end // 2)
    assert not cell.finished()
    for metric in metrics:
        assert not cell.finished()
        result(cell, f"{metric}/part", end)
    assert cell.finished()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("animal", None, "quick", 1), "unknown benchmark 'animal'; did you mean animals?"),
        (("animals", None, "quik", 1), "unknown budget 'quik'; did you mean quick?"),
        (("animals", ["pixel-v"], "quick", 1), "unknown method 'pixel-v'; did you mean pixels-"),
        (("animals", [""], "quick", 1), "unknown method ''"),
        (("animals", None, "quick", 0), "--jobs 0: must be at least 1"),
    ],
)
def test_what_there_is_not(tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        matrix.run(*given, tmp_path / "bench")
    assert not (tmp_path / "bench").exists()


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "bench").touch()
    with pytest.raises(UserError, match="cannot write to"):
        matrix.run("animals", None, "quick", 1, tmp_path / "bench")
