"""The tables a bench prints: arms with means and paired differences, then the verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from kdzoo.records import Record, RunRow

_SHOWN_COST = ("seconds",)


def summary(record: Record, arm: str, metric: str) -> tuple[float, float | None, int] | None:
    """(mean, standard deviation or None, seeds) of a metric of an arm over its finished runs."""
    values = [
        row.metrics[metric]["value"]
        for row in record.runs
        if row.arm == arm and row.status == "done" and row.metrics.get(metric, {}).get("value") is not None
    ]
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
    extra = [name for name in fidelity if name in present and name not in names]
    return [name for name in names if name in present] + extra


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table(record: Record) -> list[list[str]]:
    """Header and one row an arm, as text."""
    metrics = metric_columns(record)
    baseline = next((name for name, arm in record.arms.items() if arm["baseline"]), None)
    primary = metrics[0] if metrics else None
    heads = ["arm", "n"] + [name.removeprefix("test/") for name in metrics]
    if primary:
        heads.insert(3, "- student [95 %]")
        if baseline:
            heads.insert(4, f"- {baseline} [95 %]")
    heads += ["params", "Mflop", "ms", "train s"]
    rows = [heads]
    for arm in record.arms:
        cells = [arm + ("*" if record.arms[arm]["differs"] else "")]
        found = [summary(record, arm, metric) for metric in metrics]
        cells.append(str(max((f[2] for f in found if f), default=0)))
        cells += [_mean(f) for f in found]
        if primary:
            cells.insert(3, _interval(difference(record, arm, "student", primary)))
            if baseline:
                cells.insert(4, _interval(difference(record, arm, baseline, primary)))
        rows.append(cells + _costs([row for row in record.runs if row.arm == arm and row.status == "done"]))
    return rows


def _mean(found: tuple[float, float | None, int] | None) -> str:
    if found is None:
        return "-"
    mean, sd, _ = found
    return number(mean) if sd is None else f"{number(mean)} ± {number(sd)}"


def _interval(row: dict | None) -> str:
    if row is None or row["mean"] is None:
        return ""
    if row["low"] is None:
        return f"{row['mean']:+.3f}"
    return f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def _costs(rows: list[RunRow]) -> list[str]:
    ships = [facts for row in rows for facts in row.ships.values()]
    seconds = [row.cost["seconds"] for row in rows if "seconds" in row.cost]
    if not ships:
        return ["-"] * 4
    first = ships[0]
    return [
        f"{first['params']:,}",
        f"{first['flops'] / 1e6:.2f}",
        f"{first['latency_ms']:.2f}" if "latency_ms" in first else "-",
        f"{statistics.fmean(seconds):.1f}" if seconds else "-",
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
    print()
    print("\n".join(lines(table(record))))
    for name, arm in record.arms.items():
        if arm["differs"]:
            print(f"* {name} differs from the student arm in {', '.join(arm['differs'])}: {arm['why']}")
    shared = [row.arm for row in record.runs if row.seed is None]
    if shared:
        print(f"{', '.join(shared)}: one model shared by all seeds; intervals are conditional on it.")
    if record.claims:
        print("\nClaims of the paper, tested here:")
        for claim in record.claims:
            said = f"  {claim['claim']}. {claim['verdict']}: {claim['text'] or claim['label']}"
            if claim["estimate"] is not None and claim["low"] is not None:
                said += f" ({claim['estimate']:+.3f} [{claim['low']:+.3f}, {claim['high']:+.3f}], n = {claim['n']})"
            elif claim["why"]:
                said += f" ({claim['why']})"
            print(said)
    if record.paper:
        print("\nThe paper's numbers (another setting):")
        for result in record.paper:
            print(f"  {result['setting']}: {result['metric']} {result['value']} [{result['source']}]")
    if path is not None:
        print(f"\nrecord: {path}")
