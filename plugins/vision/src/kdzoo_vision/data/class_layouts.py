"""Readers of ImageNet-1k, Tiny-ImageNet and CIFAR-100: train and test have the same classes.

`find_*` returns the data set's folder or raises the layout message; `read_*` lists the images of a part.
Labels of the ImageNets are ranks of the sorted wnids, the order in which pretrained heads have them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdzoo.data_layout import layout_error
from kdzoo_vision.data.datasets import CIFAR100, DatasetInfo, find_home
from kdzoo_vision.data.listing import (
    Listing,
    Part,
    damaged,
    fields,
    image_names,
    inside,
    lines,
    listing,
    need,
    wnid_folders,
)

if TYPE_CHECKING:
    import numpy as np

CIFAR_RECORD = 2 + 3 * 32 * 32  # bytes: coarse label, fine label, three color planes

_SORT_VAL = (
    "sort the validation images: take the flat val/ away, put ILSVRC2012_devkit_t12.tar.gz and "
    "ILSVRC2012_img_val.tar into the folder and run in Python `from torchvision.datasets import imagenet; "
    "imagenet.parse_devkit_archive('FOLDER'); imagenet.parse_val_archive('FOLDER')`; or move the n-th file "
    "(by name) to val/<wnid>/ yourself: line n of the devkit's ILSVRC2012_validation_ground_truth.txt is the "
    "number of its class, and meta.mat has the wnid of that number"
)


def find_imagenet(info: DatasetInfo, root: Path) -> Path:
    home = find_home(info, root, lambda place: bool(wnid_folders(place / "train")))
    if home is None:
        raise layout_error(info, root, "train/ with one folder a class (n and 8 digits) is not there")
    val = home / "val"
    if not wnid_folders(val):
        if val.is_dir() and image_names(val):
            raise layout_error(info, home, "val/ holds images that are not sorted into classes", _SORT_VAL)
        raise layout_error(info, home, "val/<wnid>/ is not there", _SORT_VAL)
    return home


def read_imagenet(home: Path, part: Part) -> Listing:
    known = wnid_folders(home / "train")
    base = "train" if part == "train" else "val"
    present = wnid_folders(home / base)
    strangers = [key for key in present if key not in set(known)]
    if strangers:
        raise damaged(home / base, f"has classes that train/ has not: {', '.join(strangers[:5])}")
    pairs = [(f"{base}/{key}/{name}", key) for key in present for name in image_names(home / base / key)]
    return listing(pairs, known)


def find_tiny_imagenet(info: DatasetInfo, root: Path) -> Path:
    def accepts(place: Path) -> bool:
        first = wnid_folders(place / "train")[:1]
        return bool(first) and (place / "train" / first[0] / "images").is_dir()

    home = find_home(info, root, accepts)
    if home is None:
        raise layout_error(info, root, "train/<wnid>/images/ is not there")
    need(info, home, files=("val/val_annotations.txt",), folders=("val/images",))
    return home


def read_tiny_imagenet(home: Path, part: Part) -> Listing:
    known = wnid_folders(home / "train")
    pairs: list[tuple[str, str]] = []
    if part == "train":
        for key in known:
            folder = f"train/{key}/images"
            pairs += [(f"{folder}/{name}", key) for name in image_names(home / folder)]
        return listing(pairs, known)
    source = home / "val/val_annotations.txt"
    for number, line in lines(source):
        name, key, _ = fields(source, number, line, 3, numeric=())
        if key not in known:
            raise damaged(source, f"class {key} has no folder in train/", number)
        pairs.append(("val/images/" + inside(name, source), key))
    return listing(pairs, known)


def find_cifar100(info: DatasetInfo, root: Path) -> Path:
    home = find_home(info, root, lambda place: (place / "train.bin").is_file())
    if home is not None:
        need(info, home, files=("test.bin",))
        return home
    for place in (root / "cifar-100-python", root):
        if (place / "train").is_file() and (place / "meta").is_file():
            raise layout_error(
                info,
                place,
                "this is the python version, a pickle: opening it may run any code in it, so it is refused",
                f'get the "CIFAR-100 binary version" from the same page; it unpacks to {info.folders[0]}/',
            )
    raise layout_error(info, root, "train.bin is not there")


def read_cifar100(home: Path, part: Part) -> np.ndarray:
    """(N, 3074) uint8 records: coarse label, fine label, then 3 x 32 x 32 pixels."""
    import numpy as np

    path = home / f"{part}.bin"
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror})") from error
    if content.size == 0 or content.size % CIFAR_RECORD:
        raise damaged(path, f"has {content.size:,} bytes, which is no multiple of {CIFAR_RECORD:,} above 0")
    records = content.reshape(-1, CIFAR_RECORD)
    highest = int(records[:, 1].max())
    if highest >= CIFAR100.classes:
        raise damaged(path, f"has the fine label {highest}; labels are 0 to {CIFAR100.classes - 1}")
    return records


def cifar100_names(home: Path) -> tuple[str, ...]:
    """The 100 class names, or the numbers as text where the names file is missing."""
    source = home / "fine_label_names.txt"
    if not source.is_file():
        return tuple(str(label) for label in range(CIFAR100.classes))
    names = tuple(line.strip() for _, line in lines(source))
    if len(names) != CIFAR100.classes:
        raise damaged(source, f"has {len(names)} names; expected {CIFAR100.classes}")
    return names
