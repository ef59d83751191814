"""Tables as values: rows of cells that render to the terminal, Markdown, JSON, and in a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

ABSENT = "–"


@dataclass(frozen=True)
class Column:
    """A column; `higher_is_better` is None where no value of it is better than another."""

    title: str
    group: str = ""
    """a heading above neighbouring columns, such as the task"""
    higher_is_better: bool | None = None
    digits: int | None = None
    """decimals of its numbers; None chooses by their size"""
    detail: bool = False
    """left out in the terminal, where width is short"""

    @property
    def heading(self) -> str:
        arrow = {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]
        return self.title + arrow


@dataclass(frozen=True)
class Cell:
    """A number with its standard error, or text. `best` is set by the table."""

    value: float | str | None = None
    error: float | None = None
    best: bool = False

    @property
    def is_number(self) -> bool:
        return isinstance(self.value, int | float)


@dataclass(frozen=True)
class Table:
    """`rows[i][j]` stands under `columns[j]`."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"{self.title}: {len(row)} cells under {len(self.columns)} columns"
                )

    def with_best(self) -> Table:
        """The same table with the best number of each column that has a direction marked."""
        best = [self._best(j) for j in range(len(self.columns))]
        rows = tuple(
            tuple(
                dataclasses.replace(c, best=c.is_number and c.value == best[j])
                for j, c in enumerate(row)
            )
            for row in self.rows
        )
        return dataclasses.replace(self, rows=rows)

    def text(self, row: int, column: int) -> str:
        """A cell as it is printed, such as `0.812 ± 0.013`."""
        cell = self.rows[row][column]
        if cell.value is None:
            return ABSENT
        if isinstance(cell.value, str):
            return cell.value
        digits = self._digits(column)
        error = "" if cell.error is None else f" ± {cell.error:.{digits}f}"
        return f"{cell.value:,.{digits}f}{error}"

    def to_markdown(self) -> str:
        """GitHub's pipe table under a heading line, best numbers bold, notes below."""
        head = [_escape(f"{c.group}: {c.heading}" if c.group else c.heading) for c in self.columns]
        rules = ["---:" if self.is_numeric(j) else ":---" for j in range(len(self.columns))]
        lines = [_line(head), _line(rules)]
        for i, row in enumerate(self.rows):
            texts = [_escape(self.text(i, j)) for j in range(len(row))]
            lines.append(
                _line([f"**{t}**" if c.best else t for t, c in zip(texts, row, strict=True)])
            )
        notes = [f"\n{note}" for note in self.notes]
        return "\n".join([f"**{_escape(self.title)}**", "", *lines, *notes]) + "\n"

    def to_rich(self) -> RichTable:
        """For `rich.print`; best numbers bold green."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        caption = Text("\n".join(self.notes)) if self.notes else None
        shown = RichTable(
            title=Text(self.title),
            caption=caption,
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        shown.title_justify = shown.caption_justify = "left"
        kept = [j for j, column in enumerate(self.columns) if not column.detail]
        for j in kept:
            column, width = self.columns[j], self._longest_word(j)
            head = f"{column.group}\n{column.heading}" if self.has_groups else column.heading
            side = "right" if self.is_numeric(j) else "left"
            shown.add_column(Text(head), justify=side, overflow="fold", min_width=width)
        for i, row in enumerate(self.rows):
            style = {j: "bold green" if row[j].best else "" for j in kept}
            shown.add_row(*(Text(self.text(i, j), style[j]) for j in kept))
        return shown

    def to_json(self) -> dict[str, object]:
        """Plain values: every number in full, with its error and direction."""
        return {
            "title": self.title,
            "columns": [dataclasses.asdict(c) for c in self.columns],
            "rows": [[dataclasses.asdict(c) for c in row] for row in self.rows],
            "notes": list(self.notes),
        }

    @property
    def has_groups(self) -> bool:
        return any(c.group for c in self.columns)

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers only (absent ones aside)."""
        values = [row[column] for row in self.rows if row[column].value is not None]
        return bool(values) and all(cell.is_number for cell in values)

    def _longest_word(self, column: int) -> int:
        """Width under which a column of the terminal would break words."""
        texts = [self.text(i, column) for i in range(len(self.rows))]
        return max((len(word) for text in texts for word in text.split()), default=1)

    def _best(self, column: int) -> float | None:
        values = self._numbers(column)
        higher = self.columns[column].higher_is_better
        # With a single value, or equal ones, there is nothing to be better than.
        if higher is None or len(set(values)) < 2:
            return None
        return max(values) if higher else min(values)

    def _digits(self, column: int) -> int:
        given = self.columns[column].digits
        if given is not None:
            return given
        values = self._numbers(column)
        if all(isinstance(v, int) for v in values):
            return 0
        largest = max(map(abs, values))
        return 3 if largest < 10 else 2 if largest < 100 else 1

    def _numbers(self, column: int) -> Sequence[float]:
        values = (row[column].value for row in self.rows)
        return [v for v in values if isinstance(v, int | float)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    for mark in "\\|*_`<[":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
