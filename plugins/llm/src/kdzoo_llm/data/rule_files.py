"""The arithmetic task of "Enabling Large Language Models to Learn from Rules" in the files of its official repository.

Every set is two JSON files with the same rows in the same order: NAME_full_... has the rule and three examples as its
"instruction", NAME_no_... an empty one. See `LAYOUT`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kdzoo.data_layout import layout_error
from kdzoo.errors import KdzooError
from kdzoo_llm.data.examples import Example

SHOTS = (4, 8, 16, 32)
DRAWS = (1234, 2345, 3456, 4567, 5678)  # of the validation rows
SIDES = ("full", "no")  # with the rule, without
FIELDS = ("instruction", "input", "output")


@dataclass(frozen=True)
class RuleFiles:
    """What `kdzoo.data_layout` wants to know."""

    title: str = "rule-distillation, arithmetic"
    folders: tuple[str, ...] = ("math_experiments",)
    home: str = "https://github.com/RUCBM/rule-distillation, folder data"
    terms: str = "MIT"
    gigabytes: float = 0.001
    layout: str = (
        "math_experiments/\n"
        "  train_full_<shots>shot.json, train_no_<shots>shot.json\n"
        "  valid_full_<shots>shot_seed<draw>.json, valid_no_<shots>shot_seed<draw>.json\n"
        "  test_full_id.json, test_no_id.json, test_full_ood.json, test_no_ood.json\n"
        'each a list of {"instruction", "input", "output"}; equal rows in equal order in both files of a pair'
    )


LAYOUT = RuleFiles()


class Told(NamedTuple):
    """A row: the example without the rule, and the instruction that holds the rule."""

    example: Example
    instruction: str


def load(root: Path, split: str, shots: int, draw: int) -> list[Told]:
    """The rows of a split.

    Args:
        root: holds ``math_experiments``, or ``data/math_experiments``.
        split: "train", "val" or "test"; ids of test rows are ``test/id/<n>`` and ``test/ood/<n>``.
        shots: of train and val.
        draw: of val.

    Raises:
        KdzooError: a file is missing or has another form; the two files of a pair have other rows.
    """
    names = {
        "train": {"": f"train_{{}}_{shots}shot.json"},
        "val": {"": f"valid_{{}}_{shots}shot_seed{draw}.json"},
        "test": {part: f"test_{{}}_{part}.json" for part in ("id", "ood")},
    }[split]
    folder = next((found for found in (root, root / "data") if (found / LAYOUT.folders[0]).is_dir()), root)
    rows: list[Told] = []
    for part, name in names.items():
        full, plain = (_read(folder / LAYOUT.folders[0] / name.format(side)) for side in SIDES)
        if [_pair(row) for row in full] != [_pair(row) for row in plain]:
            raise KdzooError(
                f"{name.format('full')} and {name.format('no')} have other rows, or another order: teacher and student "
                "would answer other questions. Take both files from one version of the repository."
            )
        for number, (told, row) in enumerate(zip(full, plain, strict=True)):
            place = f"{split}/{part}/{number}" if part else f"{split}/{number}"
            rows.append(Told(Example(place, row["input"], row["output"]), told["instruction"]))
    return rows


def _pair(row: dict[str, str]) -> tuple[str, str]:
    return row["input"], row["output"]


def _read(path: Path) -> list[dict[str, str]]:
    try:
        rows: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise layout_error(LAYOUT, path.parent, f"{path.name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise layout_error(LAYOUT, path.parent, f"{path.name} is no JSON ({error})") from error
    whole = isinstance(rows, list) and all(isinstance(row, dict) and {*FIELDS} <= row.keys() for row in rows)
    if not whole or not rows:
        raise layout_error(LAYOUT, path.parent, f"{path.name} is no list of rows with {', '.join(FIELDS)}")
    return rows
