"""The questions of DPG-Bench: which of them a prompt is asked, and what its answers are worth.

    items = read_items(Path("dpg_bench.csv"), skip_first_row=True)
    items[0].prompt, items[0].questions[0].text
    items[0].score([True, False, True])         # share of yes, after zeroing

Hu et al. 2024, "ELLA" (arXiv 2403.05135); questions and their dependencies after Cho et al. 2024,
"Davidsonian Scene Graph" (arXiv 2310.18235).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanogen.errors import DataError

COLUMNS = (
    "item_id",
    "text",
    "proposition_id",
    "dependency",
    "tuple",
    "question_natural_language",
)
"""of the published file, those that are read"""
ROOT = 0
"""stands for "no parent" among dependencies"""


@dataclass(frozen=True)
class Question:
    """One question that can be answered with yes or no."""

    number: int
    """unique in its item"""
    parents: tuple[int, ...]
    """questions whose "no" makes this one void; without `ROOT`, maybe with itself"""
    kind: str
    """what it asks for, in words such as "attribute - color"; "global -" has no second part"""
    text: str

    @property
    def broad(self) -> str:
        """Its category of the first level: entity, attribute, relation, global or other."""
        return self.kind.partition("-")[0].strip()

    @property
    def detailed(self) -> str:
        """Its category of the second level, such as "attribute-color" or "relation-non-spatial";
        that of the first level where there is no second.
        """
        parts = (part.strip() for part in self.kind.split("-", 1))
        return "-".join(filter(None, parts))


@dataclass(frozen=True)
class Item:
    """A prompt and its questions, in the order of the file."""

    name: str
    prompt: str
    questions: tuple[Question, ...]

    def score(self, answers: Sequence[bool]) -> float:
        """The share of questions with a yes that counts, in [0, 1], from one answer to each.

        As published: questions are taken in the order of the file, and one of them is set to no
        where a parent is a no by then. So a no cascades forwards only; a child that stands before
        its parent sees the parent's own answer. A question that is its own parent, or whose parent
        is not asked, loses nothing by that.
        """
        held = {q.number: yes for q, yes in zip(self.questions, answers, strict=True)}
        for question in self.questions:
            if not all(held.get(parent, True) for parent in question.parents):
                held[question.number] = False
        return sum(held.values()) / len(held)


def read_items(file: Path, *, skip_first_row: bool) -> tuple[Item, ...]:
    """The items of the published csv, in its order.

    `skip_first_row` leaves out the first question of the first item, as the published scripts do by
    mistake; what depends on it then has no such parent. A question number that comes twice in an
    item keeps its place and takes the later row, as it does there. DataError where the columns are
    others, the rows of an item are apart, or (with no row skipped) a parent is missing.
    """
    found: dict[str, tuple[str, dict[int, Question]]] = {}
    last = ""
    skipped = ""
    for number, row in enumerate(_rows(file)):
        name = row["item_id"]
        if skip_first_row and number == 0:
            skipped = name
            continue
        if name in found and name != last:
            raise DataError(f"{file}: the rows of {name} are apart; get the file anew")
        last = name
        _, questions = found.setdefault(name, (row["text"], {}))
        question = _question(row, f"{file}, {name}")
        questions[question.number] = question
    items = tuple(
        Item(name, prompt, tuple(questions.values())) for name, (prompt, questions) in found.items()
    )
    if skipped and skipped not in found:
        raise DataError(
            f"{file}: {skipped} has no question but that of the first row; get the file anew, or "
            "choose skip_first_row=no"
        )
    _check(items, file, whole=not skip_first_row)
    return items


def _rows(file: Path) -> Iterator[Mapping[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                f"{file} has no column {', '.join(missing)}; give the file dpg_bench.csv of ELLA"
            )
        yield from reader


def _question(row: Mapping[str, str], where: str) -> Question:
    try:
        number = int(row["proposition_id"])
        parents = tuple(int(parent) for parent in row["dependency"].split(","))
        kind = row["tuple"].partition("(")[0].strip()
        text = row["question_natural_language"]
    except (ValueError, AttributeError) as problem:  # a short row holds None
        raise DataError(f"{where}: a row is broken ({problem}); get the file anew") from problem
    return Question(number, tuple(parent for parent in parents if parent != ROOT), kind, text)


def _check(items: Sequence[Item], file: Path, *, whole: bool) -> None:
    if not items:
        raise DataError(f"{file} holds no questions; get the file anew")
    if len({item.prompt for item in items}) < len(items):
        raise DataError(f"{file}: two items have the same text; get the file anew")
    for item in items if whole else ():
        numbers = {question.number for question in item.questions}
        for question in item.questions:
            if lost := sorted(set(question.parents) - numbers):
                raise DataError(
                    f"{file}, {item.name}: question {question.number} depends on {lost[0]}, which "
                    "is not there; get the file anew, or choose skip_first_row=yes"
                )
