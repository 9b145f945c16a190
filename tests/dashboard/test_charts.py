"""Graphs as SVG: whatever numbers and names are, they are well-formed, in their box, and say the same in words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree as ET

import pytest
from django.template.loader import render_to_string
from hypothesis import given
from hypothesis import strategies as st

from goscope_django.core import histogram
from goscope_django.dashboard import charts
from goscope_django.dashboard.charts import HEIGHT, WIDTH, Chart, Line, Unit, Value, shown, ticks
from goscope_django.dashboard.graphs import graphs, named
from goscope_django.figures import SERIES
from goscope_django.mongodb.figures import HISTOGRAMS, LOCK, OTHER, Counted, Hour
from goscope_django.operations import convert
from goscope_django.operations.values import Figures

UNITS: tuple[Unit, ...] = get_args(Unit)
CSS = Path(charts.__file__).parents[1] / "static/goscope/dashboard.css"
values = st.none() | st.floats() | st.integers(-(2**70), 2**70)


def parsed(markup: str) -> ET.Element:
    return ET.fromstring(markup)


def chart(*lines: Sequence[Value], unit: Unit = "count", number: int | None = None) -> Chart:
    moments = [f"{at:02}:00" for at in range(len(lines[0]) if number is None else number)]
    return Chart("c", "Locks", unit, moments, [Line(f"line {at}", one) for at, one in enumerate(lines)], "a minute")


def coordinates(root: ET.Element) -> list[tuple[float, float]]:
    found = []
    for path in root.iter("path"):
        numbers = [float(one) for one in re.findall(r"-?[\d.]+", path.attrib["d"])]
        found += list(zip(numbers[::2], numbers[1::2], strict=True))
    found += [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in root.iter("circle")]
    return found


@given(
    st.text(),
    st.text(),
    st.sampled_from(UNITS),
    st.lists(st.tuples(st.text(), st.lists(values, max_size=70)), max_size=6),
    st.lists(st.text(max_size=20), max_size=70),
)
def test_whatever_is_given_is_drawn_in_its_box_and_nothing_gets_out_of_the_text(
    name: str, title: str, unit: Unit, lines: list[tuple[str, list[Value]]], moments: list[str]
) -> None:
    made = Chart(name, title, unit, moments, [Line(label, given, label) for label, given in lines], title)
    root = parsed(charts.figure(made))
    allowed = {"figure", "figcaption", "small", "p", "svg", "title", "desc", "line", "text", "path", "circle", "ul"}
    allowed |= {"li", "details", "summary", "span", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert {one.tag for one in root.iter()} <= allowed
    for one in root.iter():
        assert not any(name == "style" or name.startswith("on") for name in one.attrib)
    drawing = parsed(charts.svg(made))
    for x, y in coordinates(drawing):
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT


def test_markup_in_names_stays_text() -> None:
    hostile = '"><script>alert(1)</script>&\0\u202e'
    made = Chart(hostile, hostile, "count", ["1"], [Line(hostile, [1.0], hostile)], hostile)
    found = charts.figure(made)
    assert "<script" not in found
    assert "\0" not in found and "\u202e" not in found
    (title,) = parsed(charts.svg(made)).iter("title")
    assert title.text is not None and title.text.startswith('"><script>alert(1)</script>&')


def test_a_gap_is_a_gap() -> None:
    root = parsed(charts.svg(chart([1, 2, None, 4, None, 6, 7, math.nan, math.inf])))
    paths = [len(re.findall("[ML]", one.attrib["d"])) for one in root.iter("path")]
    assert (paths, len(list(root.iter("circle")))) == ([2, 2], 1)


def test_nought_is_drawn_and_no_gap() -> None:
    root = parsed(charts.svg(chart([0, 0, 3, 0])))
    (path,) = root.iter("path")
    assert len(re.findall("[ML]", path.attrib["d"])) == 4


def test_one_point_is_a_dot() -> None:
    root = parsed(charts.svg(chart([5])))
    assert len(list(root.iter("circle"))) == 1


@pytest.mark.parametrize("lines", [[[]], [[0, 0]], [[None, None]], [[math.nan]], [[-1, 0]]])
def test_nothing_to_see_is_said(lines: list[list[Value]]) -> None:
    made = chart(*lines)
    assert made.empty
    assert "Nothing was counted" in charts.figure(made)
    assert "<svg" not in charts.figure(made)
    parsed(charts.svg(made))


def test_the_last_moment_stands_on_the_right_and_the_highest_value_below_the_top_tick() -> None:
    root = parsed(charts.svg(chart([*range(60)])))
    last, first = coordinates(root)[-1], coordinates(root)[0]
    assert last[0] == WIDTH - charts.RIGHT
    assert first == (charts.LEFT, HEIGHT - charts.BOTTOM)
    texts = [one.text for one in root.iter("text")]
    assert texts[:4] == ["0", "20", "40", "60"]
    assert texts[4:] == ["59:00", "44:00", "29:00", "14:00"]


def test_the_drawing_has_a_title_and_says_in_words_what_it_shows() -> None:
    root = parsed(charts.svg(chart([1, 7, 3], [None, None, None])))
    assert root.attrib["role"] == "img"
    ids = {one.attrib["id"]: one.text for one in root.iter() if "id" in one.attrib}
    told = [ids[one] for one in root.attrib["aria-labelledby"].split()]
    assert told == ["Locks a minute", "line 0: at most 7; line 1: not measured"]


def test_the_table_has_every_number_that_is_drawn() -> None:
    root = parsed(charts.figure(chart([0, 1500, 0], [0, 2, None])))
    rows = [[cell.text for cell in row] for row in root.iter("tr")]
    assert rows == [["Time", "line 0", "line 1"], ["01:00", "1.5k", "2"]]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "count", "–"),
        (math.nan, "seconds", "–"),
        (0, "seconds", "0 s"),
        (0.0025, "seconds", "2.5 ms"),
        (0.00001, "seconds", "0.01 ms"),
        (0.25, "seconds", "250 ms"),
        (90, "seconds", "1.5 min"),
        (7_200, "seconds", "2 h"),
        (999, "count", "999"),
        (1_500_000, "count", "1.5M"),
        (2.5, "rate", "2.5/s"),
        (2_048, "bytes", "2.05 KB"),
        (0.925, "part", "92.5 %"),
        (-3, "count", "0"),
    ],
)
def test_numbers_have_their_units(value: Value, unit: Unit, text: str) -> None:
    assert shown(value, unit) == text


@given(st.floats(0, 1e300), st.sampled_from(UNITS))
def test_ticks_are_few_and_reach_over_the_highest_value(most: float, unit: Unit) -> None:
    found = ticks(min(most, 1.0) if unit == "part" else most, unit)
    assert 2 <= len(found) <= charts.STEPS + 2
    assert found == sorted(set(found))
    assert found[0] == 0
    assert found[-1] * (1 + 1e-6) >= (min(most, 1.0) if unit == "part" else most)


def test_every_kind_of_line_has_its_looks() -> None:
    sheet = CSS.read_text()
    for number in range(1, charts.MOST_LINES + 1):
        assert f".goscope-drawn.goscope-series-{number} {{" in sheet
        assert f".goscope-dot.goscope-series-{number} {{" in sheet
        assert sheet.count(f"--goscope-{number}: #") == 3  # light, dark, and dark by the system


# What is chosen


def figures_of(now: datetime, count: int) -> Figures:
    minutes = tuple(now - timedelta(minutes=back) for back in range(59, -1, -1))
    hours = tuple(now - timedelta(hours=back) for back in range(23, -1, -1))
    row = [0] * histogram.WIDTH
    for _ in range(count):
        histogram.note(row, 0, 0.02)

    def every(number: int) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[tuple[int, ...], ...]]]:
        return dict.fromkeys(SERIES, (count,) * number), dict.fromkeys(HISTOGRAMS, (tuple(row),) * number)

    hour, day = every(60), every(24)
    return convert.figures(Hour(minutes, hour[0], {}, {}, (), hour[1], Counted(hours, *day), None, {}))


def test_every_feature_has_its_graphs_of_the_hour_and_of_the_day() -> None:
    now = datetime(2026, 11, 24, 21, 5, tzinfo=UTC)
    found = graphs(figures_of(now, 6), now + timedelta(seconds=30))
    assert {name: len(every) for name, every in found.items()} == {"hour": 12, "day": 12, "names": 0}
    ids = [parsed(one).attrib["id"] for every in found.values() for one in every]
    assert len(ids) == len(set(ids)) == 24
    for one in found["hour"]:
        root = parsed(one)
        assert root.find("svg") is not None, one
        assert len(list(root.iter("tr"))) == 61
    text = "".join(found["hour"])
    assert "acquired: 360 in all, latest 6" in text
    assert "hits: 50.0 % over all, latest 50 %" in text
    assert "refused: 720 in all" in text
    assert "median: 17.5 ms over all" in text
    assert "items a second: 360 items in all, latest 0.2/s" in text  # 6 in the half minute that the last one has lasted


def test_without_counts_there_are_no_drawings_and_without_figures_nothing() -> None:
    now = datetime(2026, 11, 24, 21, 5, tzinfo=UTC)
    assert all("<svg" not in one for every in graphs(figures_of(now, 0), now).values() for one in every)
    assert graphs(Figures(error="it can't be read"), now) == {}


def test_names_are_shown_as_text_the_hour_that_runs_first() -> None:
    now = datetime(2026, 11, 24, 21, tzinfo=UTC)
    row = [3, 2, 1, 0, *[0] * (LOCK.width - 4)]
    histogram.note(row, LOCK.start("lock_wait"), 0.7)
    rows: dict[str, tuple[int, ...]] = {"<b>\0": tuple(row), OTHER: (9, *[0] * (LOCK.width - 1))}
    kinds: dict[str, dict[str, tuple[int, ...]]] = {"lock": rows, "circuit": {"bank": (5, 4, 3, 2)}}
    hour = Hour((now,), {}, {}, {}, (), {}, Counted((), {}, {}), None, {now: kinds, now - timedelta(hours=1): {}})
    found = named(convert.figures(hour))
    assert [one["since"] for one in found] == ["21:00", "20:00"]
    assert [(one["name"], one["counts"]) for one in found[0]["locks"]] == [
        ("<b>\\x00", ["3", "2", "1", "0"]),
        (OTHER, ["9", "0", "0", "0"]),
    ]
    assert found[0]["locks"][0]["wait"] == "750 ms / 975 ms"
    assert found[0]["locks"][0]["held"] == "–"
    assert [(one["name"], one["counts"]) for one in found[0]["circuits"]] == [("bank", ["5", "4", "3", "2"])]
    page = render_to_string("goscope/graphs.html", {"state": {"figures": {}}, "graphs": {"names": found}})
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert "Single circuits since 21:00" in page and "since 20:00" not in page


def test_a_page_of_graphs_stays_small() -> None:
    now = datetime(2026, 11, 24, 21, 5, tzinfo=UTC)
    found = graphs(figures_of(now, 123_456), now)
    assert sum(len(one) for every in found.values() for one in every) < 250_000
