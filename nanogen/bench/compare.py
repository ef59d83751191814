"""What differs between two results, and whether the difference means anything."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nanogen.bench.leaderboard import latest
from nanogen.bench.record import Record
from nanogen.bench.statistics import NORMAL_95
from nanogen.bench.table import Cell, Column, Table
from nanogen.errors import DataError

MEASURED = {"metric", "value", "standard_error", "higher_is_better", "seconds", "schema"}
"""fields that are the result of an evaluation, not its conditions"""
MUST_AGREE = (
    *("version", "n", "facts.network", "facts.network_hash"),
    *("facts.reference_hash", "facts.reference_images"),
)
"""conditions without which two values of a metric are no comparison"""


@dataclass(frozen=True)
class Difference:
    """One score on both sides; `verdict` is how the second one stands to the first."""

    task: str
    metric: str
    first: Record
    second: Record

    @property
    def amount(self) -> float:
        """Second minus first, in the metric's unit."""
        return self.second.value - self.first.value

    @property
    def error(self) -> float | None:
        """Of the amount, both sides taken as independent; None where a side has no error."""
        errors = self.first.standard_error, self.second.standard_error
        return None if errors[0] is None or errors[1] is None else math.hypot(errors[0], errors[1])

    @property
    def obstacles(self) -> list[str]:
        """Conditions that differ although they must not."""
        a, b = conditions(self.first), conditions(self.second)
        return [name for name in MUST_AGREE if a.get(name) != b.get(name)]

    @property
    def verdict(self) -> str:
        """better, worse, within noise, equal, "better, no error known", or not comparable."""
        if self.obstacles:
            return f"not comparable: other {', '.join(self.obstacles)}"
        if self.amount == 0:
            return "equal"
        word = "better" if (self.amount > 0) == self.first.higher_is_better else "worse"
        if self.error is None:
            return f"{word}, no error known"
        return word if abs(self.amount) > NORMAL_95 * self.error else "within noise"


@dataclass(frozen=True)
class Comparison:
    """Two results side by side."""

    names: tuple[str, str]
    conditions: Table
    """every field that differs"""
    scores: Table
    """every common score, its difference with 95 % interval, and the verdict"""
    unmatched: tuple[str, ...]
    """scores that only one side has"""
    sentence: str


def compare(
    first: Sequence[Record], second: Sequence[Record], names: tuple[str, str]
) -> Comparison:
    """Compare two sets of records, each of one method: run folders, pairs of them, or records.

    Raises DataError where a side is empty, has several methods for a task, or no score is common.
    """
    sides = [_by_score(records, name) for records, name in zip((first, second), names, strict=True)]
    common = sorted(set(sides[0]) & set(sides[1]))
    if not common:
        raise DataError(f"{names[0]} and {names[1]} have no score in common; evaluate both alike")
    differences = [Difference(*key, sides[0][key], sides[1][key]) for key in common]
    return Comparison(
        names=names,
        conditions=_conditions_table(differences, names),
        scores=_scores_table(differences, names),
        unmatched=tuple(
            f"{name}: {task} {metric}"
            for name, mine, other in ((names[0], *sides), (names[1], *reversed(sides)))
            for task, metric in sorted(set(mine) - set(other))
        ),
        sentence=_sentence(differences, names),
    )


def conditions(record: Record) -> dict[str, object]:
    """Every condition of a record by its path, such as `sampler.steps`."""
    flat: dict[str, object] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Mapping):
            flat |= {f"{field.name}.{key}": inner for key, inner in value.items()}
        elif field.name not in MEASURED:
            flat[field.name] = value
    return flat


def _by_score(records: Sequence[Record], name: str) -> dict[tuple[str, str], Record]:
    if not records:
        raise DataError(f"{name} has no records; evaluate it first")
    found: dict[tuple[str, str], Record] = {}
    for record in latest(records):
        other = found.setdefault((record.task, record.metric), record)
        if other is not record:
            rows = sorted(
                {f"{r.method} {r.budget} seed {r.training_seed}" for r in (record, other)}
            )
            raise DataError(
                f"{name} holds several results ({', '.join(rows)}); give one run folder"
            )
    return found


def _conditions_table(differences: Sequence[Difference], names: tuple[str, str]) -> Table:
    """A condition that differs alike in all scores stands once, any other with its scores."""
    changed: dict[tuple[str, str, str], list[str]] = {}
    for d in differences:
        a, b = conditions(d.first), conditions(d.second)
        for path in sorted(set(a) | set(b)):
            if a.get(path) != b.get(path):
                change = (path, _show(a.get(path)), _show(b.get(path)))
                changed.setdefault(change, []).append(d.metric)
    rows = [
        (*change, "all" if len(metrics) == len(differences) else ", ".join(metrics))
        for change, metrics in changed.items()
    ]
    columns = tuple(Column(title) for title in ("Condition", *names, "Of"))
    cells = tuple(tuple(Cell(text) for text in row) for row in rows)
    return Table("What differs", columns, cells, () if rows else ("All conditions are equal.",))


def _scores_table(differences: Sequence[Difference], names: tuple[str, str]) -> Table:
    columns = (
        *(Column("Score"), Column("Task"), Column(names[0], digits=4), Column(names[1], digits=4)),
        *(Column("Difference", digits=4), Column("95 % interval"), Column(f"{names[1]} is")),
    )
    rows = tuple(
        (
            Cell(f"{d.metric} {'↑' if d.first.higher_is_better else '↓'}"),
            Cell(d.task),
            Cell(d.first.value, d.first.standard_error),
            Cell(d.second.value, d.second.standard_error),
            Cell(d.amount),
            Cell(_interval(d)),
            Cell(d.verdict),
        )
        for d in differences
    )
    notes = ("Both sides are taken as independent; seeds of training are not part of the error.",)
    return Table("Scores", columns, rows, notes)


def _interval(difference: Difference) -> str | None:
    if difference.error is None:
        return None
    half = NORMAL_95 * difference.error
    return f"[{difference.amount - half:+.4f}, {difference.amount + half:+.4f}]"


def _sentence(differences: Sequence[Difference], names: tuple[str, str]) -> str:
    verdicts = [d.verdict.split(":")[0] for d in differences]
    counts = {word: verdicts.count(word) for word in sorted(set(verdicts))}
    return (
        f"{names[1]} against {names[0]}: "
        + ", ".join(f"{word} on {count}" for word, count in counts.items())
        + f" of {len(verdicts)} score{'s' if len(verdicts) > 1 else ''}."
    )


def _show(value: object) -> str:
    return "–" if value is None else str(value)
