"""Correlation coefficients with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from nanogen.errors import MetricError

NORMAL_95 = 1.959963984540054
"""two-sided 95 % point of the normal distribution"""
FEWEST = 3
"""points below which a correlation says nothing: two points always lie on a line"""
FEW = 5
"""points below which the interval of a correlation spans nearly everything"""


@dataclass(frozen=True)
class Interval:
    """A range of values, `low <= high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Correlation:
    """Three coefficients of n points, each in [-1, 1] with the p-value of no association."""

    n: int
    pearson: float
    pearson_p: float
    interval: Interval
    """95 % of the Pearson coefficient (Fisher)"""
    spearman: float
    spearman_p: float
    kendall: float
    kendall_p: float
    leave_one_out: Interval
    """the Pearson coefficient without any one of the points"""


def correlate(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Correlation of paired values. Kendall's is tau-b, Spearman's gives ties their mean rank.

    Raises MetricError for fewer than 3 points, or where all values of one side are equal.
    """
    problem = undefined(x, y)
    if problem:
        raise MetricError(f"correlation is {problem}")
    pearson, spearman = stats.pearsonr(x, y), stats.spearmanr(x, y)
    kendall = stats.kendalltau(x, y)
    r = float(pearson.statistic)
    return Correlation(
        n=len(x),
        pearson=r,
        pearson_p=float(pearson.pvalue),
        interval=fisher_interval(r, len(x)),
        spearman=float(spearman.statistic),
        spearman_p=float(spearman.pvalue),
        kendall=float(kendall.statistic),
        kendall_p=float(kendall.pvalue),
        leave_one_out=leave_one_out(x, y),
    )


def undefined(x: Sequence[float], y: Sequence[float]) -> str:
    """Why these points have no correlation; "" when they have one."""
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} values are not pairs")
    if len(x) < FEWEST:
        return f"not defined: needs {FEWEST} methods, has {len(x)}"
    if len(set(x)) == 1 or len(set(y)) == 1:
        return "not defined: all methods have the same value"
    return ""


def fisher_interval(r: float, n: int) -> Interval:
    """95 % interval of a Pearson coefficient over n points: tanh(atanh r +- 1.96 / sqrt(n - 3)).

    Three points bound nothing. The points are taken as independent draws, which methods that share
    parts are not: the interval is then too narrow.
    """
    if n <= 3:
        return Interval(-1.0, 1.0)
    if abs(r) >= 1:
        return Interval(r, r)
    centre, half = math.atanh(r), NORMAL_95 / math.sqrt(n - 3)
    return Interval(math.tanh(centre - half), math.tanh(centre + half))


def leave_one_out(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Range of the Pearson coefficient without each point in turn: does one method carry it?

    [-1, 1] where leaving one out leaves fewer than 3 points, or equal ones.
    """
    coefficients = []
    for i in range(len(x)):
        rest_x, rest_y = [*x[:i], *x[i + 1 :]], [*y[:i], *y[i + 1 :]]
        if undefined(rest_x, rest_y):
            return Interval(-1.0, 1.0)
        coefficients.append(float(stats.pearsonr(rest_x, rest_y).statistic))
    return Interval(min(coefficients), max(coefficients))
