"""Writers of tiny data sets in the official layouts of the `paper` profiles.

Each writer makes the data set's folder under `root` and returns that folder. Pictures are smooth random
patterns with a color of their class, of different sizes, as JPEG; contents depend on the arguments only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR_RECORD = 3074


def picture(path: Path, label: int, number: int, size: tuple[int, int] | None = None) -> None:
    """A JPEG of `size` (width, height); by default its sides differ from picture to picture."""
    rng = np.random.default_rng([label, number])
    width, height = size or (40 + 7 * (number % 3), 36 + 5 * (label % 4))
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    coarse[..., label % 3] |= 192
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, "JPEG", quality=90)


def write_cub(
    root: Path,
    train: Sequence[int] = (1, 2, 3, 4),
    test: Sequence[int] = (101, 102, 103),
    images: int = 3,
    size: tuple[int, int] | None = None,
) -> Path:
    """CUB_200_2011/ with these class ids and `images` pictures a class."""
    home = root / "CUB_200_2011"
    names, labels = [], []
    for label in (*train, *test):
        for k in range(images):
            path = f"{label:03d}.Bird_{label}/Bird_{label}_{k:04d}.jpg"
            picture(home / "images" / path, label, k, size)
            names.append(f"{len(names) + 1} {path}\n")
            labels.append(f"{len(labels) + 1} {label}\n")
    (home / "images").mkdir(parents=True, exist_ok=True)
    (home / "images.txt").write_text("".join(names))
    (home / "image_class_labels.txt").write_text("".join(labels))
    return home


def write_cars(
    root: Path,
    train: Sequence[int] = (1, 2, 3),
    test: Sequence[int] = (99, 100),
    images: int = 4,
    devkit: bool = False,
    size: tuple[int, int] | None = None,
) -> Path:
    """cars196/ as car_ims/ + cars_annos.mat, or as cars_train/ + cars_test/ + devkit/.

    As in the real data, the official train/test mark (here: odd and even pictures) does not follow the class.
    """
    from scipy.io import savemat

    home = root / "cars196"
    home.mkdir(parents=True, exist_ok=True)
    drawn = [(label, k) for label in (*train, *test) for k in range(images)]
    box = [(name, "f8") for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")]
    if not devkit:
        table = np.zeros(
            (1, len(drawn)), dtype=[("relative_im_path", "O"), *box, ("class", "O"), ("test", "O")]
        )
        for n, (label, k) in enumerate(drawn):
            path = f"car_ims/{n + 1:06d}.jpg"
            picture(home / path, label, k, size)
            table[0, n] = (path, 1, 1, 9, 9, label, k % 2)
        savemat(home / "cars_annos.mat", {"annotations": table})
        return home
    (home / "devkit").mkdir(exist_ok=True)
    for part, odd, target in (
        ("cars_train", 1, "devkit/cars_train_annos.mat"),
        ("cars_test", 0, "cars_test_annos_withlabels.mat"),
    ):
        chosen = [(label, k) for label, k in drawn if k % 2 == odd]
        table = np.zeros((1, len(chosen)), dtype=[*box, ("class", "O"), ("fname", "O")])
        for n, (label, k) in enumerate(chosen):
            picture(home / part / f"{n + 1:05d}.jpg", label, k, size)
            table[0, n] = (1, 1, 9, 9, label, f"{n + 1:05d}.jpg")
        savemat(home / target, {"annotations": table})
        if part == "cars_test":  # the devkit's own test file: the same without classes
            bare = np.zeros((1, len(chosen)), dtype=[*box, ("fname", "O")])
            for field in bare.dtype.names or ():
                bare[field] = table[field]
            savemat(home / "devkit/cars_test_annos.mat", {"annotations": bare})
    return home


def write_sop(
    root: Path,
    train: Sequence[int] = (1, 2, 3),
    test: Sequence[int] = (11_319, 11_320),
    images: int = 3,
    size: tuple[int, int] | None = None,
) -> Path:
    """Stanford_Online_Products/ with the two lists of the metric-learning split."""
    home = root / "Stanford_Online_Products"
    number = 0
    for part, classes in (("train", train), ("test", test)):
        rows = ["image_id class_id super_class_id path\n"]
        for label in classes:
            for k in range(images):
                number += 1
                path = f"bicycle_final/{110_000 + label}_{k}.JPG"
                picture(home / path, label, k, size)
                rows.append(f"{number} {label} 1 {path}\n")
        (home / f"Ebay_{part}.txt").write_text("".join(rows))
    return home


def write_cifar100(root: Path, classes: Sequence[int] = (0, 7, 99), train: int = 4, test: int = 2) -> Path:
    """cifar-100-binary/ with `train` and `test` records a class, in mixed order."""
    home = root / "cifar-100-binary"
    home.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("test", test)):
        rng = np.random.default_rng([train, test, len(part)])
        labels = rng.permutation(np.repeat(np.asarray(classes, dtype=np.uint8), count))
        records = rng.integers(0, 256, (len(labels), CIFAR_RECORD), dtype=np.uint8)
        records[:, 0] = labels // 5
        records[:, 1] = labels
        (home / f"{part}.bin").write_bytes(records.tobytes())
    (home / "fine_label_names.txt").write_text("".join(f"thing_{k}\n" for k in range(100)))
    return home


def write_imagenet(
    root: Path,
    classes: int = 3,
    train: int = 4,
    val: int = 2,
    flat_val: bool = False,
    size: tuple[int, int] | None = None,
) -> Path:
    """imagenet/ with wnids n00000001, ...; `flat_val` leaves the validation images unsorted."""
    home = root / "imagenet"
    for label in range(classes):
        wnid = f"n{label + 1:08d}"
        for k in range(train):
            picture(home / "train" / wnid / f"{wnid}_{k}.JPEG", label, k, size)
        for k in range(val):
            folder = home / "val" if flat_val else home / "val" / wnid
            number = label * val + k + 1
            picture(folder / f"ILSVRC2012_val_{number:08d}.JPEG", label, train + k, size)
    return home


def write_tiny_imagenet(root: Path, classes: int = 3, train: int = 4, val: int = 2) -> Path:
    """tiny-imagenet-200/ with pictures of 64 x 64 pixels."""
    home = root / "tiny-imagenet-200"
    rows = []
    for label in range(classes):
        wnid = f"n{label + 1:08d}"
        for k in range(train):
            picture(home / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", label, k, (64, 64))
        (home / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for k in range(val):
            name = f"val_{label * val + k}.JPEG"
            picture(home / "val" / "images" / name, label, train + k, (64, 64))
            rows.append(f"{name}\t{wnid}\t0\t0\t63\t63\n")
    (home / "val" / "val_annotations.txt").write_text("".join(rows))
    (home / "wnids.txt").write_text("".join(f"n{label + 1:08d}\n" for label in range(classes)))
    return home


def write_coco(root: Path, train: int = 8, test: int = 4, classes: int = 80) -> Path:
    """coco/ with the 80 categories under numbers with gaps, 1 to 3 objects an image and one image without any."""
    home = root / "coco"
    numbers = [k + 1 + k // 10 for k in range(classes)]
    (home / "annotations").mkdir(parents=True, exist_ok=True)
    for part, count, first in (("train", train, 100), ("val", test, 900)):
        images, annotations = [], []
        for k in range(count + 1):
            name = f"COCO_{part}2014_{first + k:012d}.jpg"
            picture(home / f"{part}2014" / name, k % 5, first + k)
            images.append({"id": first + k, "file_name": name, "height": 36, "width": 40})
            labels = [numbers[(k + j * 7) % min(classes, 12)] for j in range(1 + k % 3)] if k < count else []
            annotations += [
                {"id": len(annotations) + j, "image_id": first + k, "category_id": label, "iscrowd": j % 2}
                for j, label in enumerate([*labels, *labels[:1]])
            ]
        table = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": f"thing {number}"} for number in numbers],
        }
        (home / f"annotations/instances_{part}2014.json").write_text(json.dumps(table))
    return home


def write_voc(root: Path, train: int = 8, test: int = 4, classes: int = 20) -> Path:
    """VOC2007/ with a list for each class; image k has class k, and classes k + 1 and k + 5 now and then."""
    home = root / "VOC2007"
    lists = home / "ImageSets/Main"
    lists.mkdir(parents=True, exist_ok=True)
    for part, count, first in (("trainval", train, 1), ("test", test, 101)):
        names = [f"{first + k:06d}" for k in range(count)]
        for k, name in enumerate(names):
            picture(home / f"JPEGImages/{name}.jpg", k % 5, first + k)
        (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
        for label in range(classes):
            marks = ["1" if label == k % classes else "0" if label == k + 1 else "-1" for k in range(count)]
            marks = ["1" if k % 2 and label == k + 5 else mark for k, mark in enumerate(marks)]
            rows = [f"{name} {mark:>2}\n" for name, mark in zip(names, marks, strict=True)]
            (lists / f"class{label:02d}_{part}.txt").write_text("".join(rows))
    return home


WRITERS: dict[str, Callable[[Path], Path]] = {
    "cub-200-2011": write_cub,
    "cars196": write_cars,
    "stanford-online-products": write_sop,
    "cifar-100": write_cifar100,
    "imagenet-1k": write_imagenet,
    "tiny-imagenet": write_tiny_imagenet,
    "coco-2014": write_coco,
    "voc-2007": write_voc,
}
