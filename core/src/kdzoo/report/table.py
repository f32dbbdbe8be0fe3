"""The tables a bench prints: arms with means and paired differences, then the verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from kdzoo.records import Record, RunRow


class Cell(NamedTuple):
    """What a table shows and the number behind it; None sorts after every number."""

    text: str
    value: float | str | None


def arm_names(record: Record) -> list[str]:
    """Arms in the order in which they were planned: teacher, student, baseline, method, variants.

    A record's file has its `arms` sorted by name; its runs keep the order.
    """
    return list(dict.fromkeys([*(row.arm for row in record.runs if row.arm in record.arms), *record.arms]))


def summary(record: Record, arm: str, metric: str) -> tuple[float, float | None, int] | None:
    """(mean, standard deviation or None, seeds) of a metric of an arm over its finished runs."""
    values = [
        row.metrics[metric]["value"]
        for row in record.runs
        if row.arm == arm and row.status == "done" and row.metrics.get(metric, {}).get("value") is not None
    ]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)


def difference(record: Record, arm: str, other: str, metric: str) -> dict | None:
    return next((c for c in record.comparisons if c["arms"] == [arm, other] and c["metric"] == metric), None)


def metric_columns(record: Record) -> list[str]:
    """Test metrics in the order in which they were compared, then core's fidelity."""
    names = list(dict.fromkeys(c["metric"] for c in record.comparisons))
    present = {name for row in record.runs for name in row.metrics}
    fidelity = ("test/agreement", "test/teacher_kl", "test/ece")
    if not names:  # nothing to compare with: the student alone has failed
        names = sorted(name for name in present if name.startswith("test/") and name not in fidelity)
    extra = [name for name in fidelity if name in present and name not in names]
    return [name for name in names if name in present] + extra


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def heads(record: Record) -> list[str]:
    """The heads of the columns of `cells`."""
    metrics, baseline = metric_columns(record), baseline_of(record)
    found = ["arm", "n"] + [name.removeprefix("test/") for name in metrics]
    if metrics:
        found.insert(3, "- student [95 %]")
        if baseline:
            found.insert(4, f"- {baseline} [95 %]")
    return [*found, "params", "Mflop", "ms", "train s"]


def baseline_of(record: Record) -> str | None:
    """The arm of the task's plain baseline, where it was run."""
    return next((name for name, arm in record.arms.items() if arm["baseline"]), None)


def cells(record: Record) -> list[list[Cell]]:
    """One row an arm, one cell a column of `heads`."""
    metrics, baseline = metric_columns(record), baseline_of(record)
    found = []
    for arm in arm_names(record):
        values = [summary(record, arm, metric) for metric in metrics]
        seeds = max((value[2] for value in values if value), default=0)
        marks = ("*" if record.arms[arm]["differs"] else "") + (
            "†" if record.arms[arm].get("control") else ""
        )
        row = [Cell(arm + marks, arm), Cell(str(seeds), seeds)]
        row += [_mean(value) for value in values]
        if metrics:
            row.insert(3, _interval(difference(record, arm, "student", metrics[0])))
            if baseline:
                row.insert(4, _interval(difference(record, arm, baseline, metrics[0])))
        found.append(row + _costs([row for row in record.runs if row.arm == arm and row.status == "done"]))
    return found


def table(record: Record) -> list[list[str]]:
    """Header and one row an arm, as text."""
    return [heads(record), *([cell.text for cell in row] for row in cells(record))]


def _mean(found: tuple[float, float | None, int] | None) -> Cell:
    if found is None:
        return Cell("-", None)
    mean, sd, _ = found
    return Cell(number(mean) if sd is None else f"{number(mean)} ± {number(sd)}", mean)


def _interval(row: dict | None) -> Cell:
    if row is None or row["mean"] is None:
        return Cell("", None)
    return Cell(signed(row["mean"], row["low"], row["high"]), row["mean"])


def signed(mean: float, low: float | None, high: float | None) -> str:
    """``+0.010 [-0.009, +0.028]``; without ends, the mean alone."""
    return f"{mean:+.3f}" if low is None or high is None else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _costs(rows: list[RunRow]) -> list[Cell]:
    ships = next((list(row.ships.values()) for row in rows if row.ships), [])
    seconds = [row.cost["seconds"] for row in rows if "seconds" in row.cost]
    if not ships:
        return [Cell("-", None)] * 4
    # An arm that ships several models costs what all of them cost.
    params, flops = (sum(facts[name] for facts in ships) for name in ("params", "flops"))
    latency = sum(facts["latency_ms"] for facts in ships) if all("latency_ms" in s for s in ships) else None
    spent = statistics.fmean(seconds) if seconds else None
    return [
        Cell(f"{params:,}", params),
        Cell(f"{flops / 1e6:.2f}", flops),
        Cell(number(latency, 2), latency),
        Cell(number(spent, 1), spent),
    ]


def lines(rows: Iterable[list[str]]) -> list[str]:
    """Cells in columns, left aligned."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def print_record(record: Record, path: Path | None) -> None:
    """The whole answer of a bench on stdout."""
    which = record.id
    print(
        f"{which['method']} on {which['task']} (fidelity: {which['fidelity']}; profile: {which['profile']})"
    )
    if which["smoke"]:
        print("SMOKE RUN: a few steps to see that everything works; the numbers mean nothing.")
    if signals := record.config.get("request", {}).get("signals"):
        print(f"Teacher signals: {signals}.")
    print()
    print("\n".join(lines(table(record))))
    for name, arm in record.arms.items():
        if arm["differs"]:
            print(f"* {name} differs from the student arm in {', '.join(arm['differs'])}: {arm['why']}")
    for name, arm in record.arms.items():
        if arm.get("control"):
            print(f"† {name} is a control: {arm['text']}")
    for name, why in record.config.get("left_out", {}).items():
        print(f"control {name} is left out: {why}")
    shared = [row.arm for row in record.runs if row.seed is None]
    if shared:
        print(f"{', '.join(shared)}: one model shared by all seeds; intervals are conditional on it.")
    if record.claims:
        print("\nClaims of the paper, tested here:")
        for claim in record.claims:
            said = f"  {claim['claim']}. {claim['verdict']}: {claim['text'] or claim['label']}"
            if claim["estimate"] is not None and claim["low"] is not None:
                said += f" ({signed(claim['estimate'], claim['low'], claim['high'])}, n = {claim['n']})"
            elif claim["why"]:
                said += f" ({claim['why']})"
            print(said)
    if record.paper:
        print("\nThe paper's numbers (another setting):")
        for result in record.paper:
            print(f"  {result['setting']}: {result['metric']} {result['value']} [{result['source']}]")
    if path is not None:
        print(f"\nrecord: {path}")
