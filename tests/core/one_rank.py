"""One of two ranks, started by test_ranks.py: trains the toy task and part of a bench, and notes what came of it.

python one_rank.py FOLDER CASES      CASES: a JSON object, name -> settings of the toy task
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from kdzoo.fit import fit_stage
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch
from kdzoo.plan import Request, make_plan
from kdzoo.runs import Run, Stopped
from kdzoo.testing import toy
from kdzoo.testing.extensions import Stop
from kdzoo.workers import Options, run_all

STREAMS = ("train", "pool")


class FailsOnRankOne:
    @hookimpl
    def after_step(self, run: Run, batch: Batch) -> None:
        if run.step == 3 and run.device_info.rank == 1:
            raise RuntimeError("rank 1 is lost")


def train(folder: Path, settings: dict[str, Any], add: tuple[Any, ...] = ()) -> dict[str, Any]:
    run = toy.run(folder / os.environ["RANK"], settings=settings, add=add, streams=STREAMS)
    fit_stage(run)
    cost = {
        name: getattr(run.cost, name)
        for name in ("steps", "examples", "student_forwards", "teacher_forwards")
    }
    return {"ranks": run.device_info.ranks, "facts": run.facts, "logs": run.logs, "cost": cost}


def main() -> None:
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    said = {name: train(folder / name, settings) for name, settings in json.loads(sys.argv[2]).items()}

    # Stopped after 7 steps; then rank 1 has lost its folder, as on another machine, and rank 0 has the checkpoint.
    with suppress(Stopped):
        train(folder / "stopped", {}, (Stop(),))
    said["stopped"] = train(folder / "stopped", {})
    said["whole"] = train(folder / "whole", {})

    plan = make_plan(Request("hinton-kd", task="fashion-few-labels", seeds=1, smoke=True))
    spoken: list[str] = []
    root = Path(os.environ["KDZOO_HOME"])
    options = Options(root, jobs=0)
    made = run_all(plan.specs, options, lambda kind, spec, details: spoken.append(kind))
    again = run_all(plan.specs, options, lambda *_: None)
    said["bench"] = {
        "spoken": spoken,
        "errors": [manifest["error"] for manifest in made.values() if "error" in manifest],
        "reused": [[made[key]["reused"], again[key]["reused"]] for key in plan.specs],
        "metrics": [made[key]["metrics"] for key in plan.specs],
    }
    (folder / f"said-{rank}.json").write_text(json.dumps(said))

    train(folder / "fail", {}, (FailsOnRankOne(),))


if __name__ == "__main__":
    main()
