"""Train the teacher that ships for a task.

    python tools/train_teacher.py emoji-scenes --model deeplabv3p-r18-s --steps 2500 --lr 0.005

It is the arm `student` of the task's baseline with another architecture and length: the task's own data, loss, engine
and schedule, by kdzoo's own plan. The last step counts; val is only looked at and test never opened. Written beside the
task's data: TASK-teacher.safetensors (float32) and TASK-teacher.json (settings, val metrics, hashes). What belongs into
the [teacher] block of the task's card is printed. One thread; the same torch on the same kind of processor gives the
same weights. An interrupted training goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file

from kdzoo import catalog
from kdzoo.artefacts import Store, dump_json, file_hash, home, write_atomic
from kdzoo.cards import Baseline
from kdzoo.errors import KdzooError
from kdzoo.plan import Request, make_plan
from kdzoo.report.progress import Progress
from kdzoo.workers import Options, run_all

FRAMEWORKS = {"segmentation": "onedl-mmsegmentation", "llm": "transformers"}
"""Plugin -> the distribution that trains there."""
LARGEST = 8_700_000  # bytes of a teacher in the package


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task")
    parser.add_argument("--model", required=True, help="the teacher's architecture, as the task names it")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further settings of the task")
    parser.add_argument("--out", type=Path, help="default: data/files of the task's plugin")
    given = parser.parse_args()

    settings = {
        "student": given.model,
        "steps": given.steps,
        "lr": given.lr,
        "weight_decay": given.weight_decay,
        "batch": given.batch,
    }
    cards = catalog.load()
    task = cards.task(given.task)
    out = given.out or cards.paths[given.task].parents[1] / "data/files"
    if not isinstance(task.kd, Baseline):
        raise KdzooError(
            f"task {given.task!r} has no baseline to plan a training with; its card says {task.kd!r}"
        )
    plan = make_plan(
        Request(
            task.kd.method,
            task=given.task,
            arms="student",
            seeds=1,
            first_seed=given.seed,
            set=(*(f"{key}={value}" for key, value in settings.items()), *given.set),
        )
    )
    fit = next(spec for spec in plan.runs[("student", given.seed)] if spec.stage.name == "fit")
    with Progress() as progress:
        made = run_all({fit.key: fit}, Options(home(), 1), progress.event)[fit.key]
    if "error" in made:
        raise KdzooError(f"the training failed: {made['error']}")

    framework = FRAMEWORKS.get(task.plugin, "torch")
    weights = Store(home()).folder(fit.key) / "student.safetensors"
    content = weights.read_bytes()
    if len(content) > LARGEST:
        raise KdzooError(
            f"{given.model} has {len(content):,} bytes of weights, expected at most {LARGEST:,}: the package would "
            "grow too large. Choose a smaller model."
        )
    path = out / f"{given.task}-teacher.safetensors"
    options = [(key, value) for key, value in vars(given).items() if key not in ("task", "out", "set")]
    command = f"python tools/train_teacher.py {given.task}" + "".join(
        f" --{key.replace('_', '-')} {value}" for key, value in [*options, *(("set", one) for one in given.set)]
    )
    info = {
        "command": command,
        "task": given.task,
        **settings,
        **({"set": given.set} if given.set else {}),
        "seed": given.seed,
        "parameters": sum(value.numel() for value in load_file(weights).values()),
        "val": {name: curve[-1][1] for name, curve in made["curves"].items() if name.startswith("val/")},
        "data_sha256": plan.data_hash(fit),
        "torch": torch.__version__,
        "framework": f"{framework} {version(framework)}",
        "python": platform.python_version(),
        "licence": "Apache-2.0",
    }
    info["sha256"] = write_atomic(path, content)
    write_atomic(out / f"{given.task}-teacher.json", dump_json(info))
    print(f"{path}: {len(content):,} bytes, {info['val']}")
    print("[teacher]")
    print(f'file = "../data/files/{path.name}"\nsha256 = "{file_hash(path)}"\ncommand = "{command}"')


if __name__ == "__main__":
    try:
        main()
    except KdzooError as error:
        sys.exit(f"train_teacher: {error}")
