"""Axes, places of labels, and the marks that charts draw: hand numbers, and what is missing."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from kdzoo.report import charts
from kdzoo.report.charts import Interval, Series
from kdzoo.report.placing import Box, place
from kdzoo.report.scale import Axis, axis, compact, finite, plain, spread, wants_log
from kdzoo.report.scatter import Point, pareto, scatter
from kdzoo.report.svg import MARKERS, Style, clip, marker, swatch, tag

HOSTILE = "<script>alert('x')</script>&\"'"
SAID: dict[str, Any] = {"title": "a chart", "text": "numbers", "x_label": "x", "y_label": "y"}


def drawn(markup: object) -> ET.Element:
    """The picture as a tree: a name that was not escaped would not parse, or would add elements."""
    return ET.fromstring(str(markup))


def marks(picture: ET.Element, class_: str) -> list[ET.Element]:
    return [element for element in picture.iter() if class_ in (element.get("class") or "").split()]


def texts(picture: ET.Element) -> list[str]:
    return [element.text or "" for element in picture.iter("text")]


# --- axes ---------------------------------------------------------------------------------------------------------


def test_an_axis_maps_its_ends_and_its_middle() -> None:
    """Would catch a chart that is upside down or shifted."""
    up = Axis(0.0, 2.0, 100.0, 0.0)
    assert [up.at(value) for value in (0.0, 1.0, 2.0)] == [100.0, 50.0, 0.0]
    log = Axis(1.0, 100.0, 0.0, 200.0, log=True)
    assert [log.at(value) for value in (1.0, 10.0, 100.0)] == pytest.approx([0.0, 100.0, 200.0])


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0.0, 600.0, False, ["0", "100", "200", "300", "400", "500", "600"]),
        (-0.06, 0.13, False, ["−0.05", "0.00", "0.05", "0.10"]),
        (0.0733, 0.1967, False, ["0.08", "0.10", "0.12", "0.14", "0.16", "0.18"]),
        (-1.0, 1.0, False, ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        (5e3, 3e5, True, ["5k", "10k", "20k", "50k", "100k", "200k"]),
        (1e-6, 5.0, True, ["1e−6", "0.0001", "0.01", "1"]),
        (2.5, 9.9, True, ["5"]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, log: bool, expected: list[str]) -> None:
    """Would catch labels like 0.0999999, and ticks beyond the ends of the axis."""
    made = Axis(low, high, 0.0, 1.0, log)
    ticks = made.ticks(5)
    assert all(low <= value <= high or math.isclose(value, low) for value, _ in ticks)
    if len(expected) > 1:
        assert [text for _, text in ticks] == expected
    else:
        assert len(ticks) > 1, "a log axis without two powers falls back to equal steps"


def test_an_axis_for_every_input() -> None:
    """Would catch a division by zero where all values are equal, missing or not above zero."""
    for values in ([], [None], [math.nan, math.inf], [5.0], [5.0, 5.0], [0.0]):
        for log in (False, True):
            made = axis(values, 0.0, 100.0, log=log)
            assert made.low < made.high
            assert made.ticks()
    assert axis([1.0, 3.0], 0.0, 1.0, pad=0.5).low == 0.0
    assert axis([-2.0, 0.0, 10.0, 1000.0], 0.0, 1.0, log=True, pad=0.0).low == pytest.approx(10.0)


def test_numbers_as_text() -> None:
    """Would catch a count that reads as another size, and a minus zero."""
    assert [compact(v) for v in (6616.0, 72666.0, 1234567.0, 0.003, 2e-7, 0.5, 999.0, -5.0, 0.0, 1e6)] == [
        "6.6k", "72.7k", "1.2M", "0.003", "2e−7", "0.5", "999", "−5", "0", "1M",
    ]  # fmt: skip
    assert plain(-0.0001, 2) == "0.00"
    assert plain(-1234.5, 1) == "−1,234.5"
    assert finite([1, None, math.nan, -math.inf, 2.5]) == [1.0, 2.5]
    assert clip("abcdef", 4) == "abc…"


def test_log_only_where_it_shows_more() -> None:
    """Would catch a log axis over zeros or negative losses."""
    assert wants_log([0.01, 1.0], 20.0)
    assert not wants_log([0.1, 1.0], 20.0)
    assert not wants_log([0.0, 1.0], 20.0)
    assert not wants_log([-1.0, 100.0], 20.0)
    assert not wants_log([None, 1.0], 20.0)


# --- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([5.0], [5.0]),
        ([1.0, 1.0, 1.0, 5.0], [0.0, 1.0, 2.0, 5.0]),
        ([9.0, 9.0, 9.0], [8.0, 9.0, 10.0]),
        ([-5.0, 20.0], [0.0, 10.0]),
        ([3.0, 1.0], [3.0, 1.0]),
        ([2.5, 2.0], [2.75, 1.75]),
        ([], []),
    ],
)
def test_labels_are_spread_as_little_as_needed(wanted: list[float], expected: list[float]) -> None:
    """Would catch names at the ends of lines that cover each other or are swapped."""
    assert spread(wanted, 1.0, 0.0, 10.0) == pytest.approx(expected)


def test_twenty_labels_share_what_room_there_is() -> None:
    """Would catch labels that leave the chart when there are more than fit."""
    places = spread([5.0] * 20, 1.0, 0.0, 10.0)
    assert min(places) == pytest.approx(0.0)
    assert max(places) == pytest.approx(10.0)
    assert sorted(places) == places


def test_names_beside_points_cover_nothing() -> None:
    """Would catch a name over another name, over a mark, or outside of the chart."""
    dots = [(50.0, 50.0), (52.0, 51.0), (54.0, 49.0)]
    taken = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
    bounds = Box(0.0, 0.0, 300.0, 100.0)
    found = place(dots, [40.0, 40.0, None], taken, bounds)
    boxes = [Box(spot[0], spot[1] - 7, spot[0] + 40, spot[1] + 7) for spot in found if spot]
    assert len(boxes) == 2
    assert found[2] is None
    assert not boxes[0].meets(boxes[1])
    assert all(box.within(bounds) and not any(box.meets(mark) for mark in taken) for box in boxes)
    assert place(dots[:1], [400.0], [], bounds) == [None]


# --- safety -------------------------------------------------------------------------------------------------------


def test_names_are_escaped_everywhere() -> None:
    """Would catch a name from somebody's card that becomes an element of the page."""
    style = Style(3, 1, 2)
    pictures = [
        charts.lines(
            "a", [Series(HOSTILE, [(0, 1.0), (1, 2.0)], style, text=HOSTILE)], **SAID | {"title": HOSTILE}
        ),
        charts.forest(
            "b",
            [Interval(HOSTILE, 1.0, 0.5, 1.5, HOSTILE, style)],
            title=HOSTILE,
            text="",
            x_label=HOSTILE,
            better="",
        ),
        scatter("c", [Point(HOSTILE, 1.0, 2.0, style, tip=HOSTILE)], **SAID | {"x_label": HOSTILE}),
        charts.reliability("d", [(3, 0.5, 0.6)], title=HOSTILE, text=HOSTILE, style=style),
    ]
    for picture in pictures:
        tree = drawn(picture)
        assert not [element for element in tree.iter() if element.tag.endswith("script")]
        assert HOSTILE in [*texts(tree), *(e.text for e in tree.iter("title"))]
        assert "style=" not in picture, "the content security policy refuses style attributes"
    assert 'x="&#34;&gt;&lt;b"' in tag("a", x='"><b')


def test_every_marker_and_dash_is_drawn() -> None:
    """Would catch a shape that is missing from the table of corners."""
    for kind in range(len(MARKERS) + 1):
        drawn(marker(kind, 1.0, 2.0, 3.0, "dot"))
        drawn(swatch(Style(kind % 8, kind, kind)))


# --- curves -------------------------------------------------------------------------------------------------------


def test_lines_draw_finite_points_only() -> None:
    """Would catch a NaN in a path, which a browser draws as nothing at all."""
    points = [(0, 1.0), (1, None), (2, math.nan), (3, 2.0), (4, math.inf)]
    tree = drawn(charts.lines("a", [Series("one", points, Style())], **SAID))
    assert len(marks(tree, "dot")) == 2
    assert "nan" not in ET.tostring(tree, "unicode").lower()
    (line,) = marks(tree, "line")
    assert len(re.findall(r"[ML]", line.get("d") or "")) == 2


def test_a_line_of_one_point_and_of_none() -> None:
    """Would catch a crash at a run that was validated once, or never."""
    tree = drawn(
        charts.lines("a", [Series("one", [(100, 0.5)], Style()), Series("two", [], Style(1))], **SAID)
    )
    assert len(marks(tree, "dot")) == 1
    assert len(marks(tree, "series")) == 1
    empty = drawn(charts.lines("b", [Series("two", [(1, None)], Style())], **SAID))
    assert "nothing was logged" in texts(empty)


def test_bands_need_two_points_and_log_scales_no_zero() -> None:
    """Would catch a band down to zero on a log scale, which lies infinitely deep."""
    one = Series("one", [(0, 1.0), (1, 0.1), (2, 0.0)], Style(), band=[(0, 0.5, 1.5), (1, -0.1, 0.3)])
    tree = drawn(charts.lines("a", [one], **SAID, log=True))
    assert len(marks(tree, "band")) == 1
    assert len(marks(tree, "dot")) == 2
    alone = Series("one", [(0, 1.0), (1, 2.0)], Style(), band=[(0, 0.5, 1.5)])
    assert not marks(drawn(charts.lines("a", [alone], **SAID)), "band")


def test_a_hidden_line_takes_no_room_from_the_shown_labels() -> None:
    """Would catch names that are pushed apart by lines nobody sees."""
    many = [Series(f"arm {i}", [(0, 0.5), (1, 0.5)], Style(i % 8), i, off=i > 0) for i in range(20)]
    tree = drawn(charts.lines("a", many, **SAID))
    assert len(marks(tree, "off")) == 19
    shown = next(g for g in marks(tree, "series") if "off" not in (g.get("class") or ""))
    label = next(element for element in shown.iter("text"))
    assert float(label.get("y") or 0) == pytest.approx(float(shown.get("data-y") or 1), abs=0.02)


# --- intervals ----------------------------------------------------------------------------------------------------


def test_a_filled_mark_means_that_zero_is_outside() -> None:
    """Would catch a difference that looks shown and is not."""
    rows = [
        Interval("clear", 0.2, 0.1, 0.3, "a"),
        Interval("unclear", 0.2, -0.1, 0.5, "b"),
        Interval("touches", 0.1, 0.0, 0.2, "c"),
        Interval("one seed", 0.2, None, None, "d"),
        Interval("none", None, None, None, "e"),
        Interval("broken", math.nan, math.nan, math.nan, "f"),
    ]
    tree = drawn(charts.forest("a", rows, title="t", text="", x_label="x", better="higher"))
    assert len(marks(tree, "row")) == len(rows)
    assert len(marks(tree, "dot")) == 4
    assert len(marks(tree, "hollow")) == 3
    assert "better →" in texts(tree)
    assert "← better" in texts(
        drawn(charts.forest("a", rows, title="t", text="", x_label="x", better="lower"))
    )


def test_a_reference_far_away_becomes_an_arrow() -> None:
    """Would catch a teacher that squeezes all differences of interest into a few pixels."""
    rows = [Interval("near", 0.01, 0.0, 0.02, ""), Interval("teacher", 5.0, 4.0, 6.0, "", reference=True)]
    tree = drawn(charts.forest("a", rows, title="t", text="", x_label="x", better=""))
    ticks = [float(t.replace("−", "-")) for t in texts(tree) if re.fullmatch(r"[−\d.]+", t)]
    assert max(ticks) < 0.1
    assert len(marks(tree, "dot")) == 2
    alone = drawn(charts.forest("a", rows[1:], title="t", text="", x_label="x", better=""))
    assert len(marks(alone, "whisker")) == 3, "the only row is no mere reference"


def test_a_second_interval_is_drawn_thin() -> None:
    """Would catch the interval over items in the place of the one over seeds."""
    tree = drawn(
        charts.forest(
            "a",
            [Interval("a", 1.0, 0.5, 1.5, "", wide=(0.1, 1.9))],
            title="t",
            text="",
            x_label="",
            better="",
        )
    )
    (thin,) = marks(tree, "thin")
    whole = [w for w in marks(tree, "whisker") if w is not thin and w.get("y1") == w.get("y2")]
    assert float(thin.get("x1") or 0) < float(whole[0].get("x1") or 0)


def test_strips_say_their_numbers() -> None:
    """Would catch an interval that a screen reader cannot read."""
    tree = drawn(charts.strip("a", -0.1, 0.2, 0.5, (-0.1, 0.5)))
    assert "+0.200, interval from -0.100 to +0.500" in [e.text for e in tree.iter("desc")]
    assert len(marks(tree, "whisker")) == 3
    assert len(marks(drawn(charts.strip("b", None, 0.2, None, (-1.0, 1.0))), "whisker")) == 0


# --- points -------------------------------------------------------------------------------------------------------


def point(name: str, x: float | None, y: float | None) -> Point:
    return Point(name, x, y, Style())


def test_the_front_by_hand() -> None:
    """Would catch a model on the front that another beats, and one that is left out."""
    points = [point("a", 1.0, 1.0), point("b", 2.0, 3.0), point("c", 3.0, 2.0), point("d", 4.0, 4.0)]
    assert [p.name for p in pareto(points, "higher")] == ["a", "b", "d"]
    assert [p.name for p in pareto(points, "lower")] == ["a"]
    twins = [point("a", 1.0, 1.0), point("b", 1.0, 1.0), point("c", 1.0, 0.5), point("d", None, 9.0)]
    assert [p.name for p in pareto([*twins, point("e", 0.1, math.nan)], "higher")] == ["a", "b"]


def test_points_draw_what_has_both_numbers() -> None:
    """Would catch a mark in a corner for an arm whose latency was not measured."""
    points = [point("a", 1.0, 1.0), point("b", None, 3.0), point("c", 3.0, math.nan), point("d", 0.0, 1.0)]
    assert len(marks(drawn(scatter("a", points, **SAID)), "dot")) == 2
    assert len(marks(drawn(scatter("a", points, **SAID, log=True)), "dot")) == 1
    assert "no arm has both numbers" in texts(drawn(scatter("a", points[1:2], **SAID)))


def test_many_points_at_one_place_get_a_key() -> None:
    """Would catch names that cover each other where twenty arms ship the same model."""
    points = [point(f"arm-{i}", 6616.0, 0.5 + i * 1e-4 if i < 19 else 0.9) for i in range(20)]
    tree = drawn(scatter("a", points, **SAID))
    assert len(marks(tree, "dot")) == 20
    assert len(marks(tree, "key")) == 20
    names = [text for text in texts(tree) if text.startswith("arm-")]
    assert names == [f"arm-{i}" for i in range(19, -1, -1)], "the key runs from the largest y to the smallest"
    few = drawn(scatter("a", [point("a", 1.0, 1.0), point("b", 2.0, 2.0)], **SAID))
    assert not marks(few, "key")


def test_what_is_not_on_the_front_is_hollow() -> None:
    """Would catch a front that only a line tells, which covers the marks."""
    points = [point("a", 1.0, 1.0), point("b", 2.0, 0.5), point("c", 3.0, 2.0)]
    tree = drawn(scatter("a", points, **SAID, front=pareto(points, "higher")))
    assert len(marks(tree, "hollow")) == 1
    assert len(marks(tree, "front")) == 1


def test_reliability_leaves_empty_bins_out() -> None:
    """Would catch a bin without items that is drawn at zero accuracy."""
    bins = [(0, None, None), (10, 0.2, 0.3), (0, None, None), (30, 0.9, 0.8)]
    tree = drawn(charts.reliability("a", bins, title="t", text="", style=Style()))
    assert len(marks(tree, "dot")) == 2
    tall = [float(rect.get("height") or 0) for rect in marks(tree, "share")]
    assert tall[1] == pytest.approx(3 * tall[0], rel=0.01)
    assert not marks(drawn(charts.reliability("b", [], title="t", text="", style=Style())), "dot")
