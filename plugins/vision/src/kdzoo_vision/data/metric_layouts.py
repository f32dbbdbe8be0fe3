"""Readers of CUB-200-2011, Cars196 and Stanford Online Products: train and test have different classes.

`find_*` returns the data set's folder or raises the layout message; `read_*` lists the images of a part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdzoo.data_layout import layout_error
from kdzoo_vision.data.datasets import DatasetInfo, find_home
from kdzoo_vision.data.listing import Listing, Part, damaged, fields, inside, lines, need, numbered

CUB_TRAIN_CLASSES = 100  # class ids 1 to 100; lenscloth/RKD@0a6c3c0 dataset/cub200.py
CARS_TRAIN_CLASSES = 98  # class ids 1 to 98; lenscloth/RKD@0a6c3c0 dataset/cars196.py

_CARS_TEST = "cars_test_annos_withlabels.mat"


def find_cub(info: DatasetInfo, root: Path) -> Path:
    home = find_home(info, root, lambda place: (place / "images.txt").is_file())
    if home is None:
        raise layout_error(info, root, "images.txt is not there")
    need(info, home, files=("image_class_labels.txt",), folders=("images",))
    return home


def read_cub(home: Path, part: Part) -> Listing:
    names, labels = home / "images.txt", home / "image_class_labels.txt"
    paths: dict[str, str] = {}
    for number, line in lines(names):
        image, path = fields(names, number, line, 2, numeric=(0,))
        paths[image] = "images/" + inside(path, names)
    rows: list[tuple[str, int]] = []
    for number, line in lines(labels):
        image, label = fields(labels, number, line, 2, numeric=(0, 1))
        if image not in paths:
            raise damaged(labels, f"image {image} is not in images.txt, or has two labels", number)
        path = paths.pop(image)
        if (int(label) <= CUB_TRAIN_CLASSES) == (part == "train"):
            rows.append((path, int(label)))
    if paths:
        raise damaged(labels, f"gives no label to {len(paths)} images, as {next(iter(paths.values()))}")
    return numbered(rows)


def find_cars(info: DatasetInfo, root: Path) -> Path:
    home = find_home(
        info, root, lambda place: (place / "cars_annos.mat").is_file() or (place / "cars_train").is_dir()
    )
    if home is None:
        raise layout_error(info, root, "neither cars_annos.mat nor cars_train/ is there")
    if (home / "cars_annos.mat").is_file():
        need(info, home, folders=("car_ims",))
        return home
    need(info, home, files=("devkit/cars_train_annos.mat",), folders=("cars_train", "cars_test"))
    if _labelled_test(home) is None:
        raise layout_error(
            info,
            home,
            f"{_CARS_TEST} is not there; the split by classes needs the labels of the test images",
            f"put {_CARS_TEST} into the folder (the devkit's own cars_test_annos.mat has no classes)",
        )
    return home


def _labelled_test(home: Path) -> Path | None:
    places = (home / _CARS_TEST, home / "devkit" / _CARS_TEST)
    return next((place for place in places if place.is_file()), None)


def read_cars(home: Path, part: Part) -> Listing:
    test = _labelled_test(home)
    if (home / "cars_annos.mat").is_file():
        rows = _annotations(home / "cars_annos.mat", "relative_im_path", "")
    else:
        if test is None:
            raise ValueError(f"{home} has no {_CARS_TEST}; find_cars tells the user so")
        rows = _annotations(home / "devkit/cars_train_annos.mat", "fname", "cars_train/")
        rows += _annotations(test, "fname", "cars_test/")
    # Both forms number the classes alike, so the validation classes are the same in both.
    return numbered([row for row in rows if (row[1] <= CARS_TRAIN_CLASSES) == (part == "train")])


def _annotations(path: Path, name_field: str, folder: str) -> list[tuple[str, int]]:
    """(path, class number) of each entry of a MATLAB file's variable `annotations`."""
    import numpy as np
    from scipy.io import loadmat

    try:
        # The format holds numbers, texts and structs; nothing in it is executed.
        table: Any = loadmat(path, variable_names=["annotations"], squeeze_me=True)["annotations"]
    except Exception as error:  # the reader raises a dozen types for damaged files, some not public
        raise damaged(path, f"cannot be read as annotations ({type(error).__name__}: {error})") from error
    table = np.atleast_1d(table)
    present = table.dtype.names or ()
    if name_field not in present or "class" not in present:
        raise damaged(
            path, f"has the fields {', '.join(present) or 'none'}, but {name_field} and class are needed"
        )
    return [(folder + inside(str(row[name_field]), path), int(row["class"])) for row in table]


def find_sop(info: DatasetInfo, root: Path) -> Path:
    home = find_home(info, root, lambda place: (place / "Ebay_train.txt").is_file())
    if home is None:
        raise layout_error(info, root, "Ebay_train.txt is not there")
    need(info, home, files=("Ebay_test.txt",))
    return home


def read_sop(home: Path, part: Part) -> Listing:
    source = home / f"Ebay_{part}.txt"
    rows: list[tuple[str, int]] = []
    for number, line in lines(source):
        if number == 1 and line.startswith("image_id"):
            continue
        _, label, _, path = fields(source, number, line, 4, numeric=(0, 1, 2))
        rows.append((inside(path, source), int(label)))
    return numbered(rows)
