"""Train the teacher that ships for a task of kdzoo_llm.

    python tools/train_llm_teacher.py told-rule

It is the stage `teacher` that a bench would make if nothing were shipped: the task's own data, loss and engine under
the settings of [teacher.set] in the task's card, which ``--set`` may change. The last step counts; val is only looked
at and test never opened. Written beside the task's data: TASK-teacher.safetensors (half precision) and TASK-
teacher.json (settings, val metrics, hashes). What belongs into the [teacher] block of the card is printed. One
thread; the same torch on the same kind of processor gives the same weights. An interrupted training goes on when the
command is given again.
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from kdzoo import catalog, execute
from kdzoo.artefacts import Store, dump_json, file_hash, home, key_of, write_atomic
from kdzoo.cards import TaskCard
from kdzoo.errors import KdzooError
from kdzoo.method import Role, Stage, fit_stage
from kdzoo.runs import StageSpec
from kdzoo.settings import defined, parse_assignments, resolve

OUT = Path(__file__).parents[1] / "plugins/llm/src/kdzoo_llm/data/files"
LARGEST = 3_500_000  # bytes of a teacher in the package


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = catalog.load().task(given.task)
    if task.teacher is None:
        raise KdzooError(f"task {task.slug!r} has no teacher in its card: add a [teacher] block.")

    spec = teacher_spec(task, given.set, given.seed)
    spec = replace(spec, key=key_of(execute.key_content(spec, execute.data_hash(spec))))
    store = Store(home())
    made = execute.execute(spec, store, report=_show)
    trained = load_file(store.folder(spec.key) / "student.safetensors")

    path = given.out / f"{task.slug}-teacher.safetensors"
    state = {name: value.half() if value.is_floating_point() else value for name, value in trained.items()}
    save_file(state, path)
    path.chmod(0o644)  # safetensors writes for the owner alone; a wheel keeps the mode
    if (size := path.stat().st_size) > LARGEST:
        path.unlink()
        raise KdzooError(
            f"the teacher has {size:,} bytes, more than the {LARGEST:,} that may ship. Choose a smaller model."
        )
    settings = dict(spec.settings)
    val = {name: points[-1][1] for name, points in made["curves"].items() if name.startswith("val/")}
    description = {
        "command": " ".join(["python", "tools/train_llm_teacher.py", *sys.argv[1:]]),
        "task": task.slug,
        "settings": settings,
        "parameters": sum(value.numel() for value in state.values()),
        "dtype": "float16 on disk, float32 in use",
        "seconds": round(made["cost"]["seconds"]),
        "val": rounded(spec, path, store),
        "val_before_rounding": val,
        "data_hash": execute.data_hash(spec),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "machine": platform.machine(),
        "sha256": file_hash(path),
    }
    write_atomic(path.with_suffix(".json"), dump_json(description))
    print(f'file = "../data/files/{path.name}"\nsha256 = "{description["sha256"]}"')
    print(f'command = "{description["command"]}"\nval {description["val"]}\n{size:,} bytes')


def teacher_spec(task: TaskCard, assignments: list[str], seed: int) -> StageSpec:
    """The stage `teacher` of a bench on this task, as if no file were shipped."""
    assert task.teacher is not None
    user = parse_assignments(assignments, defined(task, None))
    values = {**resolve(task, None, {}, {}), **task.teacher.set}
    values |= {name: values[source] for name, source in task.teacher.follow.items()} | user
    roles = (Role("student", "train", "init:teacher", seed),)
    stage = fit_stage("teacher", seeded=False, roles=roles)
    return StageSpec(
        key="",
        task=task.slug,
        method=None,
        arm="teacher",
        seed=None,
        stage=stage,
        settings=values,
        roles=roles,
        ships=("student",),
        needs={},
    )


def rounded(spec: StageSpec, path: Path, store: Store) -> dict[str, float]:
    """The metrics on val of the weights as they are on disk."""
    from safetensors.torch import load_model

    from kdzoo import roles

    with TemporaryDirectory() as folder:
        stage: Stage = replace(spec.stage, name="rounded")
        run = execute.open_run(replace(spec, stage=stage), store, Path(folder))
        roles.build(run)
        load_model(run.models["student"], str(path))
        run.models["student"].eval()
        with torch.no_grad():
            parts = run.hook.evaluate(run=run, split="val")
    return {
        f"val/{name}": metric.value
        for part in parts
        for name, metric in part.items()
        if metric.value is not None
    }


def _show(said: dict[str, object]) -> None:
    print(f"\r{said.get('step')} of {said.get('steps')}, {said.get('metric')}   ", end="", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KdzooError as error:
        sys.exit(f"train_llm_teacher: {error}")
