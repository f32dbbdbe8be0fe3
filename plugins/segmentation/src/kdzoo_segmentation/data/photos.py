"""A split of a public set of labelled photos, as `kdzoo.task.Data`: files decoded as they are needed.

- **train**, **pool** and **val** come from the official training part, **test** is the official part with public
  labels that the papers report (often called val). No test image ever enters val.
- val is a share of the training images, chosen by a ranking by sha256 of their names: no seed, and a larger share adds
  images to those of a smaller one. With `val_share` 0, as in the papers, there is no val split.
- Of the other images, the share `labelled` (ranked alike) keep their labels and are train; the pool is all of them
  without labels.

Ids are paths relative to the data set's folder, the same wherever the data lie. The hash covers them, the sizes of the
files, and what the task adds to it; not the pixels: reading 20 GB before each run would cost more than it protects.

Shapes: B rows of a batch, H x W pixels, C classes.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.data_layout import layout_error
from kdzoo.errors import KdzooError
from kdzoo.method import Batch
from kdzoo.task import Data
from kdzoo_segmentation.data.mm_sets import metainfo, pieces
from kdzoo_segmentation.data.photo_sets import PHOTO_SETS, PhotoSet, find
from kdzoo_segmentation.data.photo_views import Recipe
from kdzoo_segmentation.measures import IGNORE


@dataclass(frozen=True, slots=True)
class Photos:
    """Files of a split: what mmseg's pipelines take for each row, and its id."""

    pieces: list[dict[str, Any]]
    ids: list[str]
    classes: int


@dataclass(frozen=True, slots=True)
class Collate:
    """`collate(items, rows, seeds) -> Batch`.

    The batch: view "image" (B, 3, H, W) float32; labels (B, H, W) int64, or smaller by the recipe's stride, `IGNORE`
    everywhere in a pool; counts item and pixel (labelled), and with `weights` weight, the sum over the labelled pixels
    of their classes' weights.
    """

    recipe: Recipe
    decoders: int = 1
    labelled: bool = True
    weights: tuple[float, ...] = ()

    def __call__(self, items: Photos, rows: Tensor, seeds: Tensor | None) -> Batch:
        chosen = rows.tolist()
        photos = self._loaded(items, chosen)
        if seeds is None:
            pairs = [self.recipe.shown(photo) for photo in photos]
        else:
            # One after the other: mmseg's transforms share their generators.
            pairs = [
                self.recipe.trained(photo, seed) for photo, seed in zip(photos, seeds.tolist(), strict=True)
            ]
        images = [self.recipe.normalised(image) for image, _ in pairs]
        masks = [torch.from_numpy(np.ascontiguousarray(mask)).long() for _, mask in pairs]
        if seeds is not None and self.recipe.augment == "mmseg":
            images = [_filled(image, self.recipe.crop, 0.0) for image in images]
            masks = [_filled(mask, _strided(self.recipe), IGNORE) for mask in masks]
        if len({(image.shape, mask.shape) for image, mask in zip(images, masks, strict=True)}) > 1:
            raise KdzooError(
                f"images of different sizes ({', '.join(sorted({_size(image) for image in images}))}) cannot be one "
                "batch without changing them. Evaluate one at a time, with --set eval_batch=1; train on crops, with "
                "--set augment=mmseg."
            )
        labels = torch.stack(masks)
        if not self.labelled:
            labels = torch.full_like(labels, IGNORE)
        counts: dict[str, Any] = {"item": len(chosen), "pixel": int((labels != IGNORE).sum())}
        if self.weights:
            table = torch.tensor(self.weights, dtype=torch.float64)
            counts["weight"] = float(table[labels[labels != IGNORE]].sum())
        return Batch(
            ids=[items.ids[row] for row in chosen],
            views={"image": torch.stack(images)},
            labels=labels,
            counts=counts,
        )

    def _loaded(self, items: Photos, rows: list[int]) -> list[dict[str, Any]]:
        def load(row: int) -> dict[str, Any]:
            return self.recipe.load(items.pieces[row], items.classes)

        if self.decoders == 1 or len(rows) == 1:
            return [load(row) for row in rows]
        with ThreadPoolExecutor(min(self.decoders, len(rows))) as threads:
            return list(threads.map(load, rows))


def _filled(part: Tensor, size: tuple[int, int], value: float) -> Tensor:
    """Up to a size, on the right and below, as mmseg's data preprocessor does."""
    height, width = part.shape[-2:]
    return F.pad(part, (0, max(0, size[1] - width), 0, max(0, size[0] - height)), value=value)


def _strided(recipe: Recipe) -> tuple[int, int]:
    height, width = recipe.crop
    return -(-height // recipe.stride), -(-width // recipe.stride)


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]} x {image.shape[-1]}"


def load(
    name: str,
    split: str,
    root: Path,
    recipe: Recipe,
    *,
    val_share: float = 0.0,
    labelled: float = 1.0,
    decoders: int = 1,
    weights: tuple[float, ...] = (),
    salt: str = "",
) -> Data:
    """One split of a set of photos; the module docstring says what the splits are.

    Args:
        name: a key of `PHOTO_SETS`.
        split: "train", "pool", "val" or "test".
        root: folder that holds the data set's folder, or that folder itself.
        recipe: what is done to the images.
        val_share: share of the training images that is val, in [0, 1).
        labelled: share of the others that keep their labels, in (0, 1].
        decoders: threads that decode the images of a batch; does not change results.
        weights: of the classes, (C,), or none.
        salt: enters the hash.

    Raises:
        KdzooError: files that do not lie as expected, or an empty split.
    """
    home = find(name, root)
    info = PHOTO_SETS[name]
    listed = pieces(name, home, "test" if split == "test" else "train")
    by_id = {os.path.relpath(one["img_path"], home).replace(os.sep, "/"): one for one in listed}
    ids = sorted(by_id)
    if split != "test":
        held = ranked(ids, val_share)
        ids = [key for key in ids if (key in held) == (split == "val")]
        if split == "train" and labelled < 1:
            kept = ranked(ids, labelled)
            ids = [key for key in ids if key in kept]
    if not ids:
        raise layout_error(info, home, f"no image of the {split} split was found", "unpack the whole archive")
    chosen = [by_id[key] for key in ids]
    digest = hashlib.sha256(f"{name} {split} {salt}\n".encode())
    for key, one in zip(ids, chosen, strict=True):
        digest.update(f"{key}\0{_bytes(info, home, one)}\n".encode())
    return Data(
        items=Photos(chosen, ids, len(metainfo(name)["classes"])),
        ids=ids,
        collate=Collate(recipe, decoders, split != "pool", weights),
        hash=digest.hexdigest(),
        fixed_views=split in ("val", "test"),
    )


def ranked(keys: list[str], share: float) -> set[str]:
    """The round(share * n) keys of the smallest sha256: at least one where the share is above 0."""
    if not share:
        return set()
    count = max(1, round(share * len(keys)))
    return set(sorted(keys, key=lambda key: hashlib.sha256(f"kdzoo {key}".encode()).digest())[:count])


def _bytes(info: PhotoSet, home: Path, piece: dict[str, Any]) -> str:
    """Sizes of image and mask; missing or empty files are refused here, before hours of training pass."""
    sizes = []
    for key in ("img_path", "seg_map_path"):
        try:
            size = os.stat(piece[key]).st_size
        except OSError:
            size = 0
        if not size:
            what = os.path.relpath(piece[key], home)
            raise layout_error(
                info,
                home,
                f"{what} is missing or has 0 bytes",
                "unpack the archive again, completely; masks may have to be made first",
            )
        sizes.append(size)
    return f"{sizes[0]}\0{sizes[1]}"
