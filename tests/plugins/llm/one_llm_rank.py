"""One of two ranks, started by test_sharding.py: trains small Llamas on tiny instructions and notes what came of it.

python one_llm_rank.py FOLDER CASES     FOLDER/data: data and models as `tiny_papers` writes them;
                                        CASES: a JSON object, name -> [method, settings]
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdzoo.artefacts import Store
from kdzoo.errors import KdzooError
from kdzoo.execute import execute, open_run
from kdzoo.fit import fit_stage
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch
from kdzoo.plan import Request, make_plan
from kdzoo.plugins import register
from kdzoo.roles import state_hash
from kdzoo.runs import Run, Stopped

SMALL = {
    "steps": 4, "teacher_steps": 0, "batch": 8, "accumulate": 1, "labelled": 32, "measured": 4, "warmup": 0,
    "eval_every": 2, "student": "llama-xs", "prompt_length": 20, "answer_length": 24,
}  # fmt: skip


class Held:
    """Notes how many numbers this rank holds of the trained weights and of what the optimiser keeps of them."""

    @hookimpl
    def after_step(self, run: Run, batch: Batch) -> None:
        assert run.current_optimizer is not None
        state = run.current_optimizer.state
        tensors = [part for weight, kept in state.items() for part in (weight, *kept.values())]
        run.facts["held"] = sum(getattr(part, "_local_tensor", part).numel() for part in tensors)


class StopsAfterTwo:
    @hookimpl
    def after_step(self, run: Run, batch: Batch) -> None:
        run.stopping = run.step == 1 and run.device_info.main  # the signal has reached one rank only


class Careless:
    @hookimpl
    def prepare_batch(self, run: Run, batch: Batch) -> None:
        run.models["student"](batch.views["text"])


def train(folder: Path, data: Path, method: str, changes: dict[str, Any], add: tuple[Any, ...] = ()) -> Run:
    """The stage `fit` of a method on infinity-instruct, in a folder; it goes on from a checkpoint there. The teacher
    lies beside the data."""
    settings = {**SMALL, "teacher": data / "llama", "vocabulary": data / "llama", **changes}
    request = Request(
        method,
        task="infinity-instruct",
        profile="paper",
        arms=method,
        seeds=1,
        set=tuple(f"{name}={value}" for name, value in settings.items()),
        data_root=str(data),
    )
    stages = {spec.stage.name: spec for spec in make_plan(request).runs[(method, 0)]}
    store = Store(data / "home")
    execute(stages["teacher"], store)
    folder.mkdir(parents=True, exist_ok=True)
    run = open_run(stages["fit"], store, folder)
    run.checkpoint_seconds = float("inf")
    for place, part in enumerate((Held(), *add)):
        assert not register(run.manager, part, f"extension:{place}")
    fit_stage(run)
    return run


def noted(run: Run) -> dict[str, Any]:
    student = run.models["student"]
    return {
        "ranks": run.device_info.ranks,
        "facts": run.facts,
        "logs": run.logs,
        "curves": run.curves,
        "plain": all(type(weight) is nn.Parameter for weight in student.parameters()),
        "hash": state_hash(student),
    }


def main() -> None:
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    cases: dict[str, Any] = json.loads(sys.argv[2])
    data = folder / "data"
    said = {name: noted(train(folder / name / rank, data, *case)) for name, case in cases.items()}

    case = cases["shard"]
    stopped = folder / "stopped" / rank
    with suppress(Stopped):
        train(stopped, data, *case, add=(StopsAfterTwo(),))
    if rank == "0":
        shutil.copytree(stopped, folder / "checkpoint")
    said["stopped"] = noted(train(stopped, data, *case))

    try:
        train(folder / "careless" / rank, data, *case, add=(Careless(),))
    except KdzooError as error:
        said["careless"] = {"error": str(error)}
    (folder / f"said-{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
