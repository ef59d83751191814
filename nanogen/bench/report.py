"""Reports: one HTML file with everything in it, that needs no network and runs no script.

    text = render(ReportData(title="Animals", summary="...", leaderboards=(leaderboard(records),)))

Captions, names and configs are data of the user: every text is escaped, and the page forbids
itself to load anything.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import groupby

import jinja2
from markupsafe import Markup
from PIL import Image

from nanogen.bench import plot
from nanogen.bench.correlate import Pairing
from nanogen.bench.plot import Curve
from nanogen.bench.table import Table
from nanogen.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n"
PIXELATED = 96
"""images of fewer pixels in height are enlarged with hard edges: smoothing would invent detail"""


@dataclass(frozen=True)
class Picture:
    """One sample with its class or caption; `right` is a checker's verdict where there is one."""

    image: Image.Image | bytes
    """a picture, or the bytes of a PNG file"""
    caption: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Grid:
    """Samples under one heading."""

    title: str
    pictures: tuple[Picture, ...]
    note: str = ""
    wide: bool = False
    """each picture is several images beside each other"""


@dataclass(frozen=True)
class Curves:
    """Training curves that share their axes, such as all runs of a task: (images seen, loss)."""

    title: str
    series: tuple[Curve, ...]
    y_label: str = "loss"

    @property
    def drawn(self) -> tuple[Curve, ...]:
        """The curves that have a point to draw; a loss that is not finite is none."""
        finite = [
            Curve(c.name, tuple((x, y) for x, y in c.points if math.isfinite(y)))
            for c in self.series
        ]
        return tuple(c for c in finite if c.points)


@dataclass(frozen=True)
class ReportData:
    """All that a report shows, in the order of the page; what is empty is left out."""

    title: str
    summary: str = ""
    """one or two sentences: the result in words"""
    command: str = ""
    commit: str = ""
    hardware: str = ""
    leaderboards: tuple[Table, ...] = ()
    correlations: tuple[Table, ...] = ()
    scatters: tuple[Pairing, ...] = ()
    grids: tuple[Grid, ...] = ()
    spaces: tuple[Table, ...] = ()
    """what the latent spaces keep of real images"""
    reconstructions: tuple[Grid, ...] = ()
    curves: tuple[Curves, ...] = ()
    sanity: tuple[Table, ...] = ()
    """what known good and known bad images score"""
    configs: Mapping[str, str] = field(default_factory=dict)
    """run name -> its run.yaml"""


def render(data: ReportData) -> str:
    """The whole HTML page. Raises DataError where the bytes of a picture are no PNG file."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "data_uri": data_uri,
        "is_small": is_small,
        "scatter": _scatter,
        "curves": _curves,
        "groups": _groups,
        "notes": _notes,
        "style": _style,
    }
    source = (resources.files("nanogen.bench") / "report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(data=data, series=plot.SERIES)


def data_uri(picture: Picture) -> str:
    """The picture inside the page."""
    raw = picture.image
    if not isinstance(raw, bytes):
        file = io.BytesIO()
        raw.save(file, format="PNG", optimize=True)
        raw = file.getvalue()
    if not raw.startswith(PNG):
        raise DataError(f"the picture {picture.caption!r} of the report is not a PNG file")
    return "data:image/png;base64," + base64.b64encode(raw).decode("ascii")


def is_small(picture: Picture) -> bool:
    """Whether a picture is shown with hard pixels."""
    image = picture.image
    if isinstance(image, bytes):
        # The header of a PNG file holds its height in bytes 20 to 23.
        return int.from_bytes(image[20:24], "big") < PIXELATED
    return image.height < PIXELATED


def _scatter(pairing: Pairing) -> Markup:
    marks = [plot.Mark(p.method, p.x, p.y) for p in pairing.points]
    names = [
        f"{axis.name} ({'higher' if axis.higher_is_better else 'lower'} is better)"
        for axis in (pairing.x, pairing.y)
    ]
    return Markup(plot.scatter(marks, *names))


def _curves(panel: Curves) -> Markup:
    return Markup(plot.curves(panel.drawn, "images seen", panel.y_label))


def _notes(tables: Sequence[Table]) -> list[str]:
    """The notes of all tables, each once."""
    return list(dict.fromkeys(note for table in tables for note in table.notes))


def _style(table: Table, column: int) -> str:
    """Classes of the cells of a column: numbers stand right, the first of a group has a line."""
    groups = [c.group for c in table.columns]
    first = bool(groups[column]) and (column == 0 or groups[column - 1] != groups[column])
    return " ".join(["number"] * table.is_numeric(column) + ["first"] * first)


def _groups(table: Table) -> Sequence[tuple[str, int]]:
    """Headings above neighbouring columns of the same group, with the number of columns."""
    return [(name, len(list(same))) for name, same in groupby(c.group for c in table.columns)]
