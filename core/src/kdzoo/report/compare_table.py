"""What ``kdzoo compare`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdzoo.compare import Comparison, TaskPart
from kdzoo.report.table import lines, number, signed


def print_comparison(whole: Comparison, path: Path | None) -> None:
    """The whole answer on stdout: a table a task, all differences, ranks and tests."""
    if whole.smoke:
        print("SMOKE RUN: a few steps to see that everything works; the numbers mean nothing.\n")
    for slug, part in whole.tasks.items():
        print(f"{', '.join(whole.methods)} on {slug}: {part.metric}, {part.better} is better\n")
        print("\n".join(lines(arm_table(whole, slug, part))))
        print(f"\n{matrix_title(part)}")
        print("\n".join(lines(matrix(whole, part))) + "\n")
    if whole.ranks:
        order = sorted(whole.ranks, key=lambda method: whole.ranks[method])
        said = ", ".join(f"{method} {whole.ranks[method]:.2f}" for method in order)
        count = len(whole.blocks)
        print(f"Mean ranks over {count} block{'' if count == 1 else 's'} (task, seed), 1 is best: {said}")
    if whole.friedman is not None and whole.critical_difference is not None:
        test = whole.friedman
        print(f"Friedman: chi2({test['df']}) = {test['statistic']:.2f}, p = {p_value(test['p'])}")
        print(
            f"Nemenyi: mean ranks that are more than {whole.critical_difference:.2f} apart differ at the 5 % level"
        )
    for note in whole.notes:
        print(f"- {note}")
    if path is not None:
        print(f"\ndata: {path}\nplot: {path.with_suffix('.svg')}")


def arm_table(whole: Comparison, slug: str, part: TaskPart) -> list[list[str]]:
    """Header and one row an arm."""
    heads = ["arm", "n", part.metric.partition("/")[2], "- student [95 %]"]
    if part.baseline:
        heads.append(f"- {part.baseline} [95 %]")
    rows = [[*heads, "mean rank"]]
    for row in part.rows:
        mean = number(row.mean) + ("" if row.sd is None else f" ± {number(row.sd)}")
        cells = [row.arm, str(row.n), mean, _interval(row.to_student)]
        if part.baseline:
            cells.append(_interval(row.to_baseline))
        placed = [b["ranks"][row.arm] for b in whole.blocks if b["task"] == slug and row.arm in b["ranks"]]
        rows.append([*cells, f"{sum(placed) / len(placed):.2f}" if placed else ""])
    return rows


def matrix_title(part: TaskPart) -> str:
    tested = sum(one.p_holm is not None for one in part.differences)
    if not tested:
        return "Paired differences, row minus column (too few seeds to test them):"
    pairs = f"{tested} pair{'' if tested == 1 else 's'}"
    return f"Paired differences, row minus column (p of a paired t test, Holm-corrected over {pairs}):"


def matrix(whole: Comparison, part: TaskPart) -> list[list[str]]:
    """Every method against every other: the mean difference and its corrected p."""
    known = {one.arms: (one.mean, one.p_holm) for one in part.differences}
    known |= {(b, a): (None if mean is None else 0.0 - mean, p) for (a, b), (mean, p) in known.items()}
    rows = [["", *whole.methods]]
    for mine in whole.methods:
        cells = [mine]
        for other in whole.methods:
            mean, p = known.get((mine, other), (None, None))
            if mean is None:
                cells.append("." if mine == other else "-")
            else:
                cells.append(f"{mean:+.3f}" + ("" if p is None else f" ({p_value(p)})"))
        rows.append(cells)
    return rows


def p_value(p: float) -> str:
    """Three digits, and no false zero."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _interval(row: dict[str, Any] | None) -> str:
    return "" if row is None or row["mean"] is None else signed(row["mean"], row["low"], row["high"])
