"""Real data sets in their official layouts, for the `paper` profiles.

`load` serves one split as `kdzoo.task.Data`:

- **train** and **val** come from the official training part, **test** is the official test part (for ImageNet
  and Tiny-ImageNet the official validation images, whose labels are public). No test image ever enters val.
- Metric learning (CUB, Cars196, Stanford Online Products): val is a share of the training CLASSES, with all
  their images, so that its Recall@K is one of unseen classes, as in test. Labels are 0..n-1 in each split.
- Classification (CIFAR-100, ImageNet, Tiny-ImageNet): val is a share of each class's images; labels mean the
  same class in all splits.
- Multi-label (COCO, VOC): `kdzoo_vision.data.tagged`; val is a share of the images, labels are (N, C).
- The choice is a ranking by sha256 of the class number or the image's id: no seed, and the order on disk does
  not matter. `val_share=0` keeps all for training, as the papers do; then there is no val split.

Ids are paths relative to the data set's folder (CIFAR-100: "train/17", a record's number), the same wherever
the data lie. The hash covers the sorted relative paths, file sizes and labels of the split, not the pixels:
reading 150 GB before each run would cost more than it protects. CIFAR-100 is hashed by content.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from kdzoo.data_layout import layout_error
from kdzoo.errors import KdzooError, unknown
from kdzoo.method import Batch
from kdzoo.rng import uniforms
from kdzoo.task import SPLITS, Data
from kdzoo_vision.data import class_layouts, metric_layouts, tagged
from kdzoo_vision.data.datasets import DATASETS, Augment, DatasetInfo
from kdzoo_vision.data.holdout import held_out, held_out_per_class
from kdzoo_vision.data.listing import Listing, Part
from kdzoo_vision.data.strong import ERASE_DRAWS, erase
from kdzoo_vision.data.transforms import DRAWS, Recipe, batch_pixels, decode, padded_windows

__all__ = ["DATASETS", "Collate", "DatasetInfo", "Files", "Records", "check_layout", "load"]


@dataclass(frozen=True, slots=True)
class Files:
    """Images on disk: `home` / paths[row], labels (N,) int64 or (N, C) float32, class names in label order."""

    home: Path
    paths: list[str]
    labels: Tensor
    classes: tuple[str, ...]

    def image(self, row: int) -> Image.Image:
        return decode(self.home / self.paths[row])


@dataclass(frozen=True, slots=True)
class Records:
    """Images in memory: pixels (N, 3, H, W) uint8, labels (N,) int64, class names in label order."""

    ids: list[str]
    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def image(self, row: int) -> Image.Image:
        return Image.fromarray(self.pixels[row].permute(1, 2, 0).contiguous().numpy())


@dataclass(frozen=True, slots=True)
class Collate:
    """`collate(items, rows, seeds) -> Batch`; a plain object, so that loader processes can receive it.

    The batch: view "image" (B, 3, S, S) float32, normalized; labels (B,) int64; counts item = label = B.
    """

    recipe: Recipe
    decoders: int = 1
    erasing: float = 0.0

    def __call__(self, items: Files | Records, rows: Tensor, seeds: Tensor | None) -> Batch:
        places = rows.tolist()
        ids = items.paths if isinstance(items, Files) else items.ids
        if isinstance(items, Records) and self.recipe.keeps_size(items.pixels.shape[-1]):
            drawn = items.pixels[rows]
            if seeds is None:
                pixels = drawn.permute(0, 2, 3, 1)
            else:
                pixels = padded_windows(drawn, uniforms(seeds, DRAWS))
        else:
            pixels = batch_pixels(
                len(places), lambda k: items.image(places[k]), self.recipe, seeds, decoders=self.decoders
            )
        images = self.recipe.normalized(pixels)
        if seeds is not None and self.erasing:
            # Numbers of their own: those after the transform's.
            draws = uniforms(seeds, self.recipe.draws + ERASE_DRAWS)[:, self.recipe.draws :]
            erase(images, seeds, draws, self.erasing)
        return Batch(
            ids=[ids[row] for row in places],
            views={"image": images},
            labels=items.labels[rows],
            counts={"item": len(places), "label": len(places)},
        )


class _Reader(NamedTuple):
    find: Callable[[DatasetInfo, Path], Path]
    read: Callable[[Path, Part], Listing] | None  # None: not files (CIFAR-100), or several labels an image


_READERS: dict[str, _Reader] = {
    "cub-200-2011": _Reader(metric_layouts.find_cub, metric_layouts.read_cub),
    "cars196": _Reader(metric_layouts.find_cars, metric_layouts.read_cars),
    "stanford-online-products": _Reader(metric_layouts.find_sop, metric_layouts.read_sop),
    "cifar-100": _Reader(class_layouts.find_cifar100, None),
    "imagenet-1k": _Reader(class_layouts.find_imagenet, class_layouts.read_imagenet),
    "tiny-imagenet": _Reader(class_layouts.find_tiny_imagenet, class_layouts.read_tiny_imagenet),
    "coco-2014": _Reader(tagged.find_coco, None),
    "voc-2007": _Reader(tagged.find_voc, None),
}


def check_layout(name: str, root: Path) -> None:
    """Return if the data set's files lie under `root` as expected; single images are not opened.

    Raises:
        KdzooError: with the layout expected, what was found, the home page and the terms.
    """
    _home(name, Path(root))


def load(
    name: str,
    split: str,
    root: Path,
    *,
    image_size: int | None = None,
    val_share: float = 0.1,
    resize: int | None = None,
    augment: Augment | None = None,
    squash: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    decoders: int = 1,
    erasing: float = 0.0,
) -> Data:
    """One split of a data set; the module docstring says what the splits are.

    Args:
        name: key of `DATASETS`.
        split: "train", "val" or "test".
        root: folder that holds the data set's folder, or that folder itself.
        image_size: S, side of the images given to models, pixels; None: the data set's usual one.
        val_share: share of the training classes (metric learning) or of each class's training images that is
            val, in [0, 1); at least one class or image where the share is above 0 and two are there.
        resize: side before the crop, pixels; None: 8/7 of image_size (256 for 224).
        augment: training transform ("crop", "area", "pad", "none"); None: the data set's usual one. It acts
            only where the loader gives seeds.
        squash: resize without keeping the aspect ratio; None: as the data set's usual recipe.
        mean, std: RGB, in units of 255; None: the data set's usual ones.
        decoders: threads that decode the images of a batch; does not change results.
        erasing: share of the training images that get a box of noise (`kdzoo_vision.data.strong.erase`).

    Raises:
        KdzooError: unknown name, layout not as expected, empty split, missing or empty files, bad settings.
        ValueError: a split that no task has.
    """
    info, home = _home(name, Path(root))
    _check(info, split, val_share, decoders)
    size = info.image_size if image_size is None else image_size
    if resize is None:  # "rand" sees the whole image
        resize = size if info.augment == "rand" else max(size, round(size * 256 / 224))
    recipe = Recipe(
        image_size=size,
        resize=resize,
        augment=info.augment if augment is None else augment,
        squash=info.squash if squash is None else squash,
        mean=tuple(info.mean if mean is None else mean),
        std=tuple(info.std if std is None else std),
    )
    if info.purpose == "multi-label":
        return _load_tagged(info, home, split, val_share, Collate(recipe, decoders, erasing))
    read = _READERS[name].read
    if read is None:
        return _load_records(info, home, split, val_share, Collate(recipe, decoders, erasing))
    return _load_files(info, home, split, val_share, Collate(recipe, decoders, erasing), read)


def _home(name: str, root: Path) -> tuple[DatasetInfo, Path]:
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS, f"Known: {', '.join(sorted(DATASETS))}.")
    info = DATASETS[name]
    if not root.is_dir():
        raise layout_error(info, root, "the data root is not a folder")
    return info, _READERS[name].find(info, root)


def _check(info: DatasetInfo, split: str, val_share: float, decoders: int) -> None:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {SPLITS}")
    if split not in ("train", "val", "test"):
        raise KdzooError(
            f"{info.title} has no split {split!r}; it has train, val and test. "
            "Choose a method or a task that does without."
        )
    if not 0 <= val_share < 1:
        raise KdzooError(f"val_share is {val_share}; expected a share from 0 up to, but not including, 1")
    if decoders < 1:
        raise KdzooError(f"decoders is {decoders}; expected at least 1 thread")


def _load_files(
    info: DatasetInfo,
    home: Path,
    split: str,
    val_share: float,
    collate: Collate,
    read: Callable[[Path, Part], Listing],
) -> Data:
    listing = read(home, "test" if split == "test" else "train")
    metric = info.purpose == "metric"
    known = listing.known
    if split == "test":
        rows = list(range(len(listing.paths)))
    elif metric:
        held = held_out(known, val_share)
        known = tuple(key for key in known if (key in held) == (split == "val"))
        rows = [k for k, key in enumerate(listing.classes) if (key in held) == (split == "val")]
    else:
        held = held_out_per_class(listing.paths, listing.classes, val_share)
        rows = [k for k, path in enumerate(listing.paths) if (path in held) == (split == "val")]
    _not_empty(info, home, split, val_share, len(rows))
    number = {key: label for label, key in enumerate(known)}
    paths = [listing.paths[k] for k in rows]
    labels = [number[listing.classes[k]] for k in rows]
    sizes = _sizes(info, home, paths)
    digest = hashlib.sha256()
    for path, bytes_, label in zip(paths, sizes, labels, strict=True):
        digest.update(f"{path}\0{bytes_}\0{label}\n".encode())
    truth = torch.tensor(labels, dtype=torch.int64)
    return Data(
        items=Files(home, paths, truth, known),
        ids=paths,
        collate=collate,
        hash=digest.hexdigest(),
        groups=truth,
        fixed_views=collate.recipe.augment == "none" and not collate.erasing,
    )


def _load_tagged(info: DatasetInfo, home: Path, split: str, val_share: float, collate: Collate) -> Data:
    tags = tagged.READERS[info.name](info, home, "test" if split == "test" else "train")
    rows = list(range(len(tags.paths)))
    if split != "test":
        held = held_out(tags.paths, val_share)
        rows = [row for row in rows if (tags.paths[row] in held) == (split == "val")]
    _not_empty(info, home, split, val_share, len(rows))
    paths = [tags.paths[row] for row in rows]
    truth = torch.zeros(len(rows), len(tags.known))
    digest = hashlib.sha256()
    for k, (row, bytes_) in enumerate(zip(rows, _sizes(info, home, paths), strict=True)):
        labels = sorted(tags.labels[row])
        truth[k, labels] = 1.0
        digest.update(f"{paths[k]}\0{bytes_}\0{labels}\n".encode())
    return Data(
        items=Files(home, paths, truth, tags.known),
        ids=paths,
        collate=collate,
        hash=digest.hexdigest(),
        fixed_views=collate.recipe.augment == "none" and not collate.erasing,
    )


def _load_records(info: DatasetInfo, home: Path, split: str, val_share: float, collate: Collate) -> Data:
    part: Part = "test" if split == "test" else "train"
    records = class_layouts.read_cifar100(home, part)
    ids = [f"{part}/{row}" for row in range(len(records))]
    if split == "test":
        rows = list(range(len(records)))
    else:
        held = held_out_per_class(ids, [str(label) for label in records[:, 1].tolist()], val_share)
        rows = [row for row, key in enumerate(ids) if (key in held) == (split == "val")]
    _not_empty(info, home, split, val_share, len(rows))
    kept = torch.from_numpy(records[rows])
    labels = kept[:, 1].to(torch.int64)
    digest = hashlib.sha256(f"{part} {rows}\n".encode())
    digest.update(kept.numpy().data)
    names = [ids[row] for row in rows]
    items = Records(names, kept[:, 2:].reshape(-1, 3, 32, 32), labels, class_layouts.cifar100_names(home))
    return Data(
        items=items,
        ids=names,
        collate=collate,
        hash=digest.hexdigest(),
        groups=labels,
        fixed_views=collate.recipe.augment == "none" and not collate.erasing,
    )


def _not_empty(info: DatasetInfo, home: Path, split: str, val_share: float, count: int) -> None:
    if count:
        return
    if split == "val" and val_share == 0:
        raise KdzooError(
            f"{info.title}: the val split is empty because val_share is 0: all training data are in train. "
            "Set val_share above 0, or do not choose by validation."
        )
    why = {
        "train": "no image of a training class was found",
        "val": "there are too few training classes or images to hold some out",
        "test": "no image of a test class was found",
    }[split]
    raise layout_error(info, home, f"the {split} split is empty: {why}", "unpack the whole archive")


def _sizes(info: DatasetInfo, home: Path, paths: Sequence[str]) -> list[int]:
    """Bytes of each file. Missing or empty files are refused here, before hours of training pass."""
    sizes: list[int] = []
    bad: list[str] = []
    base = str(home)
    for path in paths:
        try:
            size = os.stat(f"{base}/{path}").st_size
        except OSError:
            size = 0
        sizes.append(size)
        if size == 0:
            bad.append(path)
    if bad:
        raise layout_error(
            info,
            home,
            f"{len(bad):,} of {len(paths):,} images are missing or have 0 bytes, the first is {bad[0]}",
            "unpack the archive again, completely",
        )
    return sizes
