"""What the programs share that train weights to be shipped: the arm `student` of a task, by kdzoo's own plan.

The task's own data, loss, engine and schedule; the last step counts, val is only looked at and test never opened. One
thread. An interrupted training goes on when the command is given again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdzoo.artefacts import Store, home
from kdzoo.errors import KdzooError
from kdzoo.plan import Request, make_plan
from kdzoo.report.progress import Progress
from kdzoo.workers import Options, run_all


class Trained(NamedTuple):
    """What came of it.

    Attributes:
        weights: a safetensors file, float32.
        val: name -> last value of every metric on val.
        data: hash of the task's data under the settings.
        settings: all of them, the task's and what was changed.
    """

    weights: Path
    val: dict[str, float]
    data: str
    settings: Mapping[str, Any]


def train_alone(task: str, method: str, settings: Mapping[str, Any], seed: int) -> Trained:
    """Train a task's student with these settings.

    Args:
        task: its slug.
        method: of the task, to plan a bench with; its own arms are not trained.
        settings: what differs from the task's defaults.
        seed: of the run.
    """
    plan = make_plan(
        Request(
            method,
            task=task,
            arms="student",
            seeds=1,
            first_seed=seed,
            set=tuple(f"{key}={value}" for key, value in settings.items()),
        )
    )
    fit = next(spec for spec in plan.runs[("student", seed)] if spec.stage.name == "fit")
    with Progress() as progress:
        made = run_all({fit.key: fit}, Options(home(), 1), progress.event)[fit.key]
    if "error" in made:
        raise KdzooError(f"the training failed: {made['error']}")
    val = {name: curve[-1][1] for name, curve in made["curves"].items() if name.startswith("val/")}
    weights = Store(home()).folder(fit.key) / "student.safetensors"
    return Trained(weights, val, plan.data_hash(fit), fit.settings)
