"""What differs between two results, and whether the difference means anything."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanogen.bench import outcomes, record
from nanogen.bench.leaderboard import latest
from nanogen.bench.paired import Paired, paired
from nanogen.bench.record import Record, file_name
from nanogen.bench.statistics import NORMAL_95, Interval
from nanogen.bench.table import Cell, Column, Table
from nanogen.errors import DataError
from nanogen.metrics.base import Outcomes

MEASURED = {"metric", "value", "standard_error", "higher_is_better", "seconds", "schema"}
"""fields that are the result of an evaluation, not its conditions"""
MUST_AGREE = re.compile(r"version|n|facts\.network|facts\.reference_images|facts\..+_(hash|sha256)")
"""conditions without which two values of a metric are no comparison: whatever is hashed (networks,
references, prompts), and how many samples there are
"""


@dataclass(frozen=True)
class Difference:
    """One score on both sides; `verdict` is how the second one stands to the first."""

    task: str
    metric: str
    first: Record
    second: Record
    paired: Paired | None = None
    """the same, prompt by prompt, where both sides kept what each image scored"""

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
    def interval(self) -> Interval | None:
        """95 % of the amount; None where a side has no error."""
        if self.paired is not None:
            return self.paired.interval
        if self.error is None:
            return None
        half = NORMAL_95 * self.error
        return Interval(self.amount - half, self.amount + half)

    @property
    def obstacles(self) -> list[str]:
        """Conditions that differ although they must not."""
        a, b = conditions(self.first), conditions(self.second)
        names = filter(MUST_AGREE.fullmatch, sorted({*a, *b}))
        return [name for name in names if a.get(name) != b.get(name)]

    @property
    def verdict(self) -> str:
        """better, worse, within noise, equal, "better, no error known", or not comparable."""
        if self.obstacles:
            return f"not comparable: other {', '.join(self.obstacles)}"
        if self.amount == 0:
            return "equal"
        word = "better" if (self.amount > 0) == self.first.higher_is_better else "worse"
        if self.interval is None:
            return f"{word}, no error known"
        return "within noise" if self.interval.low <= 0 <= self.interval.high else word


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


@dataclass(frozen=True)
class Side:
    """Records of one method, and where to look for what their images scored one by one."""

    name: str
    records: Sequence[Record]
    folder: Path | None = None
    known: Mapping[str, Outcomes | None] = dataclasses.field(default_factory=dict)
    """outcomes that were read already, by the name of their record"""

    def outcomes(self, record: Record) -> Outcomes | None:
        name = file_name(record)
        if name in self.known or self.folder is None:
            return self.known.get(name)
        return outcomes.read(self.folder, record)

    def now(self) -> Side:
        """The same with all that is to be compared in memory, whatever is written there later.
        DataError where it cannot be compared with anything.
        """
        chosen = _by_score(self.records, self.name).values()
        return dataclasses.replace(
            self, known={file_name(one): self.outcomes(one) for one in chosen}
        )


def side(path: Path) -> Side:
    """The records of a run folder, of any folder above some, or of one file."""
    return Side(str(path), record.read(path), path)


def compare(one: Side, other: Side) -> Comparison:
    """Compare two sets of records, each of one method: run folders, pairs of them, or records.

    Raises DataError where a side is empty, has several methods for a task, or no score is common.
    """
    names = one.name, other.name
    sides = [_by_score(given.records, given.name) for given in (one, other)]
    common = sorted(set(sides[0]) & set(sides[1]))
    if not common:
        raise DataError(f"{names[0]} and {names[1]} have no score in common; evaluate both alike")
    differences = [
        Difference(*key, sides[0][key], sides[1][key], _paired(one, other, sides, key))
        for key in common
    ]
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


def _paired(
    one: Side, other: Side, sides: Sequence[Mapping[tuple[str, str], Record]], key: tuple[str, str]
) -> Paired | None:
    first, second = sides[0][key], sides[1][key]
    found = one.outcomes(first), other.outcomes(second)
    if found[0] is None or found[1] is None:
        return None
    return paired(found[0], found[1], first.value, second.value)


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
    for one in latest(records):
        other = found.setdefault((one.task, one.metric), one)
        if other is not one:
            rows = sorted({f"{r.method} {r.budget} seed {r.training_seed}" for r in (one, other)})
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
    alike = [d.metric for d in differences if d.paired is not None]
    notes = [
        f"Compared prompt by prompt: {', '.join(alike)}." if alike else "",
        ""
        if len(alike) == len(differences)
        else f"{'For the others both' if alike else 'Both'} sides are taken as independent.",
        "Seeds of training are not part of the error.",
    ]
    notes = (" ".join(filter(None, notes)),)
    return Table("Scores", columns, rows, notes)


def _interval(difference: Difference) -> str | None:
    found = difference.interval
    return None if found is None else f"[{found.low:+.4f}, {found.high:+.4f}]"


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
