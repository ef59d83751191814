"""Comparisons: which conditions differ, and when a difference means something."""

from __future__ import annotations

import dataclasses

import pytest

from nanogen.bench.compare import Comparison, Side
from nanogen.bench.compare import compare as compared
from nanogen.bench.record import Record
from nanogen.errors import DataError

BASE = Record(
    run="a",
    task="class_conditional",
    method="v",
    metric="accuracy",
    version=1,
    value=0.80,
    standard_error=0.01,
    n=1000,
    higher_is_better=True,
    facts={"reference_hash": "abc", "worst_class": "cow"},
    sampler={"steps": 50},
)
NAMES = ("A", "B")


def compare(first: list[Record], second: list[Record], names: tuple[str, str]) -> Comparison:
    return compared(Side(names[0], first), Side(names[1], second))


def changed(**values: object) -> Record:
    return dataclasses.replace(BASE, **values)


def verdict(second: Record, first: Record = BASE) -> str:
    [row] = compare([first], [second], NAMES).scores.rows
    return str(row[-1].value)


def differing(comparison: Comparison) -> dict[object, tuple[object, object]]:
    return {row[0].value: (row[1].value, row[2].value) for row in comparison.conditions.rows}


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (changed(value=0.90), "better"),
        (changed(value=0.70), "worse"),
        # Combined error sqrt(2) / 100, so 1.96 of them are 0.0277.
        (changed(value=0.827), "within noise"),
        (changed(value=0.828), "better"),
        (changed(value=0.80), "equal"),
        (changed(value=0.90, standard_error=None), "better, no error known"),
        (changed(value=0.90, n=10), "not comparable: other n"),
        (changed(facts={"reference_hash": "x"}), "not comparable: other facts.reference_hash"),
        (changed(value=0.90, version=2), "not comparable: other version"),
        (
            changed(value=0.90, facts={**BASE.facts, "detector_hash": "x", "model_sha256": "y"}),
            "not comparable: other facts.detector_hash, facts.model_sha256",
        ),
        (
            changed(value=0.90, facts={**BASE.facts, "network_hash/clip": "x"}),
            "not comparable: other facts.network_hash/clip",
        ),
        (
            changed(value=0.90, facts={**BASE.facts, "captions_hash": "x"}),
            "not comparable: other facts.captions_hash",
        ),
    ],
)
def test_verdicts(second: Record, expected: str) -> None:
    assert verdict(second) == expected


def test_lower_is_better_turns_the_verdict() -> None:
    first = changed(higher_is_better=False)
    assert verdict(changed(higher_is_better=False, value=0.7), first) == "better"


def test_the_interval_of_a_difference() -> None:
    [row] = compare([BASE], [changed(value=0.9)], NAMES).scores.rows
    assert row[4].value == pytest.approx(0.1)
    assert row[5].value == "[+0.0723, +0.1277]"


def test_every_field_that_differs_and_no_other() -> None:
    second = changed(run="b", sampler={"steps": 100, "guidance": 3.0}, facts=dict(BASE.facts))
    assert differing(compare([BASE], [second], NAMES)) == {
        "run": ("a", "b"),
        "sampler.steps": ("50", "100"),
        "sampler.guidance": ("–", "3.0"),
    }
    same = compare([BASE], [changed(seconds=9.0)], NAMES)
    assert same.conditions.rows == () and same.conditions.notes == ("All conditions are equal.",)


@pytest.mark.parametrize("name", ["worst_class", "deviation_of_splits", "deviation_of_repeats"])
def test_results_are_no_conditions(name: str) -> None:
    found = compare([BASE], [changed(value=0.9, facts={**BASE.facts, name: 0.5})], NAMES)
    assert found.conditions.rows == ()


def test_a_condition_of_one_score_is_named_with_it() -> None:
    other = changed(metric="fd", higher_is_better=False, standard_error=None)
    found = compare([BASE, other], [changed(n=7), dataclasses.replace(other, run="b")], NAMES)
    assert {(r[0].value, r[3].value) for r in found.conditions.rows} == {
        ("n", "accuracy"),
        ("run", "fd"),
    }


def test_the_sentence_counts_the_verdicts_and_lists_what_has_no_partner() -> None:
    first = [BASE, changed(metric="b"), changed(metric="only-a")]
    second = [changed(value=0.9), changed(metric="b"), changed(task="text_to_image", metric="c")]
    found = compare(first, second, NAMES)
    assert found.sentence == "B against A: better on 1, equal on 1 of 2 scores."
    assert found.unmatched == ("A: class_conditional only-a", "B: text_to_image c")


def test_the_most_trained_record_of_a_run_is_compared() -> None:
    [row] = compare([BASE, changed(seen=9, value=0.1)], [BASE], NAMES).scores.rows
    assert row[2].value == 0.1


def test_what_cannot_be_compared_is_a_user_error() -> None:
    with pytest.raises(DataError, match="B has no records"):
        compare([BASE], [], NAMES)
    with pytest.raises(
        DataError,
        match=r"A \(class_conditional accuracy\) and B \(images fd\) have no score in common",
    ):
        compare([BASE], [changed(task="images", metric="fd")], NAMES)
    with pytest.raises(DataError, match="A holds several results"):
        compare([BASE, changed(method="x")], [BASE], NAMES)


def test_a_precision_that_differs_is_a_condition_and_none_is_a_dash() -> None:
    half, whole = changed(precision="bf16"), changed(precision="fp32")
    assert differing(compare([half], [whole], NAMES)) == {"precision": ("bf16", "fp32")}
    assert differing(compare([half], [BASE], NAMES)) == {"precision": ("bf16", "–")}
