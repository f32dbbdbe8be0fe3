"""Train the teacher that ships for a task of kdzoo_segmentation.

    python tools/train_segmentation_teacher.py emoji-scenes --model psp-r18x3-s --steps 4000 --lr 0.005 --half

It is the arm `student` of the task's baseline with another architecture and length: the task's own data, loss, engine
and schedule, by kdzoo's own plan. The last step counts; val is only looked at and test never opened. Written beside the
task's data: TASK-teacher.safetensors (float32, or with --half float16, which is half the bytes and loads into float32)
and TASK-teacher.json (settings, hashes, val metrics of the weights as they are stored). What belongs into
the [teacher] block of the task's card is printed. One thread; the same torch on the same kind of processor gives the
same weights. An interrupted training goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load, save
from trained_alone import train_alone

from kdzoo import catalog
from kdzoo.artefacts import dump_json, file_hash, write_atomic
from kdzoo.cards import Baseline, TaskCard
from kdzoo.errors import KdzooError
from kdzoo.settings import Settings
from kdzoo_segmentation import models
from kdzoo_segmentation.segmentation import Scores

OUT = Path(__file__).parents[1] / "plugins/segmentation/src/kdzoo_segmentation/data/files"
LARGEST = 3_500_000  # bytes of a teacher in the package


def rounded(content: bytes) -> bytes:
    """Weights with their float32 tensors as float16."""
    small = {
        name: value.half() if value.dtype == torch.float32 else value for name, value in load(content).items()
    }
    if wild := [name for name, value in small.items() if not value.float().isfinite().all()]:
        raise KdzooError(f"float16 cannot hold {wild[0]}: store float32, without --half")
    return save(small)


def measured(task: TaskCard, name: str, content: bytes, settings: Settings) -> dict[str, float | None]:
    """The metrics of stored weights on val."""
    model = models.build(name, classes=task.sizes["classes"], channels=task.sizes["channels"])
    model.load_state_dict(load(content))
    run: Any = SimpleNamespace(cfg=settings)
    data = catalog.load().module(task.slug).data(run, "val")
    score = Scores(task.sizes["classes"], task.sizes["boundary"], False)
    with torch.no_grad():
        for rows in torch.arange(len(data)).split(16):
            batch = data.collate(data.items, rows, None)
            score.add(model.eval()(batch.views["image"]).logits, batch.labels)
    return {f"val/{metric}": value for metric, value in score.values().items()}


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
    parser.add_argument("--half", action="store_true", help="store float16")
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
    content = trained.weights.read_bytes()
    if given.half:
        content = rounded(content)
    if len(content) > LARGEST:
        raise KdzooError(
            f"{given.model} has {len(content):,} bytes of weights, expected at most {LARGEST:,}: the package would "
            "grow too large. Choose a smaller model."
        )
    path = given.out / f"{given.task}-teacher.safetensors"
    options = vars(given).items()
    command = f"python tools/train_segmentation_teacher.py {given.task}" + "".join(
        f" --{key.replace('_', '-')} {value}" for key, value in options if key not in ("task", "out", "half")
    )
    command += " --half" * given.half
    info = {
        "command": command,
        "task": given.task,
        **settings,
        "seed": given.seed,
        "parameters": sum(value.numel() for value in load(content).values()),
        "dtype": "float16" if given.half else "float32",
        "val": measured(task, given.model, content, Settings(trained.settings)),
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
