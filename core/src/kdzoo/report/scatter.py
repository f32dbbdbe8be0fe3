"""Scatter plots: arms as points with their names, and the front of those that no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from markupsafe import Markup

from kdzoo.report.charts import LONGEST, WIDE, frame
from kdzoo.report.placing import Box, place
from kdzoo.report.scale import Axis, axis, finite
from kdzoo.report.svg import CHARACTER, Style, clip, label, marker, path, picture, tag

_KEY_STEP = 17.0  # px from one line of a key to the next


@dataclass(frozen=True, slots=True)
class Point:
    """One arm in a scatter plot, at the mean; `seeds` are its single runs, drawn small."""

    name: str
    x: float | None
    y: float | None
    style: Style
    seeds: Sequence[tuple[float | None, float | None]] = ()
    tip: str = ""
    main: bool = False


def pareto(points: Sequence[Point], better: Literal["higher", "lower"]) -> list[Point]:
    """Those that no other beats: none is at most as large and at least as good, and better in one of the two."""
    sign = 1.0 if better == "higher" else -1.0
    known = [p for p in points if len(finite([p.x, p.y])) == 2]

    def beaten(one: Point) -> bool:
        assert one.x is not None
        assert one.y is not None
        return any(
            other.x <= one.x
            and sign * other.y >= sign * one.y
            and (other.x < one.x or sign * other.y > sign * one.y)
            for other in known
            if other.x is not None and other.y is not None
        )

    return sorted((p for p in known if not beaten(p)), key=lambda p: (p.x or 0.0, p.y or 0.0))


def scatter(
    name: str,
    points: Sequence[Point],
    *,
    title: str,
    text: str,
    x_label: str,
    y_label: str,
    log: bool = False,
    front: Sequence[Point] = (),
    height: float = 380.0,
) -> Markup:
    """Arms as points, each with its name beside it; where they are too many for that, with a key at the side.

    The key runs from the largest y to the smallest. `front` is joined by steps; what is not on it is hollow.
    """
    known = [p for p in points if len(finite([p.x, p.y])) == 2 and (not log or (p.x or 0) > 0)]
    known.sort(key=lambda p: -(p.y or 0.0))
    names = [clip(p.name, LONGEST) for p in known]
    height = max(height, _KEY_STEP * len(known) + 40)
    x, y, dots, near = _layout(known, names, 30.0, height, log, every=True)
    key = None in near
    gutter = max(map(len, names), default=0) * CHARACTER + 44
    if key:
        x, y, dots, near = _layout(known, names, gutter, height, log, every=False)
    parts = frame(x, y, x_label, y_label)
    if len(front) > 1:
        steps = [(x.at(front[0].x or 0.0), y.at(front[0].y or 0.0))]
        for a, b in pairwise(front):
            steps += [(x.at(b.x or 0.0), y.at(a.y or 0.0)), (x.at(b.x or 0.0), y.at(b.y or 0.0))]
        parts.append(path(steps, "front"))
    best = {point.name for point in front}
    marks: list[tuple[bool, Markup]] = []
    for i, (point, (left, up), said, at) in enumerate(zip(known, dots, names, near, strict=True)):
        inside = [tag("title", point.tip or point.name)]
        for seed_x, seed_y in point.seeds:
            if len(finite([seed_x, seed_y])) == 2 and (not log or (seed_x or 0) > 0):
                inside.append(
                    tag("circle", cx=x.at(seed_x or 0.0), cy=y.at(seed_y or 0.0), r=2.0, class_="speck")
                )
        if at is not None:
            inside.append(label(at[0], at[1], said))
        hollow = "" if point.name in best or not front else " hollow"
        if key:
            row = 28 + _KEY_STEP * i
            inside.append(marker(point.style.marker, x.end + 26, row, 4.6, f"key{hollow}"))
            inside.append(label(x.end + 38, row, said))
        inside.append(marker(point.style.marker, left, up, 5.2, f"dot{hollow}"))
        marks.append((not hollow, tag("g", *inside, class_=f"point s{point.style.hue}")))
    parts += [mark for _, mark in sorted(marks, key=lambda one: one[0])]  # the front lies in front
    if not known:
        parts.append(label(WIDE / 2, height / 2, "no arm has both numbers", "middle", "name"))
    return picture(name, WIDE, height, title, text, parts, "scatter")


def _layout(
    known: Sequence[Point], names: Sequence[str], gutter: float, height: float, log: bool, every: bool
) -> tuple[Axis, Axis, list[tuple[float, float]], list[tuple[float, float] | None]]:
    """Axes, places of the points, and of the names that find room beside theirs; without `every`, the main ones'."""
    spots = [(a, b) for p in known for a, b in ((p.x, p.y), *p.seeds)]
    x = axis([a for a, _ in spots], 58, WIDE - gutter, log=log, pad=0.08)
    y = axis([b for _, b in spots], height - 46, 28, pad=0.08)
    dots = [(x.at(p.x or 0.0), y.at(p.y or 0.0)) for p in known]
    taken = [Box(a - 7, b - 6, a + 7, b + 6) for a, b in dots]
    bounds = Box(x.start, y.end - 14, x.end + (gutter - 4 if every else 12), y.start - 2)
    wanted = [
        len(said) * CHARACTER if every or p.main else None for p, said in zip(known, names, strict=True)
    ]
    return x, y, dots, place(dots, wanted, taken, bounds)
