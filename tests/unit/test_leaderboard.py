"""Leaderboards: the right record in the right cell, the best marked, and three renderings."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from nanogen.bench.leaderboard import (
    latest,
    leaderboard,
    published_leaderboard,
    published_reproduction,
)
from nanogen.bench.record import Record
from nanogen.bench.table import Cell, Column, Table

CLASS, TEXT = "class_conditional", "text_to_image"


def record(method: str, task: str, metric: str, value: float, **more: object) -> Record:
    fields: dict[str, object] = {"standard_error": None, "n": 100, "higher_is_better": True}
    return Record(
        run="r", task=task, method=method, metric=metric, version=1, value=value, **(fields | more)
    )


RECORDS = [
    record("x", CLASS, "fd", 30.0, seen=10, higher_is_better=False),
    record("x", CLASS, "fd", 20.0, seen=20, higher_is_better=False),
    record("x", CLASS, "fd", 19.0, seen=20, weights="raw", higher_is_better=False),
    record("v", CLASS, "fd", 25.0, seen=20, higher_is_better=False),
    record("x", TEXT, "scenes", 0.41, standard_error=0.02, seen=20),
    record("v", TEXT, "scenes", 0.52, standard_error=0.02, seen=20),
]


def terminal(table: Table, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    console.print(table.to_rich())
    return console.export_text()


def test_the_most_trained_ema_record_is_shown() -> None:
    values = {(r.method, r.metric): r.value for r in latest(RECORDS)}
    assert values[("x", "fd")] == 20.0
    assert {(r.method, r.metric): r.value for r in latest(reversed(RECORDS))} == values


def test_methods_by_metrics_with_the_best_marked_by_direction() -> None:
    table = leaderboard(RECORDS)
    assert [c.heading for c in table.columns] == ["Method", "fd ↓", "scenes ↑"]
    assert [c.group for c in table.columns] == ["", "class-conditional", "text-to-image"]
    assert [[c.value for c in row] for row in table.rows] == [["v", 25.0, 0.52], ["x", 20.0, 0.41]]
    assert [[c.best for c in row] for row in table.rows] == [
        [False, False, True],
        [False, True, False],
    ]


def test_budgets_and_seeds_are_rows_only_where_they_differ() -> None:
    more = [*RECORDS, record("x", TEXT, "scenes", 0.6, budget="full", seen=99)]
    table = leaderboard(more)
    assert [c.title for c in table.columns][:2] == ["Method", "Budget"]
    assert [[c.value for c in row[:2]] for row in table.rows] == [
        ["v", ""],
        ["x", ""],
        ["x", "full"],
    ]
    assert "Rows differ in images of training: scenes." in table.notes


def test_unequal_numbers_of_samples_are_noted() -> None:
    table = leaderboard([*RECORDS, record("z", TEXT, "scenes", 0.1, n=7, seen=20)])
    assert "Rows differ in samples: scenes." in table.notes


def test_chosen_metrics_come_in_the_order_asked_for() -> None:
    records = [*RECORDS, record("x", CLASS, "accuracy", 0.9, seen=20)]
    assert [c.title for c in leaderboard(records, ["fd", "accuracy"]).columns] == [
        *("Method", "fd", "accuracy")
    ]


def test_a_missing_cell_is_a_dash() -> None:
    table = leaderboard(RECORDS[:4] + RECORDS[5:])
    assert table.text(1, 2) == "–"


def test_markdown_is_a_pipe_table_in_which_names_cannot_do_harm() -> None:
    text = leaderboard([record("a|b*_<i>", CLASS, "fd", 1.0), *RECORDS]).to_markdown()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| Method | class-conditional: fd ↓ | text-to-image: scenes ↑ |".replace(
        "fd ↓", "fd"
    )
    assert lines[1] == "| :--- | ---: | ---: |"
    assert r"a\|b\*\_\<i>" in lines[2]
    assert "**0.520 ± 0.020**" in text


def test_the_terminal_shows_every_cell_at_80_columns() -> None:
    text = terminal(leaderboard(RECORDS), 80)
    for shown in ("class-conditional", "fd ↓", "20.00", "0.520 ± 0.020", "one standard error"):
        assert shown in text
    published = terminal(published_leaderboard(), 80)
    assert "0.840" in published and max(map(len, published.splitlines())) <= 80


def test_json_holds_full_numbers() -> None:
    data = json.loads(json.dumps(leaderboard(RECORDS).to_json()))
    assert data["rows"][0][2] == {"value": 0.52, "error": 0.02, "best": True}
    assert data["columns"][1]["higher_is_better"] is False


def test_published_tables_have_the_printed_values() -> None:
    table = published_leaderboard()
    flux = next(row for row in table.rows if row[0].value == "FLUX.2-VAE")
    assert [c.value for c in flux[2:]] == [1.37, 272.7, 4.53, 146.9, 0.675, 0.830, 0.712]
    assert flux[2].best
    assert len(table.rows) == 35
    assert len(published_reproduction().rows) == 12


def test_numbers_are_printed_with_decimals_for_their_size() -> None:
    def shown(*values: float) -> list[str]:
        rows = tuple((Cell(v),) for v in values)
        table = Table("t", (Column("c"),), rows)
        return [table.text(i, 0) for i in range(len(values))]

    assert shown(0.51234, 0.6) == ["0.512", "0.600"]
    assert shown(12.345, 0.6) == ["12.35", "0.60"] or shown(12.345, 0.6) == ["12.34", "0.60"]
    assert shown(1234.5, 0.6) == ["1,234.5", "0.6"]
    assert shown(100, 2000) == ["100", "2,000"]


@pytest.mark.parametrize("count", [1, 3])
def test_an_only_value_is_not_the_best(count: int) -> None:
    rows = ((Cell(1.0),),) * count
    table = Table("t", (Column("c", higher_is_better=True),), rows).with_best()
    assert not any(row[0].best for row in table.rows)


def test_a_row_that_hides_another_run_says_so() -> None:
    """An idea under the name of its baseline must not silently take its place."""
    baseline = record("v", CLASS, "fd", 30.0, seen=20, config_hash="a")
    assert not [n for n in leaderboard([baseline]).notes if "several" in n]
    halfway = record("v", CLASS, "fd", 40.0, seen=10, config_hash="a")
    assert not [n for n in leaderboard([baseline, halfway]).notes if "several" in n]
    idea = record("v", CLASS, "fd", 20.0, seen=20, config_hash="b")
    (note,) = [n for n in leaderboard([baseline, idea]).notes if "several" in n]
    assert ": v." in note and "name=task/idea" in note


def test_what_was_scored_otherwise_is_noted() -> None:
    both = [
        record("x", CLASS, "reward", 0.1, precision="fp32", quantisation="round"),
        record("v", CLASS, "reward", 0.2, precision="bf16", quantisation="truncate"),
    ]
    notes = leaderboard(both).notes
    assert "Rows differ in precision of the scoring models: reward." in notes
    assert "Rows differ in how grey levels were made whole: reward." in notes
    # What has none does not differ.
    notes = leaderboard([both[0], record("v", CLASS, "reward", 0.2)]).notes
    assert not [note for note in notes if note.startswith("Rows differ")]


def test_of_two_precisions_the_same_one_is_shown_in_whatever_order() -> None:
    both = [record("x", CLASS, "reward", v, precision=p) for v, p in ((1, "bf16"), (2, "fp32"))]
    assert latest(both) == latest(both[::-1]) == [both[1]]
