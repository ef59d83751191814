"""Small plots as SVG text: a scatter of methods, and curves over training.

Hand-written rather than drawn by a library, so that a plot takes its colours from the page (light
or dark), weighs a few kilobytes, and holds its text as text. Series i has the class `s<i>`, which
the page's style colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 16, 46
SERIES = 8
"""colours that the style gives; more series start over"""
MOST_POINTS = 200
"""of a curve; longer ones are shown as means of equal stretches"""
MOST_LABELS = 12
"""points that carry their name; among more the names would hide each other, and show on hovering"""


@dataclass(frozen=True)
class Mark:
    """A named point of a scatter plot."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Curve:
    """A series of (x, y), such as images seen and loss, in the order of x."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Scale:
    """Values of an axis to places on the page: `low` to `start`, `high` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        low, high, value = (self._unit(v) for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the axis, about five."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [digit * 10.0**p for p in powers for digit in (1, 2, 5)]
        else:
            step = _round_step((self.high - self.low) / 5)
            first, last = math.ceil(self.low / step), math.floor(self.high / step)
            values = [i * step for i in range(first, last + 1)]
        return [v for v in values if self.low <= v <= self.high]

    def _unit(self, value: float) -> float:
        return math.log10(value) if self.log else value


def scatter(marks: Sequence[Mark], x_label: str, y_label: str) -> str:
    """Points with their names; `marks` must not be empty."""
    x = _scale([m.x for m in marks], LEFT, WIDTH - RIGHT)
    y = _scale([m.y for m in marks], HEIGHT - BOTTOM, TOP)
    parts = _axes(x, y, x_label, y_label)
    for mark in marks:
        px, py = x.place(mark.x), y.place(mark.y)
        hint = f"{mark.name}: {_number(mark.x)}, {_number(mark.y)}"
        parts.append(
            f'<circle class="s0 dot" cx="{px:.1f}" cy="{py:.1f}" r="4.5">'
            f"<title>{escape(hint)}</title></circle>"
        )
        if len(marks) <= MOST_LABELS:
            # A name to the right of its point would leave the plot near the right border.
            side = ("end", -8) if px > WIDTH * 0.7 else ("start", 8)
            parts.append(_text(px + side[1], py + 4, mark.name, side[0], "name"))
    return _svg(parts, f"{y_label} against {x_label}")


def curves(series: Sequence[Curve], x_label: str, y_label: str) -> str:
    """Lines over a common x axis; y is logarithmic where it spans more than a factor of ten.

    Each curve needs a point.
    """
    thin = [_thinned(c.points) for c in series]
    values = [v for points in thin for _, v in points]
    x = _scale([u for points in thin for u, _ in points], LEFT, WIDTH - RIGHT, margin=0)
    log = min(values) > 0 and max(values) > 10 * min(values)
    y = _scale(values, HEIGHT - BOTTOM, TOP, log=log)
    parts = _axes(x, y, x_label, y_label)
    for i, points in enumerate(thin):
        path = " ".join(f"{x.place(u):.1f},{y.place(v):.1f}" for u, v in points)
        parts.append(f'<polyline class="s{i % SERIES} line" points="{path}"/>')
    return _svg(parts, f"{y_label} over {x_label}")


def _scale(
    values: Sequence[float], start: float, end: float, margin: float = 0.06, log: bool = False
) -> Scale:
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** margin
        return Scale(low / room, high * room, start, end, log=True)
    room = (high - low) * margin or (0.0 if margin == 0 and high > low else abs(high) * 0.1 or 1.0)
    return Scale(low - room, high + room, start, end)


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> list[str]:
    parts = []
    for value in y.ticks():
        py = y.place(value)
        parts.append(f'<path class="rule" d="M{LEFT} {py:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 8, py + 4, _number(value), "end", "tick"))
    for value in x.ticks():
        parts.append(_text(x.place(value), HEIGHT - BOTTOM + 18, _number(value), "middle", "tick"))
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    centre = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(centre, HEIGHT - 8, x_label, "middle", "label"))
    turned = f"rotate(-90 14 {HEIGHT / 2})"
    parts.append(
        f'<text class="label" x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="{turned}">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _text(x: float, y: float, text: str, anchor: str, style: str) -> str:
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _svg(parts: Sequence[str], title: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS, each the mean of as many neighbours (the last may have fewer)."""
    size = math.ceil(len(points) / MOST_POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(u for u, _ in p) / len(p), sum(v for _, v in p) / len(p)) for p in parts]


def _round_step(rough: float) -> float:
    """The next of 1, 2, 5, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def _number(value: float) -> str:
    """Short: 0.25, 40k, 1.5M."""
    for least, unit, name in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"
