"""Leaderboards: methods x metrics over both tasks, from records, beside the published ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence

from nanogen.bench import published
from nanogen.bench.record import Record
from nanogen.bench.table import Cell, Column, Table

TASKS = {"class_conditional": "class-conditional", "text_to_image": "text-to-image"}
"""task -> heading, in the order of the columns"""
LONG_TRAINING = 200_000
"""iterations of the repeats in Table 3"""


def latest(records: Iterable[Record]) -> list[Record]:
    """The record to show of each (task, method, budget, training seed, metric).

    The most trained model first, then EMA before raw weights, then the most samples; what remains
    equal differs in how it was sampled or scored, and the first in a fixed order is taken.
    """
    chosen: dict[tuple[object, ...], Record] = {}
    for record in sorted(records, key=_preference, reverse=True):
        chosen.setdefault((*_row(record), record.task, record.metric), record)
    return list(chosen.values())


def leaderboard(records: Sequence[Record], metrics: Sequence[str] = ()) -> Table:
    """A row for each method (and budget and training seed where they differ), a column a score.

    `metrics` chooses and orders the scores; by default all stand in the order of their names.
    """
    shown = [r for r in latest(records) if not metrics or r.metric in metrics]
    scores = sorted({(r.task, r.metric) for r in shown}, key=lambda s: _column_order(s, metrics))
    rows = sorted({_row(r) for r in shown})
    by_place = {(_row(r), r.task, r.metric): r for r in shown}
    labels = [("Method", 0), ("Budget", 1), ("Training seed", 2)]
    labels = [(t, i) for t, i in labels if i == 0 or len({row[i] for row in rows}) > 1]
    return Table(
        title="Leaderboard",
        columns=(
            *(Column(title) for title, _ in labels),
            *(_column(task, metric, shown) for task, metric in scores),
        ),
        rows=tuple(
            (
                *(Cell(str(row[i])) for _, i in labels),
                *(_cell(by_place.get((row, *score))) for score in scores),
            )
            for row in rows
        ),
        notes=(*_notes(shown), *_crowded(records)),
    ).with_best()


def leaderboards(records: Sequence[Record]) -> list[Table]:
    """One table for each task, which fits a terminal where all scores beside each other do not."""
    tables = []
    present = {r.task for r in records}
    for task in (*(t for t in TASKS if t in present), *sorted(present - set(TASKS))):
        table = leaderboard([r for r in records if r.task == task])
        columns = tuple(_without_task(column) for column in table.columns)
        title = f"Leaderboard, {TASKS.get(task, task)}"
        tables.append(dataclasses.replace(table, title=title, columns=columns))
    return tables


def _without_task(column: Column) -> Column:
    """The column of a table of one task: parts of a metric stand under its name."""
    metric, _, part = column.title.partition("/")
    group, title = (metric, part) if part else ("", metric)
    return dataclasses.replace(column, group=group, title=title)


def published_leaderboard(protocol_columns: Sequence[str] = ("fid", "inception_score")) -> Table:
    """All 35 published rows: ImageNet-256 with the best guidance and without it, then text."""
    methods = published.methods()
    imagenet = [(p, c) for p in published.PROTOCOLS for c in protocol_columns]
    headings = {"cfg": "cfg", "nocfg": "no cfg"}
    return Table(
        title="Published: DiffusionBench (arXiv 2606.24888), Tables 2, 4 and 3",
        columns=(
            Column("Method"),
            Column("Family", detail=True),
            *(_published_column(published.IMAGENET[c], headings[p]) for p, c in imagenet),
            *(_published_column(t) for t in published.TEXT_TO_IMAGE.values()),
        ),
        rows=tuple(
            (
                Cell(m.name + (" (200K)" if m.iterations == LONG_TRAINING else "")),
                Cell(m.family),
                *(Cell(m.imagenet.get(p, {}).get(c)) for p, c in imagenet),
                *(Cell(m.text_to_image.get(c)) for c in published.TEXT_TO_IMAGE),
            )
            for m in methods
        ),
        notes=(
            "As printed: one run each, no error given; 80 epochs on ImageNet, 100K steps on text.",
        ),
    ).with_best()


def published_reproduction() -> Table:
    """Table 1: what the methods' papers report and what the reference trainer reached."""
    titles = {
        "method": "Method",
        "source": "Source",
        "epochs": "Epochs",
        "params": "Size",
        "prediction": "Predicts",
        "nfe": "Steps",
        "guidance": "Guidance",
    }
    rows = published.table("table1")
    return Table(
        title="Published: reproduction of released methods, ImageNet-256 (Table 1)",
        columns=(
            *(Column(title) for title in titles.values()),
            Column("FID", higher_is_better=False, digits=2),
            Column("IS", higher_is_better=True, digits=1),
        ),
        rows=tuple(
            (
                *(
                    Cell({"guidance": {"0": "no", "1": "yes"}}.get(k, {}).get(r[k], r[k]))
                    for k in titles
                ),
                *(Cell(float(r[k]) if r[k] else None) for k in ("fid", "inception_score")),
            )
            for r in rows
        ),
    )


def _row(record: Record) -> tuple[str, str, int]:
    return record.method, record.budget, record.training_seed


def _preference(record: Record) -> tuple[object, ...]:
    settings = json.dumps(
        [record.precision, record.quantisation, dict(record.sampler)], sort_keys=True
    )
    return record.seen, record.weights == "ema", record.n, settings


def _column_order(score: tuple[str, str], metrics: Sequence[str]) -> tuple[object, ...]:
    task, metric = score
    order = list(TASKS)
    wanted = metrics.index(metric) if metric in metrics else len(metrics)
    return order.index(task) if task in order else len(order), task, wanted, metric


def _column(task: str, metric: str, shown: Sequence[Record]) -> Column:
    higher = {r.higher_is_better for r in shown if (r.task, r.metric) == (task, metric)}
    return Column(metric, TASKS.get(task, task), higher.pop() if len(higher) == 1 else None)


def _published_column(described: tuple[str, bool], group: str = "") -> Column:
    title, higher = described
    digits = 1 if title == "IS" else 2 if group else 3
    return Column(title, group, higher, digits)


def _cell(record: Record | None) -> Cell:
    return Cell() if record is None else Cell(record.value, record.standard_error)


def _crowded(records: Iterable[Record]) -> tuple[str, ...]:
    """A warning where a row stands for more than one run, or for one that was sampled otherwise."""
    found: dict[tuple[object, ...], set[str]] = {}
    for r in records:
        found.setdefault((*_row(r), r.task), set()).add(r.config_hash)
    methods = sorted({str(row[0]) for row, configs in found.items() if len(configs) > 1})
    if not methods:
        return ()
    return (
        f"One of several runs or settings is shown of: {', '.join(methods)}. Give each run a name "
        "of its own (name=task/idea).",
    )


def _notes(shown: Sequence[Record]) -> tuple[str, ...]:
    """What a reader must know before comparing two cells of a column."""
    notes = ["± is one standard error; a number without it has none known."]
    for what, name in (
        ("samples", "n"),
        ("images of training", "seen"),
        ("versions of the metric", "version"),
        ("kinds of weights", "weights"),
        ("precision of the scoring models", "precision"),
        ("how grey levels were made whole", "quantisation"),
    ):
        mixed = sorted(
            metric
            for metric in {r.metric for r in shown}
            if len({getattr(r, name) for r in shown if r.metric == metric} - {""}) > 1
        )
        if mixed:
            notes.append(f"Rows differ in {what}: {', '.join(mixed)}.")
    return tuple(notes)
