"""Comparisons prompt by prompt: closed forms, and what they gain over two means."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest

from nanogen.bench import outcomes, record
from nanogen.bench.compare import compare, side
from nanogen.bench.paired import paired
from nanogen.bench.record import Record
from nanogen.errors import DataError
from nanogen.metrics.base import Outcomes


def judged(values: np.ndarray, tags: list[str] | None = None) -> Outcomes:
    """One image for each prompt."""
    names = tuple(f"prompt {k}" for k in range(len(values)))
    return Outcomes(names, tuple(tags or [""] * len(values)), tuple(map(float, values)))


def test_the_interval_is_that_of_a_mean_of_differences() -> None:
    rng = np.random.default_rng(1)
    hardness = rng.normal(size=400)
    first, second = hardness, hardness + 0.05 + 0.1 * rng.normal(size=400)
    found = paired(judged(first), judged(second), first.mean())
    assert found is not None and found.prompts == 400
    gaps = second - first
    assert found.amount == pytest.approx(gaps.mean())
    half = 1.96 * gaps.std(ddof=1) / 20
    assert found.interval.low == pytest.approx(gaps.mean() - half, abs=0.1 * half)
    assert found.interval.high == pytest.approx(gaps.mean() + half, abs=0.1 * half)
    # Two means that are taken as independent show nothing.
    apart = 1.96 * math.hypot(first.std() / 20, second.std() / 20)
    assert found.interval.low > 0 and gaps.mean() < apart


def test_kinds_of_prompt_weigh_alike_where_the_score_says_so() -> None:
    tags = ["a"] * 6 + ["b"] * 2
    first = np.array([1, 1, 1, 0, 0, 0, 0, 0.0])
    second = np.array([1, 1, 1, 1, 1, 1, 0, 1.0])
    by_kind = paired(judged(first, tags), judged(second, tags), value=0.25)
    by_image = paired(judged(first, tags), judged(second, tags), value=3 / 8)
    assert by_kind is not None and by_image is not None
    assert by_kind.amount == pytest.approx(0.5 * 0.5 + 0.5 * 0.5)
    assert by_image.amount == pytest.approx(4 / 8)
    assert paired(judged(first, tags), judged(second, tags), value=0.9) is None


def test_other_prompts_are_no_pairs() -> None:
    values = np.arange(5.0)
    longer = judged(np.arange(6.0))
    assert paired(judged(values), longer, values.mean()) is None


def test_more_images_of_a_prompt_are_one_draw() -> None:
    """Each prompt four times: the interval stays as wide as with one image."""
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=100), rng.normal(size=100)
    one = paired(judged(first), judged(second), first.mean())
    fourfold = [
        Outcomes(o.prompts * 4, o.tags * 4, o.values * 4) for o in map(judged, (first, second))
    ]
    four = paired(fourfold[0], fourfold[1], first.mean())
    assert one is not None and four is not None
    assert four.interval.low == pytest.approx(one.interval.low)


def records(folder: Path, values: np.ndarray, method: str) -> None:
    made = Record(
        run=f"t2i/{method}",
        task="text_to_image",
        method=method,
        metric="geneval",
        version=1,
        value=float(values.mean()),
        standard_error=0.05,
        n=len(values),
        higher_is_better=True,
    )
    record.write(folder, made)
    outcomes.write(folder, made, judged(values))
    # Another score of the same images, without outcomes.
    record.write(folder, dataclasses.replace(made, metric="clip-score"))


def test_compare_pairs_what_was_kept_beside_the_records(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    hard = (rng.random(300) < 0.5).astype(float)
    easier = np.where(rng.random(300) < 0.08, 1.0, hard)
    records(tmp_path / "one", hard, "one")
    records(tmp_path / "two", easier, "two")
    scores = compare(side(tmp_path / "one"), side(tmp_path / "two")).scores
    verdicts = {row[0].value: row[-1].value for row in scores.rows}
    assert verdicts == {"geneval ↑": "better", "clip-score ↑": "within noise"}
    assert "Compared prompt by prompt: geneval." in scores.notes[0]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    records(tmp_path, np.arange(4.0), "one")
    next(tmp_path.glob("*.outcomes.json")).write_text('{"images": [[1]]}')
    with pytest.raises(DataError, match="outcomes.json is broken"):
        compare(side(tmp_path), side(tmp_path))


def test_outcomes_that_are_not_of_the_second_score_are_not_used() -> None:
    first, second = judged(np.arange(4.0)), judged(np.arange(4.0) + 1)
    assert paired(first, second, 1.5, 2.5) is not None
    assert paired(first, second, 1.5, 2.6) is None


@pytest.mark.parametrize("what", ["record", "outcomes"])
def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(target: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"nanogen.bench.{what}.write_text", full)
    with pytest.raises(DataError) as found:
        records(tmp_path, np.arange(4.0), "one")
    (file,) = re.findall(r"cannot write (\S+): No space left on device; choose", str(found.value))
    assert file.endswith(f".{what}.json") and "\n" not in str(found.value)
