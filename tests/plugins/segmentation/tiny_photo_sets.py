"""Writers of tiny sets of labelled photos in the layouts of the `paper` profiles.

Each writer makes the data set's folder under `root` and returns it. Photos are smooth random patterns; masks are blocks
of numbers, with some that are no class. Contents depend on the arguments only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZES = ((56, 40), (48, 44), (40, 48))  # (width, height) of photos in turn
COLOURS = ((0, 255, 255), (255, 255, 0), (255, 0, 255), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0))


def photo(path: Path, number: int, size: tuple[int, int]) -> None:
    """A photo of `size` (width, height), as its ending says."""
    coarse = np.random.default_rng([7, number]).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


def blocks(numbers: Sequence[int], number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask (height, width) of 4 x 5 blocks, with the first four numbers in it for sure."""
    rng = np.random.default_rng([9, number])
    coarse = rng.choice(np.asarray(numbers, dtype=np.uint8), (4, 5))
    coarse[0, : min(4, len(numbers))] = numbers[:4]
    width, height = size
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))


def mask(path: Path, values: NDArray[np.uint8]) -> None:
    """A palette PNG, as VOC's: numbers in the file, colours for the eye."""
    image = Image.fromarray(values).convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette([int(k) for k in np.random.default_rng(0).integers(0, 256, 768)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_cityscapes(root: Path, train: int = 4, test: int = 2) -> Path:
    """cityscapes/ with two cities; all photos are 64 x 32, as the real ones have one size."""
    home = root / "cityscapes"
    for part, count, first in (("train", train, 0), ("val", test, 50)):
        for k in range(count):
            name = f"town{k % 2}/town{k % 2}_{first + k:06d}_000019"
            photo(home / f"leftImg8bit/{part}/{name}_leftImg8bit.png", first + k, (64, 32))
            values = blocks((0, 1, 2, 18, 255), first + k, (64, 32))
            mask(home / f"gtFine/{part}/{name}_gtFine_labelTrainIds.png", values)
    return home


def write_acdc(root: Path, train: int = 1, test: int = 1) -> Path:
    """acdc/ with `train` and `test` photos a condition, and one of clear weather that has no mask."""
    home = root / "acdc"
    for c, condition in enumerate(("fog", "night", "rain", "snow")):
        for part, count, first in (("train", train, 10 * c), ("val", test, 10 * c + 5)):
            for k in range(count):
                name = f"{condition}/{part}/GOPR0{c}/GOPR0{c}_frame_{first + k:06d}"
                photo(home / f"rgb_anon/{name}_rgb_anon.png", first + k, (64, 36))
                mask(home / f"gt/{name}_gt_labelTrainIds.png", blocks((0, 1, 18, 255), first + k, (64, 36)))
        photo(
            home / f"rgb_anon/{condition}/train_ref/GOPR0{c}/GOPR0{c}_frame_1_rgb_ref_anon.png", 99, (64, 36)
        )
    return home


def _flat(
    home: Path, image: str, label: str, names: Sequence[str], numbers: Sequence[int], ending: str = ".png"
) -> None:
    for k, name in enumerate(names):
        size = SIZES[k % len(SIZES)]
        photo(home / image / f"{name}.jpg", k + len(name), size)
        mask(home / label / f"{name}{ending}", blocks(numbers, k + len(name), size))


def write_ade20k(root: Path, train: int = 4, test: int = 2) -> Path:
    home = root / "ADEChallengeData2016"
    for part, short, count in (("training", "train", train), ("validation", "val", test)):
        names = [f"ADE_{short}_{k:08d}" for k in range(1, count + 1)]
        _flat(home, f"images/{part}", f"annotations/{part}", names, (0, 1, 2, 150))
    return home


def _lists(folder: Path, **parts: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, names in parts.items():
        (folder / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))


def write_voc(root: Path, train: int = 2, aug: int = 3, test: int = 2) -> Path:
    home = root / "VOCdevkit/VOC2012"
    own = [f"2007_{k:06d}" for k in range(train)]
    more = [f"2008_{k:06d}" for k in range(aug)]
    held = [f"2009_{k:06d}" for k in range(test)]
    _flat(home, "JPEGImages", "SegmentationClass", own + held, (0, 1, 20, 255))
    _flat(home, "JPEGImages", "SegmentationClassAug", more, (0, 1, 20, 255))
    _lists(home / "ImageSets/Segmentation", train=own, aug=more, val=held)
    return home


def write_context(root: Path, train: int = 4, test: int = 2) -> Path:
    home = root / "VOCdevkit/VOC2010"
    names = [f"2010_{k:06d}" for k in range(train + test)]
    _flat(home, "JPEGImages", "SegmentationClassContext", names, (0, 1, 2, 59))
    _lists(home / "ImageSets/SegmentationContext", train=names[:train], val=names[train:])
    return home


def write_nyu(root: Path, train: int = 4, test: int = 2) -> Path:
    """NYUDepthv2/ with one list of paths and one of names."""
    home = root / "NYUDepthv2"
    names = [str(k) for k in range(train + test)]
    _flat(home, "RGB", "Label", names, (0, 1, 2, 40))
    _lists(home, train=[f"RGB/{name}.jpg Label/{name}.png" for name in names[:train]], test=names[train:])
    return home


def write_stuff(
    root: Path, folder: str, parts: tuple[str, str], numbers: Sequence[int], counts: tuple[int, int] = (4, 2)
) -> Path:
    home = root / folder
    for part, count in zip(parts, counts, strict=True):
        names = [f"{part}_{k:012d}" for k in range(count)]
        _flat(home, f"images/{part}", f"annotations/{part}", names, numbers, "_labelTrainIds.png")
    return home


def write_stuff_10k(root: Path) -> Path:
    return write_stuff(root, "coco_stuff10k", ("train2014", "test2014"), (0, 1, 2, 171))


def write_stuff_164k(root: Path) -> Path:
    return write_stuff(root, "coco_stuff164k", ("train2017", "val2017"), (0, 1, 170, 255))


def write_deepglobe(root: Path, count: int = 6) -> Path:
    """land/train/ with masks in colours that are a little off, as the real ones."""
    home = root / "land"
    for k in range(count):
        photo(home / f"train/{100 + k}_sat.jpg", k, (48, 48))
        values = blocks((0, 1, 5, 6), k, (48, 48))
        table = np.asarray(COLOURS, dtype=np.int64)[values]
        noisy = np.clip(table + np.random.default_rng(k).integers(-60, 61, table.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(home / f"train/{100 + k}_mask.png")
    return home


WRITERS: dict[str, Callable[[Path], Path]] = {
    "cityscapes": write_cityscapes,
    "ade20k": write_ade20k,
    "voc2012-aug": write_voc,
    "acdc": write_acdc,
    "nyuv2": write_nyu,
    "coco-stuff-10k": write_stuff_10k,
    "coco-stuff-164k": write_stuff_164k,
    "deepglobe-land": write_deepglobe,
    "pascal-context-59": write_context,
}
