"""What a bench's record becomes as pictures; the drawing itself is in `charts`."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from kdzoo.records import Record, RunRow
from kdzoo.report import charts
from kdzoo.report.arms_view import ArmView, better, done_rows, shown_at_first
from kdzoo.report.charts import Interval, Series
from kdzoo.report.scale import finite, wants_log
from kdzoo.report.svg import Style, swatch
from kdzoo.report.table import difference, number, signed

_MOST_POINTS = 160  # of one line: more than a line's pixels show nothing new
_TERM_HUES = (0, 2, 3, 4, 5, 6, 7)
_LOG_FROM = 20.0  # a range of values from which a log scale shows more


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart and what stands around it. `marks` is how many data points it shows."""

    title: str
    picture: Markup
    caption: str = ""
    marks: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a legend."""

    name: str
    key: int
    swatch: Markup
    off: bool = False


@dataclass(frozen=True, slots=True)
class Gallery:
    """Charts that belong together. `first` is shown, `more` on demand; `legend` switches lines in all of them."""

    first: list[Figure] = field(default_factory=list)
    more: list[Figure] = field(default_factory=list)
    legend: list[Entry] = field(default_factory=list)
    note: str = ""


def short(metric: str) -> str:
    """A metric's name without the split that a section has named already."""
    return metric.removeprefix("test/").removeprefix("val/")


def toward(record: Record, metric: str) -> str:
    way = better(record, metric)
    return f", {way} is better" if way else ""


# --- differences ------------------------------------------------------------------------------------------------


def forests(
    record: Record, arms: Sequence[ArmView], metrics: Sequence[str], against: Sequence[str]
) -> Gallery:
    """Paired differences of every arm to the student and to the baseline; the first metric first."""
    first: list[Figure] = []
    more: list[Figure] = []
    for metric in metrics:
        for other in against:
            rows = [
                _difference_row(found, arm, other)
                for arm in arms
                if (found := difference(record, arm.name, other, metric)) is not None
            ]
            if not rows:
                continue
            way = better(record, metric)
            title = f"{short(metric)}: difference to {other}"
            figure = Figure(
                title,
                charts.forest(
                    f"forest-{len(first) + len(more)}",
                    rows,
                    title=title,
                    text="; ".join(f"{row.name} {row.text}" for row in rows),
                    x_label=f"{short(metric)}, arm minus {other}",
                    better=way or "",
                ),
                marks=len(finite(row.mean for row in rows)),
            )
            (first if metric == metrics[0] else more).append(figure)
    return Gallery(first, more)


def _difference_row(found: dict, arm: ArmView, other: str) -> Interval:
    low, high = found["low"], found["high"]
    text = "no seed in common" if found["mean"] is None else signed(found["mean"], low, high)
    tip = f"{arm.name} minus {other}: {text} over {found['n']} seeds"
    wide = None
    if found.get("items_low") is not None and found.get("items_high") is not None:
        wide = (found["items_low"], found["items_high"])
        tip += f"; over test items [{wide[0]:+.3f}, {wide[1]:+.3f}]"
    return Interval(arm.name, found["mean"], low, high, text, arm.style, wide, tip, arm.name == "teacher")


# --- curves -----------------------------------------------------------------------------------------------------


def curves(record: Record, arms: Sequence[ArmView]) -> Gallery:
    """Validation metrics over steps: mean over seeds with a band of one standard deviation."""
    names = list(dict.fromkeys(name for row in record.runs for name in row.curves))
    names.sort(key=lambda name: name not in {f"val/{short(m)}" for m in _primary(record)})
    visible = shown_at_first(
        record, [arm for arm in arms if any(r.curves for r in done_rows(record, arm.name))]
    )
    figures = []
    for i, metric in enumerate(names):
        lines = []
        for arm in arms:
            rows = done_rows(record, arm.name)
            points, band = averaged([row.curves.get(metric, []) for row in rows])
            if points:
                last = number(points[-1][1])
                tip = (
                    f"{arm.name}: {last} at step {points[-1][0]:g}, {len(rows)} seed{'s' * (len(rows) != 1)}"
                )
                off = arm.name not in visible
                lines.append(Series(arm.name, points, arm.style, arm.key, band, off, tip))
        if not lines:
            continue
        title = f"{short(metric)} on validation data"
        picture = charts.lines(
            f"curve-{i}",
            lines,
            title=title,
            text="last values: " + "; ".join(line.text for line in lines),
            x_label="optimiser steps",
            y_label=f"{metric}{toward(record, metric)}",
        )
        figures.append(Figure(title, picture, marks=sum(len(line.points) for line in lines)))
    drawn = [arm for arm in arms if any(row.curves for row in done_rows(record, arm.name))]
    legend = [Entry(arm.name, arm.key, arm.swatch, arm.name not in visible) for arm in drawn]
    return Gallery(figures[:1], figures[1:], legend)


def _primary(record: Record) -> list[str]:
    return [c["metric"] for c in record.comparisons[:1]]


def averaged(
    runs: Iterable[Sequence[tuple[float, float | None]]],
) -> tuple[list[tuple[float, float]], list[tuple[float, float, float]]]:
    """(mean at each step, (step, mean - sd, mean + sd) where two seeds or more have the step)."""
    at: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        for step, value in run:
            at[step] += finite([value])
    steps = thinned(sorted(step for step, found in at.items() if found))
    points = [(step, statistics.fmean(at[step])) for step in steps]
    band = [
        (step, middle - statistics.stdev(at[step]), middle + statistics.stdev(at[step]))
        for step, middle in points
        if len(at[step]) > 1
    ]
    return points, band


def thinned(steps: list[float]) -> list[float]:
    """At most `_MOST_POINTS` of them, evenly, with the last."""
    every = -(-len(steps) // _MOST_POINTS)
    return steps if every <= 1 else [*steps[:-1:every], steps[-1]]


# --- loss terms -------------------------------------------------------------------------------------------------


def terms(record: Record, arms: Sequence[ArmView]) -> Gallery:
    """One small chart an arm, with its loss terms as they entered the sum; one scale for all arms."""
    return term_charts([(arm.name, done_rows(record, arm.name)) for arm in arms])


def term_charts(named: Sequence[tuple[str, Sequence[RunRow]]], prefix: str = "loss/") -> Gallery:
    """See `terms`; `prefix` picks the values that were logged under it. One arm alone gets a large chart."""
    every = {key for _, rows in named for row in rows for key in row.losses if key.startswith(prefix)}
    ordered = sorted(every, key=lambda key: (key != "loss/task", key))
    styles = {
        key: Style(_TERM_HUES[i % len(_TERM_HUES)], i // len(_TERM_HUES), i) for i, key in enumerate(ordered)
    }
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, rows in named:
        lines = {key: averaged([row.losses.get(key, []) for row in rows])[0] for key in ordered}
        if lines := {key: points for key, points in lines.items() if points}:
            found[name] = lines
    alone = len(named) == 1
    numbers = [value for lines in found.values() for points in lines.values() for _, value in points]
    log = wants_log(numbers, _LOG_FROM)
    span = [min(numbers), max(numbers)] if numbers else []
    figures = []
    for i, (name, lines) in enumerate(found.items()):
        series = [
            Series(key.removeprefix(prefix), points, styles[key], ordered.index(key))
            for key, points in lines.items()
        ]
        said = "; ".join(
            f"{one.name} from {one.points[0][1]:.3g} to {one.points[-1][1]:.3g}" for one in series
        )
        picture = charts.lines(
            f"term-{prefix.strip('/')}-{i}",
            series,
            title=f"loss terms of {name}",
            text=said,
            x_label="optimiser steps" if alone else "",
            y_label="",
            log=log,
            width=charts.WIDE if alone else 290.0,
            height=300.0 if alone else 180.0,
            labels=alone,
            y_values=span,
        )
        figures.append(Figure(name, picture, said, sum(len(one.points) for one in series)))
    legend = [Entry(key.removeprefix(prefix), i, swatch(styles[key])) for i, key in enumerate(ordered)]
    note = "The scale is logarithmic: equal distances are equal ratios." if log else ""
    return Gallery(figures, [], legend, note)
