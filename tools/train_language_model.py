"""Train weights that ship with kdzoo_llm: the teacher of a task, or a base model that its students start from.

    python tools/train_language_model.py verses verses-teacher --method token-kd --model llama-m --set steps=2000

It is the arm `student` of the task with another architecture, length or data (`tools/trained_alone.py`). Written beside
the task's data, as model-NAME: the weights in half precision, and a JSON file that says of which architecture and
vocabulary they are, how they were made, and their hash. What belongs into the [teacher] block of a task's card is
printed; as a student or a base they are the model ``shipped:NAME``.
"""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from trained_alone import train_alone

from kdzoo import catalog
from kdzoo.artefacts import dump_json, write_atomic
from kdzoo.errors import KdzooError
from kdzoo_llm.vocabularies import FILES, open_vocabulary

LARGEST = 3_500_000  # bytes of a model in the package


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task")
    parser.add_argument("name", help="of the files: model-NAME")
    parser.add_argument("--method", required=True, help="a method of the task, to plan with")
    parser.add_argument("--model", required=True, help="the architecture, a name in MODELS")
    parser.add_argument("--set", nargs="*", default=[], help="settings that differ from the task's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FILES)
    given = parser.parse_args()

    changed = dict(pair.split("=", 1) for pair in given.set)
    trained = train_alone(given.task, given.method, {**changed, "student": given.model}, given.seed)
    weights = {name: value.half() for name, value in load_file(trained.weights).items()}
    content = save(weights)
    if len(content) > LARGEST:
        raise KdzooError(
            f"{given.model} has {len(content):,} bytes of weights, expected at most {LARGEST:,}: the package would "
            "grow too large. Choose a smaller model."
        )
    params = catalog.load().task(given.task).params
    vocabulary = open_vocabulary(str(changed.get("vocabulary", params["vocabulary"].default)))
    command = " ".join(
        [
            f"python tools/train_language_model.py {given.task} {given.name} --method {given.method}",
            f"--model {given.model} --seed {given.seed}",
            *([f"--set {' '.join(given.set)}"] if given.set else []),
        ]
    )
    info = {
        "architecture": given.model,
        "vocabulary": vocabulary.name,
        "vocabulary_hash": vocabulary.hash,
        "command": command,
        "task": given.task,
        "set": changed,
        "seed": given.seed,
        "parameters": sum(value.numel() for value in weights.values()),
        "val": trained.val,
        "data_sha256": trained.data,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "licence": "Apache-2.0",
    }
    path = given.out / f"model-{given.name}.safetensors"
    info["sha256"] = write_atomic(path, content)
    write_atomic(path.with_suffix(".json"), dump_json(info))
    print(f"{path.name}: {len(content):,} bytes, {trained.val}")
    print("[teacher]")
    print(f'file = "../data/files/{path.name}"\nsha256 = "{info["sha256"]}"\ncommand = "{command}"')


if __name__ == "__main__":
    try:
        main()
    except KdzooError as error:
        sys.exit(f"train_language_model: {error}")
