"""The arms of a record as a report shows them: their order, their signs, what must be said of each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from kdzoo.cards import MethodCard, TaskCard
from kdzoo.metric_names import Better, better_of, parse
from kdzoo.records import Record, RunRow
from kdzoo.report.svg import DASHES, MARKERS, Style, swatch
from kdzoo.report.table import arm_names, baseline_of

STUDENT, TEACHER, BASELINE, METHOD = Style(0, 0, 0), Style(1, 2, 3), Style(2, 1, 1), Style(3, 0, 2)
_OTHER_HUES = (4, 5, 6, 7)
_SHOWN_AT_FIRST = 7  # lines that can be told apart at a glance


@dataclass(frozen=True, slots=True)
class ArmView:
    """One arm. `key` is its place in the table; `tags` are words that must stand beside its name."""

    name: str
    key: int
    style: Style
    swatch: Markup
    text: str
    tags: tuple[str, ...]
    why: str
    main: bool


def arms_view(record: Record) -> list[ArmView]:
    """All arms, in the order of the table. No two look alike, up to 28 others beside the four that have a name."""
    baseline, method = baseline_of(record), record.id["method"]
    found: list[ArmView] = []
    others = 0
    for key, name in enumerate(arm_names(record)):
        arm = record.arms[name]
        tags = []
        named = {"student": STUDENT, "teacher": TEACHER, method: METHOD}
        if name in named:
            style = named[name]
        elif name == baseline:
            style = BASELINE
        else:
            style = _other(others)
            others += 1
        if name == baseline:
            tags.append("baseline")
        if arm.get("control"):
            tags.append("control")
        if arm["differs"]:
            tags.append(f"differs: {', '.join(arm['differs'])}")
        main = name in named or name == baseline
        found.append(
            ArmView(
                name, key, style, swatch(style), arm.get("text", ""), tuple(tags), arm.get("why", ""), main
            )
        )
    return found


def _other(index: int) -> Style:
    """Hues, markers and dashes in cycles of 4, 7 and 4 x 4: the three repeat together after 112."""
    dash = index // len(_OTHER_HUES) % len(DASHES)
    return Style(_OTHER_HUES[index % len(_OTHER_HUES)], dash, (index + 4) % len(MARKERS))


def shown_at_first(record: Record, arms: Iterable[ArmView]) -> set[str]:
    """The arms whose curves are visible before anybody asks: all, or the main ones and controls where they are many."""
    arms = list(arms)
    if len(arms) <= _SHOWN_AT_FIRST:
        return {arm.name for arm in arms}
    first = [arm.name for arm in arms if arm.main or record.arms[arm.name].get("control")]
    return set(first[:_SHOWN_AT_FIRST])


def done_rows(record: Record, arm: str) -> list[RunRow]:
    return [row for row in record.runs if row.arm == arm and row.status == "done"]


def values(record: Record, arm: str, metric: str) -> list[float | None]:
    """A metric of every finished run of an arm, seed by seed; None where it is undefined."""
    return [row.metrics.get(metric, {}).get("value") for row in done_rows(record, arm)]


def mean(numbers: Iterable[float | None]) -> float | None:
    kept = [number for number in numbers if number is not None and math.isfinite(number)]
    return statistics.fmean(kept) if kept else None


def directions_of(record: Record) -> dict[str, Better]:
    """Which way is better, by metric: core's metrics, and the task's where its card is installed."""
    from kdzoo.arms import CORE_METRICS, directions

    task = task_card(record)
    return dict(CORE_METRICS) if task is None else dict(directions(task))


def better(record: Record, metric: str) -> Better | None:
    """Which way a metric is better, or None where no card says it."""
    from kdzoo.errors import KdzooError

    try:
        return better_of(parse(metric), directions_of(record))
    except KdzooError:
        return None


def task_card(record: Record) -> TaskCard | None:
    """The task's card as installed here, or None: a record may come from another machine."""
    from kdzoo import catalog

    return catalog.load().tasks.get(record.id["task"])


def method_card(record: Record) -> MethodCard | None:
    """The method's card as installed here, or None."""
    from kdzoo import catalog

    return catalog.load().methods.get(record.id["method"])
