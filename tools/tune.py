"""Search settings of one arm on validation data; the test split is never opened.

    python tools/tune.py hinton-kd --task fashion-few-labels --grid kd_weight=0.25,1,4 --seeds 2 \
        --out benchmarks/tuning/hinton-kd.fashion-few-labels.json

Every combination of the grid is trained for every seed (seeds 100, 101, ... : not those of the records), and the
primary metric at the last step on `val` is averaged. Prints a table, best first. Search the baselines with grids of
the same size as the method's.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from pathlib import Path
from typing import Any

from kdzoo import catalog
from kdzoo.artefacts import dump_json, home, write_atomic
from kdzoo.errors import KdzooError
from kdzoo.plan import Request, make_plan
from kdzoo.report.progress import Progress
from kdzoo.runs import StageSpec
from kdzoo.workers import Options, run_all

FIRST_SEED = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method")
    parser.add_argument("--task", required=True)
    parser.add_argument("--arm", help="default: the method's own; 'student' for the student alone")
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=V1,V2", help="values to combine")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    arm = given.arm or given.method
    axes = [(key, values.split(",")) for key, _, values in (text.partition("=") for text in given.grid)]
    task = catalog.load().task(given.task)
    primary = next(name for name, metric in task.metrics.items() if metric.primary)
    better = task.metrics[primary].better
    fits: dict[tuple[str, ...], list[str]] = {}
    specs: dict[str, StageSpec] = {}
    for values in itertools.product(*(choices for _, choices in axes)):
        point = tuple(f"{key}={value}" for (key, _), value in zip(axes, values, strict=True))
        request = Request(
            given.method,
            task=given.task,
            arms=arm,
            seeds=given.seeds,
            first_seed=FIRST_SEED,
            set=(*given.set, *point),
        )
        plan = make_plan(request)
        for seed in range(FIRST_SEED, FIRST_SEED + given.seeds):
            stages = [spec for spec in plan.runs[(arm, seed)] if spec.stage.name != "evaluate"]
            specs |= {spec.key: spec for spec in stages}
            fits.setdefault(point, []).append(stages[-1].key)
    with Progress() as progress:
        made = run_all(specs, Options(home(), given.jobs), progress.event)
    rows: list[dict[str, Any]] = []
    for point, keys in fits.items():
        reached = [made[key]["curves"][f"val/{primary}"][-1][1] for key in keys if "error" not in made[key]]
        failed = [made[key]["error"] for key in keys if "error" in made[key]]
        mean = statistics.fmean(reached) if reached else None
        rows.append({"set": list(point), "mean": mean, "values": reached, "failed": failed})
    rows.sort(key=lambda row: (row["mean"] is None, (row["mean"] or 0) * (-1 if better == "higher" else 1)))
    for row in rows:
        shown = "failed" if row["mean"] is None else f"{row['mean']:.4f}"
        print(
            f"{shown}  {' '.join(row['set']) or '(as in the card)'}  {[round(v, 4) for v in row['values']]}"
        )
    if given.out:
        head = {"method": given.method, "arm": arm, "task": given.task, "metric": f"val/{primary}"}
        seeds = list(range(FIRST_SEED, FIRST_SEED + given.seeds))
        command = "python " + " ".join(sys.argv)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(
            given.out, dump_json({**head, "seeds": seeds, "set": given.set, "command": command, "rows": rows})
        )


if __name__ == "__main__":
    try:
        main()
    except KdzooError as error:
        sys.exit(f"tune: {error}")
