"""Does a method that wins on classes win on text? Correlation over methods, published and own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nanogen.bench import published
from nanogen.bench.leaderboard import latest
from nanogen.bench.record import Record
from nanogen.bench.statistics import FEW, Correlation, Interval, correlate, undefined
from nanogen.bench.table import Cell, Column, Table
from nanogen.errors import MetricError, suggest


@dataclass(frozen=True)
class Axis:
    """One metric as an axis of a scatter plot."""

    name: str
    higher_is_better: bool


@dataclass(frozen=True)
class Point:
    """One method, measured on both tasks."""

    method: str
    x: float
    y: float


@dataclass(frozen=True)
class Pairing:
    """Methods as points of a class-conditional metric (x) and a text-to-image metric (y)."""

    rows: str
    """which methods these are"""
    x: Axis
    y: Axis
    points: tuple[Point, ...]

    @property
    def correlation(self) -> Correlation | None:
        """None where it is not defined; `remark` then says why."""
        x, y = [p.x for p in self.points], [p.y for p in self.points]
        return None if undefined(x, y) else correlate(x, y)

    @property
    def agreement_sign(self) -> int:
        """The sign of a coefficient that means "better on x is better on y"."""
        return 1 if self.x.higher_is_better == self.y.higher_is_better else -1

    @property
    def remark(self) -> str:
        """One sentence: what the number says, or why there is none."""
        x, y = [p.x for p in self.points], [p.y for p in self.points]
        found = self.correlation
        if found is None:
            return undefined(x, y)
        low, high = sorted(
            self.agreement_sign * v for v in (found.interval.low, found.interval.high)
        )
        words = "agree" if low > 0 else "disagree" if high < 0 else "undecided"
        few = f"; only {found.n} methods, so the interval is wide" if found.n < FEW else ""
        return f"{words}{few}"

    @property
    def sentence(self) -> str:
        """For a caption: the number with its interval, and what it says."""
        found, head = self.correlation, f"{self.rows}, {len(self.points)} methods"
        if found is None:
            return f"{head}: correlation {self.remark}."
        return f"{head}: r = {found.pearson:+.2f} ({_range(found.interval)}), {self.remark}."


def published_pairings(column: str = "fid") -> list[Pairing]:
    """Every set of rows x protocol x text-to-image metric, against a column of Tables 2 and 4."""
    if column not in published.IMAGENET:
        known = suggest(column, published.IMAGENET)
        raise MetricError(f"unknown published ImageNet metric {column!r}; {known}")
    title, higher = published.IMAGENET[column]
    return [
        Pairing(
            rows=rows,
            x=Axis(f"{title}, {protocol}", higher),
            y=Axis(*published.TEXT_TO_IMAGE[metric]),
            points=tuple(
                Point(m.name, m.imagenet[protocol][column], m.text_to_image[metric])
                for m in published.row_set(rows)
            ),
        )
        for rows in published.ROW_SETS
        for protocol in published.PROTOCOLS
        for metric in published.TEXT_TO_IMAGE
    ]


def record_pairings(records: Sequence[Record], x: str = "", y: str = "") -> list[Pairing]:
    """Every class-conditional score against every text-to-image score, or only `x` against `y`.

    Methods that lack one of the two are left out; with several budgets or seeds each is a point of
    its own. Raises MetricError for a score that no record has.
    """
    shown = latest(r for r in records if not r.known)
    return [
        _pairing(shown, _axis(shown, name_x), _axis(shown, name_y))
        for name_x in _scores(shown, "class_conditional", x)
        for name_y in _scores(shown, "text_to_image", y)
    ]


def correlation_table(pairings: Sequence[Pairing], title: str) -> Table:
    """One row for each pairing."""
    columns = (
        *(Column("Methods"), Column("By class"), Column("By text"), Column("n")),
        *(Column("r", digits=3), Column("95 % interval"), Column("p", digits=3)),
        *(
            Column("Less any one", detail=True),
            Column("ρ", digits=3),
            Column("τ", digits=3, detail=True),
        ),
        Column("Tasks"),
    )
    signs = {p.agreement_sign for p in pairings}
    notes = [
        "r is Pearson's with its 95 % interval and p-value, ρ Spearman's, τ Kendall's.",
        "Fisher intervals take methods as independent; where they share parts, too narrow.",
    ]
    if signs:
        meaning = {1: "r > 0", -1: "r < 0"}
        means = meaning[signs.pop()] if len(signs) == 1 else "the sign of the metrics' directions"
        notes.append(f"Agreement (better on one task is better on the other) is {means}.")
    return Table(title, columns, tuple(_table_row(p) for p in pairings), tuple(notes))


def _table_row(pairing: Pairing) -> tuple[Cell, ...]:
    c = pairing.correlation
    head = (pairing.rows, pairing.x.name, pairing.y.name, len(pairing.points))
    if c is None:
        numbers: tuple[float | str | None, ...] = (None,) * 6
    else:
        interval = _range(c.interval)
        without = _range(c.leave_one_out)
        numbers = (c.pearson, interval, c.pearson_p, without, c.spearman, c.kendall)
    return tuple(Cell(value) for value in (*head, *numbers, pairing.remark))


def _range(interval: Interval) -> str:
    return f"{interval.low:+.2f}…{interval.high:+.2f}"


def _scores(shown: Sequence[Record], task: str, wanted: str) -> list[str]:
    known = sorted({r.metric for r in shown if r.task == task})
    if wanted and wanted not in known:
        raise MetricError(f"no {task} record of {wanted!r}; {suggest(wanted, known)}")
    return [wanted] if wanted else known


def _axis(shown: Sequence[Record], metric: str) -> Axis:
    return Axis(metric, next(r.higher_is_better for r in shown if r.metric == metric))


def _pairing(shown: Sequence[Record], x: Axis, y: Axis) -> Pairing:
    values = {(r.method, r.budget, r.training_seed, r.task, r.metric): r.value for r in shown}
    keys = sorted({(r.method, r.budget, r.training_seed) for r in shown})
    points = [
        Point(
            key[0],
            values[(*key, "class_conditional", x.name)],
            values[(*key, "text_to_image", y.name)],
        )
        for key in keys
        if (*key, "class_conditional", x.name) in values
        and (*key, "text_to_image", y.name) in values
    ]
    return Pairing("records", x, y, tuple(points))
