"""Which results of two sides belong together: by settings where there are several of a score."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nanogen.bench import record
from nanogen.bench.compare import Comparison, Side, compare, side
from nanogen.bench.matching import matched
from nanogen.bench.record import Record
from nanogen.errors import DataError

BASE = Record(
    run="a",
    task="class_conditional",
    method="v",
    metric="accuracy",
    version=1,
    value=0.8,
    standard_error=0.01,
    n=1000,
    higher_is_better=True,
    seen=64,
    sampler={"guidance": 3.0, "seed": 0},
)


def result(guidance: float = 3.0, value: float = 0.8, **more: object) -> Record:
    """Of the run of BASE, unless `more` says otherwise; the hash of a config has the sampler in."""
    sampler = {**BASE.sampler, "guidance": guidance}
    fields = {"config_hash": f"{guidance}", "sampler": sampler, "value": value, **more}
    return dataclasses.replace(BASE, **fields)


def compared(first: list[Record], second: list[Record]) -> Comparison:
    return compare(Side("A", first), Side("B", second))


def rows(comparison: Comparison) -> dict[str, tuple[object, object]]:
    return {str(row[0].value): (row[2].value, row[3].value) for row in comparison.scores.rows}


def test_results_of_the_same_settings_are_compared_and_named() -> None:
    """Whatever the order of the files: a record's name ends in a hash."""
    first = [result(1.0, 0.1), result(3.0, 0.3), result(5.0, 0.5)]
    second = [
        result(3.0, 0.33, run="b", config_hash="b/3"),
        result(1.0, 0.11, run="b", config_hash="b/1"),
    ]
    found = compared(first, second)
    assert rows(found) == {
        "accuracy (sampler.guidance=1.0) ↑": (0.1, 0.11),
        "accuracy (sampler.guidance=3.0) ↑": (0.3, 0.33),
    }
    assert found.unmatched == ("A: class_conditional accuracy (sampler.guidance=5.0)",)
    # That they differ in the guidance among themselves is no difference between the sides.
    assert {row[0].value for row in found.conditions.rows} == {"run", "config_hash"}
    assert rows(compared(first[::-1], second[::-1])) == rows(found)


def test_one_of_several_goes_with_the_only_one_of_its_settings() -> None:
    found = compared([result(1.0, 0.1), result(3.0, 0.3)], [result(3.0, 0.33)])
    assert rows(found) == {"accuracy (sampler.guidance=3.0) ↑": (0.3, 0.33)}


def test_one_result_each_is_compared_whatever_differs() -> None:
    found = compared([result(1.0, 0.1)], [result(3.0, 0.3, weights="raw", n=7)])
    assert rows(found) == {"accuracy ↑": (0.1, 0.3)}


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"weights": "raw"}, "weights=raw"),
        ({"n": 7}, "n=7"),
        ({"facts": {"reference": "x"}}, "facts.reference=x"),
        ({"precision": "bf16"}, "precision=bf16"),
        ({"version": 2}, "version=2"),
        ({"config_hash": "h"}, "config_hash=h"),
        ({"run": "r"}, "run=r"),
        ({"run": "r", "config_hash": "h", "n": 7}, "n=7"),
    ],
)
def test_what_tells_results_apart(change: dict[str, object], setting: str) -> None:
    """A side that has both, against one that has the second only."""
    other = dataclasses.replace(BASE, **change, value=0.5)
    [pair] = matched([BASE, other], [other]).pairs
    assert (pair.first, pair.setting) == (other, setting)


def test_less_training_is_no_other_result() -> None:
    found = compared([result(1.0, 0.1, seen=32), result(3.0, 0.3)], [result(1.0, 0.2, seen=32)])
    assert rows(found) == {"accuracy ↑": (0.3, 0.2)}


def test_where_nothing_matches_the_choices_are_named(tmp_path: Path) -> None:
    """With the file that makes a choice, which then works."""
    for guidance in (1.0, 3.0):
        record.write(tmp_path / "a" / "records", result(guidance))
    record.write(tmp_path / "b", result(2.0))
    sides = side(tmp_path / "a"), side(tmp_path / "b")
    with pytest.raises(DataError) as refused:
        compare(*sides)
    said = str(refused.value)
    assert f"{tmp_path}/a has it with sampler.guidance=1.0 or sampler.guidance=3.0" in said
    assert f"{tmp_path}/b has it with sampler.guidance=2.0" in said
    file = Path(said.rpartition(" ")[2])
    assert file.parent == tmp_path / "a" / "records"
    assert rows(compare(side(file), sides[1])) == {"accuracy ↑": (0.8, 0.8)}


def test_a_score_without_a_partner_is_listed_beside_one_that_has() -> None:
    other = dataclasses.replace(result(1.0), metric="fd")
    first = [result(1.0), result(3.0), other, dataclasses.replace(other, weights="raw")]
    second = [result(3.0), dataclasses.replace(other, weights="posthoc-0.07")]
    assert compared(first, second).unmatched == (
        "A: class_conditional accuracy (sampler.guidance=1.0)",
        "A: class_conditional fd (weights=ema)",
        "A: class_conditional fd (weights=raw)",
        "B: class_conditional fd (weights=posthoc-0.07)",
    )


def test_two_values_of_the_same_settings_are_refused() -> None:
    """A copy of a folder, measured again by other code, lies below the same one."""
    with pytest.raises(DataError, match=r"accuracy twice with the same settings \(0.8 and 0.7\)"):
        compared([result(), result(value=0.7)], [result()])
    assert rows(compared([result(), result()], [result()])) == {"accuracy ↑": (0.8, 0.8)}
