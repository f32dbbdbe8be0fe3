"""What else there is to a model than its metric: closeness to the teacher, size and latency, calibration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from kdzoo.records import Record
from kdzoo.report import charts
from kdzoo.report.arms_view import ArmView, better, done_rows, mean, values
from kdzoo.report.figures import Figure, Gallery, short, toward
from kdzoo.report.scale import finite, wants_log
from kdzoo.report.scatter import Point, pareto, scatter
from kdzoo.report.table import cells, number, summary


def fidelity(record: Record, arms: Sequence[ArmView], metric: str) -> Gallery:
    """How close an arm is to the teacher, against how good it is."""
    names = sorted({name for row in record.runs for name in row.metrics if name.startswith("test/")})
    near = [
        n for n in names if short(n).partition("[")[0].endswith(("agreement", "teacher_kl")) and n != metric
    ]
    figures = []
    for i, name in enumerate(near):
        # The teacher is as close to itself as can be: its mark would say nothing and squeeze the others.
        points = [_point(record, arm, name, metric) for arm in arms if arm.name != "teacher"]
        reached = summary(record, "teacher", metric)
        points = [point for point in points if len(finite([point.x, point.y])) == 2]
        if not points:
            continue
        title = f"{short(metric)} against {short(name)}"
        picture = scatter(
            f"fidelity-{i}",
            points,
            title=title,
            text="; ".join(point.tip for point in points),
            x_label=f"{_closeness(name)}{toward(record, name).replace('better', 'closer')}",
            y_label=f"{short(metric)}{toward(record, metric)}",
        )
        caption = f"The teacher itself reaches {short(metric)} {number(reached[0])}." if reached else ""
        figures.append(Figure(title, picture, caption, len(points)))
    return Gallery(figures)


def _closeness(metric: str) -> str:
    name = short(metric)
    if name.partition("[")[0] == "teacher_kl":
        return f"{name}: distance from the teacher's probabilities, nats"
    return name if "teacher" in name else f"{name} with the teacher"


def _point(record: Record, arm: ArmView, x: str, y: str) -> Point:
    across, up = values(record, arm.name, x), values(record, arm.name, y)
    tip = f"{arm.name}: {short(x)} {number(mean(across))}, {short(y)} {number(mean(up))}, n = {len(up)}"
    seeds = list(zip(across, up, strict=True)) if len(up) > 1 else []
    return Point(arm.name, mean(across), mean(up), arm.style, seeds, tip, arm.main)


def fronts(record: Record, arms: Sequence[ArmView], metric: str) -> Gallery:
    """Quality against size and against latency, with those that no other arm beats in both."""
    way = better(record, metric)
    shown = dict(zip((row[0].value for row in cells(record)), cells(record), strict=True))
    figures = []
    for i, (title, axis_name, column) in enumerate(
        (
            ("size and quality", "parameters", -4),
            ("latency and quality", "milliseconds for one sample", -2),
        )
    ):
        points = []
        for arm in arms:
            size, found = shown[arm.name][column], summary(record, arm.name, metric)
            if isinstance(size.value, int | float) and found is not None:
                tip = f"{arm.name}: {size.text} {axis_name}, {short(metric)} {number(found[0])}"
                points.append(Point(arm.name, float(size.value), found[0], arm.style, (), tip, arm.main))
        if not points:
            continue
        best = pareto(points, way) if way else []
        names = ", ".join(point.name for point in best)
        picture = scatter(
            f"front-{i}",
            points,
            title=f"{short(metric)}: {title}",
            text="; ".join(point.tip for point in points),
            x_label=f"{axis_name}, fewer is cheaper",
            y_label=f"{short(metric)}{toward(record, metric)}",
            log=wants_log([point.x for point in points], 5.0),
            front=best,
        )
        caption = f"On the front, beaten by no other arm in both: {names}." if best else ""
        if not way:
            caption = (
                "No front is drawn: the task is not installed here, so it is unknown which way is better."
            )
        figures.append(Figure(title, picture, caption, len(points)))
    return Gallery(figures)


# --- calibration ------------------------------------------------------------------------------------------------


def calibration(
    record: Record, arms: Sequence[ArmView], stored: dict[str, dict]
) -> tuple[Gallery, list[str]]:
    """Reliability diagrams of every arm and role, and the arms whose bins are stored nowhere.

    Args:
        stored: bins by key of the evaluation's artefact, for records made before they were kept in the record.
    """
    figures: list[Figure] = []
    absent: list[str] = []
    for arm in arms:
        found: dict[str, list[dict]] = defaultdict(list)
        for row in done_rows(record, arm.name):
            for role, bins in (row.reliability or stored.get(row.items or "", {})).items():
                found[role].append(bins)
        if not found and done_rows(record, arm.name):
            absent.append(arm.name)
        for role, several in found.items():
            name = arm.name if len(found) == 1 else f"{arm.name} [{role}]"
            bins = pooled(several)
            items = sum(count for count, _, _ in bins)
            error = sum(count * abs(a - c) for count, a, c in bins if a is not None and c is not None) / (
                items or 1
            )
            over = sum(count * (c - a) for count, a, c in bins if a is not None and c is not None) / (
                items or 1
            )
            said = f"{'more' if over > 0 else 'less'} sure than right, by {abs(over):.3f} on average"
            picture = charts.reliability(
                f"calibration-{len(figures)}",
                bins,
                title=f"reliability of {name}",
                text=f"{said}; gap over pooled seeds {error:.3f}",
                style=arm.style,
            )
            figures.append(Figure(name, picture, said, sum(1 for count, _, _ in bins if count)))
    return Gallery(figures), absent


def pooled(several: Sequence[dict]) -> list[tuple[int, float | None, float | None]]:
    """Bins of several seeds put together: (count, accuracy, confidence)."""
    size = max((len(bins["count"]) for bins in several), default=0)
    whole: list[tuple[int, float | None, float | None]] = []
    for i in range(size):
        parts = [
            (bins["count"][i], bins["accuracy"][i], bins["confidence"][i])
            for bins in several
            if len(bins["count"]) == size and bins["count"][i]
        ]
        count = sum(part[0] for part in parts)
        right = sum(part[0] * part[1] for part in parts)
        sure = sum(part[0] * part[2] for part in parts)
        whole.append((count, right / count if count else None, sure / count if count else None))
    return whole
