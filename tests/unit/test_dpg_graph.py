"""The questions of DPG-Bench: their file, their dependencies, their categories."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tiny_dpg import COLUMNS, Row, tiny_rows, write_questions

from nanogen.errors import ConfigError, DataError
from nanogen.metrics.dpg_graph import Item, Question, read_items
from nanogen.prompts.dpg import QUESTIONS
from nanogen.store import find

KINDS = {
    **{"entity - whole": 4740, "entity - state": 947, "entity - part": 512},
    **{"attribute - color": 1993, "attribute - shape": 229, "attribute - texture": 1653},
    **{"attribute - size": 242, "attribute - other": 903, "other - count": 200, "other - text": 50},
    **{"relation - spatial": 2434, "relation - non-spatial": 159, "global -": 329},
}
"""questions of the published file by kind, its first row left out"""
ROWS: list[Row] = [
    ("p97", "a room,  with a couch ", 1, "0", "entity - whole (room)", "Is there a room?"),
    ("p97", "a room,  with a couch ", 2, "1", "entity - whole (couch)", "Is there a couch?"),
    (
        "p97",
        "a room,  with a couch ",
        3,
        "1,2",
        'relation - spatial (couch, room, "in")',
        "Is it in, really?",
    ),
    ("n5", "a blue painting", 1, "0", "global - (painting)", "Is it a painting?"),
    ("n5", "a blue painting", 2, "2", "attribute - color (painting, blue)", "Is it blue?"),
]
"""five, with commas and quotes within"""


def item(parents: dict[int, tuple[int, ...]]) -> Item:
    """Questions by number, in that order, each with its parents."""
    asked = (Question(n, p, "entity - whole", f"{n}?") for n, p in parents.items())
    return Item("x", "a thing", tuple(asked))


def test_published_example() -> None:
    chain = item({1: (), 2: (1,), 3: (2,), 4: (1, 3)})
    assert chain.score([True, False, True, True]) == 0.25
    assert chain.score([True] * 4) == 1
    assert chain.score([False, True, True, True]) == 0


def test_golden_example() -> None:
    """A no to the second voids the third, and with it the fourth."""
    assert item({1: (), 2: (1,), 3: (2,), 4: (1, 3)}).score([True, False, True, True]) == 0.25


def test_no_cascades_forwards_only() -> None:
    """A child before its parent sees the parent's own answer, not that it was voided."""
    late = item({1: (2,), 2: (3,), 3: ()})
    assert late.score([True, True, False]) == pytest.approx(1 / 3)
    early = item({3: (), 2: (3,), 1: (2,)})
    assert early.score([False, True, True]) == 0


def test_own_parent_loses_nothing() -> None:
    assert item({1: (1,), 2: ()}).score([True, True]) == 1
    assert item({1: (1,), 2: ()}).score([False, True]) == 0.5


def test_missing_parent_is_satisfied() -> None:
    assert item({2: (1,), 3: (2,)}).score([True, True]) == 1
    assert item({2: (1,), 3: (2,)}).score([False, True]) == 0


def test_answers_must_be_as_many() -> None:
    with pytest.raises(ValueError):
        item({1: (), 2: ()}).score([True])


def test_reader(tmp_path: Path) -> None:
    first, second = read_items(write_questions(tmp_path / "q.csv", ROWS), skip_first_row=False)
    assert (first.name, first.prompt) == ("p97", "a room,  with a couch ")
    assert [q.number for q in first.questions] == [1, 2, 3]
    assert [q.parents for q in first.questions] == [(), (1,), (1, 2)]
    assert first.questions[2].text == "Is it in, really?"
    assert [q.kind for q in first.questions][1:] == ["entity - whole", "relation - spatial"]
    assert second.questions[1].parents == (2,)


def test_first_row_skipped(tmp_path: Path) -> None:
    file = write_questions(tmp_path / "q.csv", ROWS)
    whole = read_items(file, skip_first_row=False)
    short = read_items(file, skip_first_row=True)
    assert [q.number for q in short[0].questions] == [2, 3]
    assert short[1:] == whole[1:]
    # What depended on the row that is left out has no parent now.
    assert short[0].score([True, True]) == 1
    assert whole[0].score([False, True, True]) == 0


def test_item_of_the_first_row_alone(tmp_path: Path) -> None:
    file = write_questions(tmp_path / "q.csv", [ROWS[0], *ROWS[3:]])
    with pytest.raises(DataError, match="p97 has no question but"):
        read_items(file, skip_first_row=True)


def test_categories() -> None:
    def kinds(kind: str) -> tuple[str, str]:
        question = Question(1, (), kind, "?")
        return question.broad, question.detailed

    assert kinds("global -") == ("global", "global")
    assert kinds("entity - whole") == ("entity", "entity-whole")
    assert kinds("relation - non-spatial") == ("relation", "relation-non-spatial")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], ROWS[3], ROWS[1]], "p97 are apart"),
        ([], "no questions"),
        ([ROWS[1]], "depends on 1"),
        ([ROWS[0], ("other", *ROWS[0][1:])], "same text"),
        ([(*ROWS[0][:3], "none", *ROWS[0][4:])], "p97: a row is broken"),
    ],
)
def test_broken_files(tmp_path: Path, rows: list[Row], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_items(write_questions(tmp_path / "q.csv", rows), skip_first_row=False)


def test_other_columns(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text(",".join(COLUMNS).replace("tuple", "triple") + "\n")
    with pytest.raises(DataError, match="no column tuple"):
        read_items(file, skip_first_row=True)


def test_number_that_comes_again(tmp_path: Path) -> None:
    again = ("p97", ROWS[0][1], 1, "0", "other - count (room)", "Is there one room?")
    rows = [ROWS[0], ROWS[1], again]
    (only,) = read_items(write_questions(tmp_path / "q.csv", rows), skip_first_row=False)
    assert [q.text for q in only.questions] == ["Is there one room?", "Is there a couch?"]


def test_tiny_file_is_whole(tmp_path: Path) -> None:
    items = read_items(write_questions(tmp_path / "q.csv", tiny_rows()), skip_first_row=False)
    assert len(items) == 1065
    assert {len(i.questions) for i in items} == {1, 2, 3, 4}


def test_published_file() -> None:
    """The counts of the published file, where the store has it."""
    try:
        file = find(QUESTIONS).path
    except ConfigError:
        pytest.skip("needs: nanogen prepare dpg-bench")
    items = read_items(file, skip_first_row=True)
    counts = Counter(question.kind for one in items for question in one.questions)
    assert len(items) == 1065 and sum(counts.values()) == 14_391
    assert counts == KINDS
