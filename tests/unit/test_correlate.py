"""Correlations: the published ones to the printed digits, and small sets."""

from __future__ import annotations

import dataclasses

import numpy
import pytest
import scipy.stats

from nanogen.bench import published
from nanogen.bench.correlate import correlation_table, published_pairings, record_pairings
from nanogen.bench.record import Record
from nanogen.bench.statistics import (
    Interval,
    correlate,
    fisher_interval,
    leave_one_out,
)
from nanogen.errors import MetricError

TITLES = {metric: title for metric, (title, _) in published.TEXT_TO_IMAGE.items()}


def record(method: str, task: str, metric: str, value: float, higher: bool) -> Record:
    return Record("run", task, method, metric, 1, value, None, 100, higher)


def both_tasks(values: dict[str, tuple[float, float]]) -> list[Record]:
    return [
        r
        for method, (x, y) in values.items()
        for r in (
            record(method, "class_conditional", "fd-animals", x, False),
            record(method, "text_to_image", "scenes", y, True),
        )
    ]


def test_all_published_correlations() -> None:
    found = {(p.rows, p.x.name, p.y.name): p for p in published_pairings()}
    rows = published.table("correlations")
    assert len(found) == len(rows) == 36
    for row in rows:
        key = (row["set"], f"FID, {row['imagenet_protocol']}", TITLES[row["t2i_metric"]])
        c = found[key].correlation
        assert c is not None and c.n == int(row["n"])
        for value, column in [
            (c.pearson, "pearson_r"),
            (c.pearson_p, "pearson_p"),
            (c.spearman, "spearman_rho"),
            (c.spearman_p, "spearman_p"),
            (c.kendall, "kendall_tau"),
        ]:
            assert value == pytest.approx(float(row[column]), abs=1e-4), (key, column)
        assert c.interval.low == pytest.approx(float(row["ci95_low_fisher"]), abs=1e-3)
        assert c.interval.high == pytest.approx(float(row["ci95_high_fisher"]), abs=1e-3)


def test_the_abstracts_numbers() -> None:
    headline = [p for p in published_pairings() if p.rows == "latent21" and "nocfg" not in p.x.name]
    values = [p.correlation.pearson for p in headline if p.correlation]
    assert values == pytest.approx([-0.5553, -0.5803, -0.3766], abs=1e-4)
    assert [p.remark for p in headline] == ["agree", "agree", "undecided"]
    ranges = [p.correlation.leave_one_out for p in headline if p.correlation]
    expected = [(-0.71, -0.47), (-0.70, -0.51), (-0.48, -0.19)]
    for found, (low, high) in zip(ranges, expected, strict=True):
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.006)


def test_row_sets_have_each_method_once() -> None:
    sizes = {name: len(published.row_set(name)) for name in published.ROW_SETS}
    assert list(sizes.values()) == [21, 17, 24, 26, 8, 13]
    for name in published.ROW_SETS:
        ids = [m.id for m in published.row_set(name)]
        assert len(ids) == len(set(ids))
    assert len(published.methods()) == 35


def test_published_fid_and_fdr_tell_the_same_story() -> None:
    for method in published.row_set("plus_meanflow26"):
        for values in method.imagenet.values():
            assert abs(1.68 * values["fdr_inception"] - values["fid"]) <= 0.38


def test_ties_are_as_in_scipy() -> None:
    x, y = [1, 2, 2, 3, 4, 4], [2, 1, 3, 3, 5, 4]
    found = correlate(x, y)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert found.kendall == pytest.approx(scipy.stats.kendalltau(x, y).statistic)


def test_fisher_interval_by_hand_and_at_its_ends() -> None:
    found = fisher_interval(0.5, 28)
    assert found.low == pytest.approx(numpy.tanh(numpy.arctanh(0.5) - 1.959964 / 5), abs=1e-6)
    assert fisher_interval(0.5, 3) == Interval(-1.0, 1.0)
    assert fisher_interval(1.0, 10) == Interval(1.0, 1.0)


def test_leave_one_out_shows_the_point_that_carries_a_correlation() -> None:
    x, y = [0.0, 1, 2, 3, 100], [0.0, 1, -1, 0, 100]
    assert correlate(x, y).pearson > 0.99
    assert leave_one_out(x, y).low < 0


@pytest.mark.parametrize("methods", [1, 2])
def test_too_few_methods_give_words_and_no_number(methods: int) -> None:
    values = {f"m{i}": (float(i), float(i)) for i in range(methods)}
    [pairing] = record_pairings(both_tasks(values))
    assert pairing.correlation is None
    assert pairing.remark == f"not defined: needs 3 methods, has {methods}"
    [row] = correlation_table([pairing], "t").rows
    assert [c.value for c in row[4:10]] == [None] * 6


def test_few_methods_are_warned_about_and_equal_ones_have_no_correlation() -> None:
    values = {"a": (3.0, 0.1), "b": (2.0, 0.25), "c": (1.0, 0.3)}
    [pairing] = record_pairings(both_tasks(values))
    assert pairing.correlation is not None and pairing.correlation.pearson < -0.9
    assert pairing.remark == "undecided; only 3 methods, so the interval is wide"
    [flat] = record_pairings(both_tasks({name: (1.0, 0.1) for name in "abcd"}))
    assert flat.remark == "not defined: all methods have the same value"


def test_a_method_without_one_task_is_no_point() -> None:
    records = both_tasks({name: (float(i), -float(i)) for i, name in enumerate("abcdef")})
    records.append(record("g", "class_conditional", "fd-animals", 9.0, False))
    [pairing] = record_pairings(records, "fd-animals", "scenes")
    assert [p.method for p in pairing.points] == list("abcdef")
    assert pairing.remark == "agree"


def test_known_images_are_no_methods() -> None:
    """Rows of real and of spoilt images stand beside methods in tables, not among the points."""
    records = both_tasks({"a": (1.0, 0.2), "b": (2.0, 0.3), "c": (3.0, 0.1)})
    real = [dataclasses.replace(r, method="real", known=True) for r in records[:2]]
    (pairing,) = record_pairings([*records, *real])
    assert [p.method for p in pairing.points] == ["a", "b", "c"]


def test_an_unknown_score_is_named_with_the_nearest() -> None:
    with pytest.raises(MetricError, match="did you mean fd-animals"):
        record_pairings(both_tasks({"a": (1.0, 1.0)}), "fd-animal")
