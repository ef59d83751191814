"""What differs between two results, and whether the difference means anything."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from nanogen import registry
from nanogen.bench import outcomes, record
from nanogen.bench.matching import Key, Match, by_score, matched
from nanogen.bench.paired import Paired, paired
from nanogen.bench.record import Record, file_name
from nanogen.bench.statistics import NORMAL_95, Interval
from nanogen.bench.table import Cell, Column, Table
from nanogen.errors import DataError
from nanogen.metrics.base import Metric, Outcomes

MEASURED = {
    *("metric", "value", "standard_error", "higher_is_better", "seconds", "schema"),
    *("facts.deviation_of_repeats", "facts.values_of_repeats"),
}
"""what is the result of an evaluation, not a condition of it, beside the findings of metrics"""
MUST_AGREE = re.compile(
    r"version|n|facts\.network|facts\.reference_images|facts\..+_(hash|sha256)(/.+)?"
)
"""conditions without which two values of a metric are no comparison: whatever is hashed (networks,
references, prompts), and how many samples there are
"""
SHOWN = 4
"""most scores of a side that a message lists"""


@dataclass(frozen=True)
class Difference:
    """One score on both sides; `verdict` is how the second one stands to the first."""

    task: str
    metric: str
    first: Record
    second: Record
    paired: Paired | None = None
    """the same, prompt by prompt, where both sides kept what each image scored"""
    setting: str = ""
    """what tells it from other results of the same score; "" where there are none"""

    @property
    def title(self) -> str:
        return _titled(self.metric, self.setting)

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
    """scores, or settings of one, that only one side has"""
    sentence: str

    @property
    def lines(self) -> list[str]:
        """What stands below the tables."""
        return [*(f"only in {one}" for one in self.unmatched), self.sentence]


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
        chosen = [one for several in self.by_score().values() for one in several]
        return dataclasses.replace(
            self, known={file_name(one): self.outcomes(one) for one in chosen}
        )

    def by_score(self) -> dict[Key, list[Record]]:
        return by_score(self.records, self.name)

    def place(self, record: Record) -> Path:
        """Where the file of a record is."""
        name = Path(file_name(record))
        if self.folder is None or self.folder.is_file():
            return self.folder or name
        return next(self.folder.rglob(str(name)), self.folder / name)


def side(path: Path) -> Side:
    """The records of a run folder, of any folder above some, or of one file."""
    return Side(str(path), record.read(path), path)


def compare(one: Side, other: Side) -> Comparison:
    """Compare two sets of records, each of one method: run folders, pairs of them, or records.

    Results of a score that differ in their settings are compared with those of the same settings.
    DataError where a side is empty or has several methods for a task, no score is common, or none
    of the same settings.
    """
    names, sides = (one.name, other.name), (one.by_score(), other.by_score())
    common = sorted(set(sides[0]) & set(sides[1]))
    if not common:
        raise DataError(
            f"{names[0]} ({_listed(sides[0])}) and {names[1]} ({_listed(sides[1])}) have no score "
            "in common; evaluate both alike"
        )
    found = {key: matched(sides[0][key], sides[1][key]) for key in common}
    differences = [
        Difference(*key, match.first, match.second, _paired(one, other, match), match.setting)
        for key in common
        for match in found[key].pairs
    ]
    if not differences:
        raise DataError(_choices((one, other), found[common[0]].left, common[0]))
    unmatched = [
        f"{names[side]}: {key[0]} {_titled(key[1], setting)}"
        for side in (0, 1)
        for key in sorted(sides[side])
        for setting in (found[key].left[side] if key in found else [""])
    ]
    return Comparison(
        names=names,
        conditions=_conditions_table(differences, names),
        scores=_scores_table(differences, names),
        unmatched=tuple(unmatched),
        sentence=_sentence(differences, names),
    )


def _choices(sides: tuple[Side, Side], settings: Sequence[Sequence[str]], key: Key) -> str:
    """The message where no result has a partner: which there are, and how to choose one."""
    told = [
        f"{side.name} has it with {' or '.join(found)}"
        for side, found in zip(sides, settings, strict=True)
    ]
    several = max(sides, key=lambda side: len(side.by_score()[key]))
    file = several.place(several.by_score()[key][0])
    return (
        f"no {key[1]} of the same settings: {', '.join(told)}; compare one record of each, such as "
        f"{file}"
    )


def _listed(scores: Mapping[Key, object]) -> str:
    """`images fid, images is and 3 more`."""
    shown = [f"{task} {metric}" for task, metric in sorted(scores)[:SHOWN]]
    more = len(scores) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _titled(metric: str, setting: str) -> str:
    return f"{metric} ({setting})" if setting else metric


def _paired(one: Side, other: Side, match: Match) -> Paired | None:
    first, second = match.first, match.second
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
        else:
            flat[field.name] = value
    return {path: value for path, value in flat.items() if path not in MEASURED | _findings()}


@functools.cache
def _findings() -> frozenset[str]:
    metrics = [cast(type[Metric], entry.target) for entry in registry.entries("metric")]
    return frozenset(f"facts.{name}" for metric in metrics for name in metric.findings)


def _conditions_table(differences: Sequence[Difference], names: tuple[str, str]) -> Table:
    """A condition that differs alike in all scores stands once, any other with its scores."""
    changed: dict[tuple[str, str, str], list[str]] = {}
    for d in differences:
        a, b = conditions(d.first), conditions(d.second)
        for path in sorted(set(a) | set(b)):
            if a.get(path) != b.get(path):
                change = (path, _show(a.get(path)), _show(b.get(path)))
                changed.setdefault(change, []).append(d.title)
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
            Cell(f"{d.title} {'↑' if d.first.higher_is_better else '↓'}"),
            Cell(d.task),
            Cell(d.first.value, d.first.standard_error),
            Cell(d.second.value, d.second.standard_error),
            Cell(d.amount),
            Cell(_interval(d)),
            Cell(d.verdict),
        )
        for d in differences
    )
    alike = [d.title for d in differences if d.paired is not None]
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
    return "–" if value in (None, "") else str(value)
