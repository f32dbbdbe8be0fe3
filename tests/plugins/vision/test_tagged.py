"""The readers of COCO and VOC: which labels an image gets, and files that are not what the layout says."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdzoo.errors import KdzooError
from kdzoo.task import Data
from kdzoo_vision.data.photos import load

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
import tiny_layouts


def labels_of(data: Data, row: int) -> set[str]:
    names = data.items.classes
    return {names[k] for k in data.items.labels[row].nonzero().flatten().tolist()}


def coco_table(home: Path, part: str = "train") -> tuple[Path, dict[str, Any]]:
    path = home / f"annotations/instances_{part}2014.json"
    return path, json.loads(path.read_text())


def test_coco_labels_are_the_categories_of_the_objects(tmp_path: Path) -> None:
    """Would catch category numbers taken for positions: COCO's have gaps, and all later labels would shift."""
    home = tiny_layouts.write_coco(tmp_path)
    for split, part in (("train", "train"), ("test", "val")):
        _, table = coco_table(home, part)
        data = load("coco-2014", split, tmp_path, image_size=16, val_share=0)
        names = {row["id"]: row["name"] for row in table["categories"]}
        files = {row["id"]: f"{part}2014/{row['file_name']}" for row in table["images"]}
        expected: dict[str, set[str]] = {}
        for row in table["annotations"]:
            expected.setdefault(files[row["image_id"]], set()).add(names[row["category_id"]])
        assert {name: labels_of(data, row) for row, name in enumerate(data.ids)} == expected
        assert len(expected) == len(files) - 1, "the image without an object is left out"
        assert data.items.labels.shape[1] == 80
        assert any(len(labels) > 1 for labels in expected.values())


def test_voc_labels_are_those_of_the_lists(tmp_path: Path) -> None:
    """Would catch difficult objects (0) or absent ones (-1) read the wrong way."""
    tiny_layouts.write_voc(tmp_path)
    data = load("voc-2007", "train", tmp_path, image_size=16, val_share=0)
    assert data.ids[0] == "JPEGImages/000001.jpg"
    assert labels_of(data, 0) == {"class00", "class01"}
    assert labels_of(data, 1) == {"class01", "class02", "class06"}
    assert len(load("voc-2007", "test", tmp_path, image_size=16)) == 4


def test_labels_do_not_depend_on_the_folder(tmp_path: Path) -> None:
    """Would catch a hash of paths on this machine, and one that misses a changed label."""
    home = tiny_layouts.write_coco(tmp_path / "a")
    shutil.copytree(home, tmp_path / "b/coco")
    one, two = (load("coco-2014", "train", tmp_path / name, image_size=16).hash for name in "ab")
    assert one == two
    path, table = coco_table(tmp_path / "b/coco")
    for row in table["annotations"]:
        row["category_id"] = table["categories"][79]["id"]
    path.write_text(json.dumps(table))
    assert load("coco-2014", "train", tmp_path / "b", image_size=16).hash != one


def test_batches_hold_many_hot_labels(tmp_path: Path) -> None:
    """Would catch integer classes where a row has several labels."""
    tiny_layouts.write_voc(tmp_path)
    data = load("voc-2007", "train", tmp_path, image_size=16)
    batch = data.collate(data.items, torch.tensor([0, 2]), torch.tensor([1, 2]))
    assert batch.labels.shape == (2, 20)
    assert set(batch.labels.unique().tolist()) == {0.0, 1.0}
    assert batch.views["image"].min() >= 0
    assert batch.views["image"].max() <= 1


Change = Callable[[dict[str, Any]], object]

DAMAGE: list[tuple[str, Change]] = [
    ("80", lambda t: t["categories"].append({"id": 999, "name": "more"})),
    ("KeyError", lambda t: t["annotations"].append({"image_id": 1, "category_id": 12_345})),
    ("KeyError", lambda t: t.pop("categories")),
    ("not a path inside", lambda t: t["images"][0].update(file_name="../../etc/passwd")),
]


@pytest.mark.parametrize(("said", "change"), DAMAGE)
def test_damaged_coco(tmp_path: Path, said: str, change: Change) -> None:
    """Would catch a traceback, labels of other categories, and a path that leaves the folder."""
    home = tiny_layouts.write_coco(tmp_path)
    path, table = coco_table(home)
    change(table)
    path.write_text(json.dumps(table))
    with pytest.raises(KdzooError, match=said):
        load("coco-2014", "train", tmp_path)
    path.write_text("{")
    with pytest.raises(KdzooError, match="Unpack the archive again"):
        load("coco-2014", "train", tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("class03_trainval.txt", "000001 2\n", "with 1, 0 or -1"),
        ("class03_trainval.txt", "999999 1\n", "no image of trainval"),
        ("class03_trainval.txt", "000001\n", "2 fields"),
        ("other_trainval.txt", "000001 1\n", "21 classes"),
    ],
)
def test_damaged_voc(tmp_path: Path, name: str, text: str, said: str) -> None:
    """Would catch a list of another part or form, whose labels would go to other images."""
    home = tiny_layouts.write_voc(tmp_path)
    (home / "ImageSets/Main" / name).write_text(text)
    with pytest.raises(KdzooError, match=said):
        load("voc-2007", "train", tmp_path)
