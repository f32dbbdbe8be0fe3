"""The charts of a report, as inline SVG: curves, intervals, reliability diagrams; `scatter` has those of points.

Every function takes numbers and names and returns markup. What is None or not finite has no place and is not drawn;
the number of marks is the number of finite points. Text that belongs to a mark is its tooltip (an SVG title).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from kdzoo.report.scale import Axis, axis, finite, spread
from kdzoo.report.svg import CHARACTER, DASHES, Style, clip, label, marker, path, picture, rule, tag

WIDE = 880.0  # units of a full-width chart; the page scales it down, not below 620 px
LONGEST = 30  # characters of a name in a chart


@dataclass(frozen=True, slots=True)
class Series:
    """One line. `points` are (x, y); `band` (x, low, high) around it; `off` is drawn but hidden until asked for."""

    name: str
    points: Sequence[tuple[float, float | None]]
    style: Style
    key: int = 0
    band: Sequence[tuple[float, float, float]] = ()
    off: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """One row of a forest plot; `wide` are the ends of a second interval, drawn thin.

    A `reference` does not stretch the axis: where it lies beyond the others, an arrow points to it.
    """

    name: str
    mean: float | None
    low: float | None
    high: float | None
    text: str
    style: Style = field(default_factory=Style)
    wide: tuple[float, float] | None = None
    tip: str = ""
    reference: bool = False


def frame(x: Axis, y: Axis, x_label: str, y_label: str, ticks: tuple[int, int] = (7, 5)) -> list[Markup]:
    """Grid, ticks and names of the axes."""
    bottom, left = y.start, x.start
    parts = []
    for value, text in y.ticks(ticks[1]):
        place_y = y.at(value)
        parts += [
            rule(left, place_y, x.end, place_y, "grid"),
            label(left - 7, place_y, text, "end", "tick"),
        ]
    for value, text in x.ticks(ticks[0]):
        place_x = x.at(value)
        parts += [
            rule(place_x, bottom, place_x, bottom + 4, "axis"),
            label(place_x, bottom + 14, text, "middle", "tick"),
        ]
    parts.append(rule(left, bottom, x.end, bottom, "axis"))
    if x_label:
        parts.append(label((left + x.end) / 2, bottom + 32, x_label, "middle", "name"))
    if y_label:
        parts.append(label(left - 40, y.end - 13, y_label, "start", "name"))
    return parts


def lines(
    name: str,
    series: Sequence[Series],
    *,
    title: str,
    text: str,
    x_label: str,
    y_label: str,
    log: bool = False,
    width: float = WIDE,
    height: float = 380.0,
    labels: bool = True,
    y_values: Sequence[float] = (),
) -> Markup:
    """Curves with their bands; with `labels`, each line carries its name at its end.

    Args:
        y_values: further values that the axis must hold, so that several charts can share one.
    """
    small = width < WIDE / 2
    ends = [clip(one.name, LONGEST) for one in series]
    gutter = max(map(len, ends), default=0) * CHARACTER + 26 if labels else 10
    top, bottom, left = (8.0, 24.0, 42.0) if small else (26.0, 44.0, 54.0)
    low_high = [value for one in series for _, low, high in one.band for value in (low, high)]
    whole = [y for one in series for _, y in one.points]
    y = axis([*whole, *(v for v in low_high if not log or v > 0), *y_values], height - bottom, top, log=log)
    x = axis([at for one in series for at, _ in one.points], left, width - gutter, pad=0.0, include=[0.0])
    kept = [[(a, b) for a, b in one.points if finite([b]) and (not log or (b or 0) > 0)] for one in series]
    shown = [i for i, one in enumerate(series) if kept[i] and not one.off]
    wanted = {i: y.at(kept[i][-1][1] or 0.0) for i in range(len(series)) if kept[i]}
    places = dict(zip(shown, spread([wanted[i] for i in shown], 14, 20, height - 20), strict=True))
    parts = frame(x, y, x_label, y_label, (4, 5) if small else (7, 5))
    for i, one in enumerate(series):
        if not kept[i]:
            continue
        dash = DASHES[one.style.dash % len(DASHES)]
        points = [(x.at(a), y.at(b or 0.0)) for a, b in kept[i]]
        inside: list[Markup] = [tag("title", one.text or one.name)]
        floor = y.low if log else None
        band = [(a, low if floor is None else max(low, floor), high) for a, low, high in one.band]
        if len(band) > 1:
            upper = [(x.at(a), y.at(high)) for a, _, high in band]
            lower = [(x.at(a), y.at(low)) for a, low, _ in reversed(band)]
            inside.append(path(upper + lower, "band", closed=True))
        inside.append(path(points, "line", stroke_dasharray=dash))
        if len(points) <= 24 and not small:
            inside += [marker(one.style.marker, a, b, 3.2, "dot") for a, b in points]
        if labels:
            end_x, end_y = points[-1]
            at = places.get(i, wanted[i])
            inside.append(path([(end_x + 5, end_y), (x.end + 16, at)], "leader"))
            inside.append(label(x.end + 20, at, ends[i], class_="label end"))
        hidden = " off" if one.off else ""
        more = (
            {"data_x": x.end + 16, "data_from": points[-1][0] + 5, "data_y": points[-1][1]} if labels else {}
        )
        parts.append(tag("g", *inside, class_=f"series s{one.style.hue}{hidden}", data_arm=one.key, **more))
    if not any(kept):
        parts.append(label(width / 2, height / 2, "nothing was logged", "middle", "name"))
    bounds = {"data_low": 20, "data_high": height - 20} if labels else {}
    return picture(name, width, height, title, text, [tag("g", *parts, class_="plot", **bounds)])


def forest(
    name: str, rows: Sequence[Interval], *, title: str, text: str, x_label: str, better: str
) -> Markup:
    """Means with their intervals, one row each, around 0; a filled mark where the interval leaves 0 out."""
    names = [clip(row.name, LONGEST) for row in rows]
    left = max(map(len, names), default=0) * CHARACTER + 24
    right = max((len(row.text) for row in rows), default=0) * CHARACTER + 20
    step, top = 26.0, 34.0
    height = top + step * len(rows) + 42
    measure = [row for row in rows if not row.reference and finite([row.mean])] or rows
    values = [v for row in measure for v in (row.mean, row.low, row.high, *(row.wide or ()))]
    x = axis(values, left, WIDE - right, include=[0.0])
    bottom = top + step * len(rows)
    parts = [
        tag("rect", x=0, y=top + step * i, width=WIDE, height=step, class_="stripe")
        for i in range(0, len(rows), 2)
    ]
    for value, said in x.ticks(6):
        parts += [
            rule(x.at(value), top, x.at(value), bottom, "grid"),
            label(x.at(value), bottom + 13, said, "middle", "tick"),
        ]
    parts += [rule(x.at(0.0), top - 6, x.at(0.0), bottom + 4, "zero")]
    parts.append(label((x.start + x.end) / 2, bottom + 30, x_label, "middle", "name"))
    if better:
        arrow = "better →" if better == "higher" else "← better"
        anchor = "start" if better == "higher" else "end"
        parts.append(label(x.at(0.0) + (6 if better == "higher" else -6), top - 16, arrow, anchor, "name"))
    for i, row in enumerate(rows):
        y = top + step * (i + 0.5)
        inside = [tag("title", row.tip or f"{row.name}: {row.text}"), label(left - 12, y, names[i], "end")]
        if finite([row.mean]) and row.mean is not None:
            inside += _interval(row, x, y)
        inside.append(label(WIDE - right + 14, y, row.text, class_="label"))
        parts.append(tag("g", *inside, class_=f"row s{row.style.hue}"))
    return picture(name, WIDE, height, title, text, parts, "forest")


def _interval(row: Interval, x: Axis, y: float) -> list[Markup]:
    """Mean and intervals of a row, as far as the axis reaches; an arrow where the mean lies beyond it."""
    assert row.mean is not None
    if not x.low <= row.mean <= x.high:
        end, sign = (x.end, 1.0) if row.mean > x.high else (x.start, -1.0)
        return [path([(end - sign * 9, y - 5), (end, y), (end - sign * 9, y + 5)], "dot", closed=True)]

    def at(value: float) -> float:
        return x.at(min(max(value, x.low), x.high))

    parts = []
    if row.wide and len(finite(row.wide)) == 2:
        parts.append(rule(at(row.wide[0]), y + 6, at(row.wide[1]), y + 6, "whisker thin"))
    clear = False
    if row.low is not None and row.high is not None and len(finite([row.low, row.high])) == 2:
        clear = row.low > 0 or row.high < 0
        parts.append(rule(at(row.low), y, at(row.high), y, "whisker"))
        parts += [rule(at(end), y - 4, at(end), y + 4, "whisker") for end in (row.low, row.high)]
    parts.append(marker(row.style.marker, x.at(row.mean), y, 4.6, "dot" if clear else "dot hollow"))
    return parts


def reliability(
    name: str,
    bins: Sequence[tuple[int, float | None, float | None]],
    *,
    title: str,
    text: str,
    style: Style,
    size: float = 210.0,
) -> Markup:
    """Accuracy against confidence, bin by bin, with the share of the items of each bin below.

    Args:
        bins: (count, accuracy, mean confidence) of bins of equal width on 0..1; None in an empty bin.
    """
    x, y = Axis(0.0, 1.0, 34, size - 8), Axis(0.0, 1.0, size - 34, 10)
    whole = sum(count for count, _, _ in bins) or 1
    parts = []
    for value in (0.0, 0.5, 1.0):
        parts += [
            rule(x.start, y.at(value), x.end, y.at(value), "grid"),
            label(x.start - 6, y.at(value), f"{value:g}", "end", "tick"),
            label(x.at(value), y.start + 12, f"{value:g}", "middle", "tick"),
        ]
    parts.append(rule(x.at(0.0), y.at(0.0), x.at(1.0), y.at(1.0), "diagonal"))
    edge = 1 / max(1, len(bins))
    spots = []
    for i, (count, accuracy, confidence) in enumerate(bins):
        if not count or accuracy is None or confidence is None:
            continue
        tip = f"{count} items between {i * edge:.2f} and {(i + 1) * edge:.2f}: "
        tip += f"sure of {confidence:.3f}, right in {accuracy:.3f}"
        tall = (y.start - y.end) * 0.22 * count / whole
        spot = (x.at(confidence), y.at(accuracy))
        bar_left, bar_right = x.at(i * edge), x.at((i + 1) * edge)
        parts.append(
            tag("rect", x=bar_left, y=y.start - tall, width=bar_right - bar_left, height=tall, class_="share")
        )
        parts.append(rule(spot[0], y.at(confidence), *spot, "gap"))
        parts.append(marker(style.marker, *spot, 3.4, "dot", tag("title", tip)))
        spots.append(spot)
    parts.append(path(spots, "line") if len(spots) > 1 else Markup(""))
    parts.append(label((x.start + x.end) / 2, size - 8, "confidence", "middle", "name"))
    return picture(name, size, size, title, text, [tag("g", *parts, class_=f"s{style.hue}")], "reliability")


def strip(name: str, low: float | None, mean: float, high: float | None, ends: tuple[float, float]) -> Markup:
    """An interval around 0 in one line of text; `ends` are the ends of the axis, shared by all strips."""
    x = axis([*ends], 6, 154, include=[0.0])
    parts = [rule(x.at(0.0), 3, x.at(0.0), 21, "zero"), rule(6, 12, 154, 12, "grid")]
    said = f"{mean:+.3f}"
    if low is not None and high is not None and len(finite([low, high])) == 2:
        parts.append(rule(x.at(low), 12, x.at(high), 12, "whisker"))
        parts += [rule(x.at(end), 8, x.at(end), 16, "whisker") for end in (low, high)]
        said += f", interval from {low:+.3f} to {high:+.3f}"
    parts.append(marker(0, x.at(mean), 12, 4, "dot"))
    return picture(name, 160, 24, "estimate and its interval", said, parts, "strip")
