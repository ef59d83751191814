"""Reports: self-contained, escaped, and drawn to scale."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

from nanogen.bench import plot
from nanogen.bench.correlate import Axis, Pairing, Point, correlation_table
from nanogen.bench.plot import Curve, Mark, Scale
from nanogen.bench.report import Curves, Grid, Picture, ReportData, render
from nanogen.bench.table import Cell, Column, Table
from nanogen.errors import DataError

HOSTILE = "<script>alert(1)</script>\"'&"
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def picture(side: int = 4) -> Image.Image:
    return Image.new("RGB", (side, side), (255, 0, 0))


def table() -> Table:
    columns = (Column("Method"), Column("fd", "by class", False), Column("scenes", "by text", True))
    rows = ((Cell("a"), Cell(2.0), Cell(0.5, 0.1)), (Cell(HOSTILE), Cell(1.0), Cell(None)))
    return Table("Scores", columns, rows, (HOSTILE,)).with_best()


def pairing(methods: int = 4) -> Pairing:
    points = tuple(Point(f"m{i} {HOSTILE}", float(i), float(i * i)) for i in range(methods))
    return Pairing("records", Axis("fd", False), Axis("scenes", True), points)


def full() -> ReportData:
    file = io.BytesIO()
    picture().save(file, format="PNG")
    return ReportData(
        title=HOSTILE,
        summary=HOSTILE,
        command=HOSTILE,
        commit=HOSTILE,
        hardware=HOSTILE,
        leaderboards=(table(),),
        correlations=(correlation_table([pairing()], HOSTILE),),
        scatters=(pairing(), pairing(0)),
        grids=(
            Grid(
                HOSTILE,
                (
                    Picture(picture(), HOSTILE, True),
                    Picture(file.getvalue(), "b", False),
                    Picture(picture(256)),
                ),
                HOSTILE,
            ),
        ),
        curves=(
            Curves(HOSTILE, (Curve(HOSTILE, ((0, 1.0), (1, float("nan")), (2, 0.5))),)),
            Curves("empty", (Curve("none", ()),)),
        ),
        sanity=(table(),),
        configs={HOSTILE: HOSTILE},
    )


def test_every_text_is_escaped_and_every_element_closed() -> None:
    text = render(full())
    page = Page(text)
    assert "<script" not in text and "nan" not in re.sub(r"base64,[^\"]*|nanogen", "", text)
    assert page.words.count("<script>alert(1)</script>") >= 12
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}


def test_nothing_is_loaded_from_anywhere() -> None:
    page = Page(render(full()))
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    [policy] = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none'")
    assert "http://" not in render(full()) and "https://" not in render(full())


def test_pictures_are_inside_unchanged() -> None:
    images = [a for tag, a in Page(render(full())).tags if tag == "img"]
    assert [a.get("class") for a in images] == ["small", "small", None]
    for attributes, side in zip(images, (4, 4, 256), strict=True):
        data = base64.b64decode((attributes["src"] or "").partition(",")[2])
        opened = Image.open(io.BytesIO(data))
        assert opened.size == (side, side) and opened.getpixel((0, 0)) == (255, 0, 0)


def test_a_picture_that_is_no_png_is_refused() -> None:
    data = ReportData("t", grids=(Grid("g", (Picture(b"<svg onload=x>", "cat"),)),))
    with pytest.raises(DataError, match="'cat' of the report is not a PNG"):
        render(data)


def test_best_numbers_are_marked_and_what_is_empty_is_left_out() -> None:
    text = render(ReportData("t", leaderboards=(table(),)))
    best = [a for tag, a in Page(text).tags if tag == "td" and "best" in (a.get("class") or "")]
    assert len(best) == 1
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Results"]
    assert re.findall(r"<h2>(.*?)</h2>", render(ReportData("t"))) == []


def test_a_scatter_stands_where_its_values_are() -> None:
    marks = [Mark("a", 0, 10), Mark("b", 5, 20), Mark("c", 10, 40)]
    root = ElementTree.fromstring(plot.scatter(marks, "x", "y"))
    dots = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter("circle")]
    assert dots[1][0] - dots[0][0] == pytest.approx(dots[2][0] - dots[1][0], abs=0.2)
    assert dots[0][1] - dots[1][1] == pytest.approx((dots[1][1] - dots[2][1]) / 2, abs=0.2)
    assert [t.text for t in root.iter("title")] == ["a: 0, 10", "b: 5, 20", "c: 10, 40"]
    assert {"a", "b", "c"} <= {t.text for t in root.iter("text")}


def test_one_point_and_equal_points_can_be_drawn() -> None:
    for marks in ([Mark("a", 3, 3)], [Mark("a", 0, 0), Mark("b", 0, 0)]):
        assert "nan" not in plot.scatter(marks, "x", "y")
    assert "nan" not in plot.curves([Curve("a", ((5, 1.0),))], "x", "y")


def test_long_curves_are_thinned_to_means() -> None:
    points = tuple((float(i), float(i % 2)) for i in range(1000))
    root = ElementTree.fromstring(plot.curves([Curve("a", points)], "x", "y"))
    [line] = root.iter("polyline")
    assert len(line.attrib["points"].split()) == 200


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0, 1, 0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (Scale(0, 320_000, 0, 1), [0, 100_000, 200_000, 300_000]),
        (Scale(-0.3, 0.25, 0, 1), [-0.2, 0, 0.2]),
        (Scale(0.02, 1.1, 0, 1, log=True), [0.02, 0.05, 0.1, 0.2, 0.5, 1]),
    ],
)
def test_ticks_are_round(scale: Scale, ticks: list[float]) -> None:
    assert scale.ticks() == pytest.approx(ticks)


def test_a_logarithmic_scale_places_the_geometric_mean_in_the_middle() -> None:
    assert Scale(0.01, 1, 0, 100, log=True).place(0.1) == pytest.approx(50)
