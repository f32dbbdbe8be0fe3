"""Train the teacher that ships for a task of kdzoo_segmentation.

    python tools/train_segmentation_teacher.py emoji-scenes --model deeplabv3p-r18-s --steps 2500 --lr 0.005

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
from trained_alone import train_alone

from kdzoo import catalog
from kdzoo.artefacts import dump_json, file_hash, write_atomic
from kdzoo.cards import Baseline
from kdzoo.errors import KdzooError

OUT = Path(__file__).parents[1] / "plugins/segmentation/src/kdzoo_segmentation/data/files"
LARGEST = 3_500_000  # bytes of a teacher in the package


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task")
    parser.add_argument("--model", required=True, help="the teacher's architecture, a name in SPECS")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()

    settings = {
        "student": given.model,
        "steps": given.steps,
        "lr": given.lr,
        "weight_decay": given.weight_decay,
        "batch": given.batch,
    }
    task = catalog.load().task(given.task)
    if not isinstance(task.kd, Baseline):
        raise KdzooError(
            f"task {given.task!r} has no baseline to plan a training with; its card says {task.kd!r}"
        )
    trained = train_alone(given.task, task.kd.method, settings, given.seed)
    weights = trained.weights
    content = weights.read_bytes()
    if len(content) > LARGEST:
        raise KdzooError(
            f"{given.model} has {len(content):,} bytes of weights, expected at most {LARGEST:,}: the package would "
            "grow too large. Choose a smaller model."
        )
    path = given.out / f"{given.task}-teacher.safetensors"
    options = vars(given).items()
    command = f"python tools/train_segmentation_teacher.py {given.task}" + "".join(
        f" --{key.replace('_', '-')} {value}" for key, value in options if key not in ("task", "out")
    )
    info = {
        "command": command,
        "task": given.task,
        **settings,
        "seed": given.seed,
        "parameters": sum(value.numel() for value in load_file(weights).values()),
        "val": trained.val,
        "data_sha256": trained.data,
        "torch": torch.__version__,
        "mmsegmentation": version("onedl-mmsegmentation"),
        "python": platform.python_version(),
        "licence": "Apache-2.0",
    }
    info["sha256"] = write_atomic(path, content)
    write_atomic(given.out / f"{given.task}-teacher.json", dump_json(info))
    print(f"{path}: {len(content):,} bytes, {info['val']}")
    print("[teacher]")
    print(f'file = "../data/files/{path.name}"\nsha256 = "{file_hash(path)}"\ncommand = "{command}"')


if __name__ == "__main__":
    try:
        main()
    except KdzooError as error:
        sys.exit(f"train_segmentation_teacher: {error}")
