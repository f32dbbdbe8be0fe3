"""Readers of photos with several labels each, in their official layouts: COCO 2014 and PASCAL VOC 2007.

Training images are COCO's train2014 and VOC's trainval, test images COCO's val2014 and VOC's test: the parts whose
labels are public and on which papers report.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from kdzoo.data_layout import layout_error
from kdzoo_vision.data.datasets import DatasetInfo, find_home
from kdzoo_vision.data.listing import Part, damaged, fields, inside, lines, need

VOC_SET = Path("ImageSets/Main")


@dataclass(slots=True)
class Tags:
    """The images of an official part: paths relative to the home, sorted; the labels of each; all labels in order."""

    paths: list[str]
    labels: list[set[int]]
    known: tuple[str, ...]


def find_coco(info: DatasetInfo, root: Path) -> Path:
    """The folder with annotations/, train2014/ and val2014/."""
    home = find_home(info, root, lambda place: (place / "annotations").is_dir())
    if home is None:
        raise layout_error(info, root, "annotations/ is not there")
    files = tuple(f"annotations/instances_{part}2014.json" for part in ("train", "val"))
    need(info, home, files=files, folders=("train2014", "val2014"))
    return home


def read_coco(info: DatasetInfo, home: Path, part: Part) -> Tags:
    """Images with at least one object, crowds included; an object's category is a label of its image."""
    folder = "train2014" if part == "train" else "val2014"
    source = home / f"annotations/instances_{folder}.json"
    try:
        table = json.loads(source.read_bytes())
        names = {int(row["id"]): str(row["name"]) for row in table["categories"]}
        files = {int(row["id"]): str(row["file_name"]) for row in table["images"]}
        found: dict[int, set[int]] = {}
        position = {category: k for k, category in enumerate(sorted(names))}
        for row in table["annotations"]:
            found.setdefault(int(row["image_id"]), set()).add(position[int(row["category_id"])])
        listed = sorted(
            (f"{folder}/{inside(files[image], source)}", labels) for image, labels in found.items()
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(
            source, f"is not a list of COCO's instances ({type(error).__name__}: {error})"
        ) from error
    _count(info, source, len(names))
    return Tags(
        [path for path, _ in listed], [labels for _, labels in listed], tuple(names[k] for k in sorted(names))
    )


def find_voc(info: DatasetInfo, root: Path) -> Path:
    """The folder VOC2007, inside VOCdevkit or not."""
    home = find_home(info, root, lambda place: (place / VOC_SET).is_dir())
    if home is None:
        raise layout_error(info, root, f"{VOC_SET}/ is not there")
    need(
        info,
        home,
        files=tuple(f"{VOC_SET}/{part}.txt" for part in ("trainval", "test")),
        folders=("JPEGImages",),
    )
    return home


def read_voc(info: DatasetInfo, home: Path, part: Part) -> Tags:
    """The lists <class>_trainval.txt or <class>_test.txt: 1 has it, 0 has only difficult ones, -1 has none.

    An image with difficult objects alone counts as having the label.
    """
    suffix = "trainval" if part == "train" else "test"
    place = home / VOC_SET
    known = sorted(path.name.removesuffix(f"_{suffix}.txt") for path in place.glob(f"*_{suffix}.txt"))
    _count(info, place, len(known))
    numbers = {
        image: k
        for k, image in enumerate(sorted(line.split()[0] for _, line in lines(place / f"{suffix}.txt")))
    }
    labels: list[set[int]] = [set() for _ in numbers]
    for label, name in enumerate(known):
        source = place / f"{name}_{suffix}.txt"
        for number, line in lines(source):
            image, mark = fields(source, number, line, 2, numeric=())
            if mark not in ("1", "0", "-1") or image not in numbers:
                raise damaged(source, f"{line.strip()!r} is no image of {suffix}.txt with 1, 0 or -1", number)
            if mark != "-1":
                labels[numbers[image]].add(label)
    paths = [f"JPEGImages/{inside(image, place / f'{suffix}.txt')}.jpg" for image in numbers]
    return Tags(paths, labels, tuple(known))


def _count(info: DatasetInfo, source: Path, found: int) -> None:
    if found != info.classes:
        raise damaged(source, f"has {found} classes, {info.title} has {info.classes}")


READERS = {"coco-2014": read_coco, "voc-2007": read_voc}
