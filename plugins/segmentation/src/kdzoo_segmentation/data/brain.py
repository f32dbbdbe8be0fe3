"""Labelled slices of one brain (tasks `brain-slices`, `brain-few-labels`): T1 MRI of Colin27, AAL atlas in 8 classes.

Slices of three planes, 2 mm apart; blocks of six go to train, val and test in turn (tools/build_brain.py makes the
files). The training slices with labels are every `EVERY`-th of a plane; all training slices are the pool.

Shapes: N slices of a split, B rows of a batch, 104 x 104 pixels of 2 mm.

Augmentation of training slices and pool, all of it drawn from the sample's seed: rotation, scale and shift (bilinear
for the image, nearest for the labels), gain and offset of the brightness. No mirroring: left and right look alike, but
the planes' orientation would be lost.
"""

from __future__ import annotations

import hashlib
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.errors import unknown
from kdzoo.method import Batch
from kdzoo.rng import uniforms
from kdzoo.shipped import Shipped
from kdzoo.task import Data
from kdzoo_segmentation.measures import IGNORE

FILES = Path(__file__).parent / "files"
SHIPPED = Shipped("brain-slices", "build_brain.py", "kdzoo-segmentation")
SPLITS = ("train", "pool", "val", "test")
METAINFO = {
    "classes": ("background", "frontal", "central", "temporal", "parietal", "occipital", "deep", "cerebellum"),
    "palette": [
        [0, 0, 0], [230, 159, 0], [213, 94, 0], [0, 158, 115], [86, 180, 233], [204, 121, 167], [240, 228, 66],
        [0, 114, 178],
    ],
}  # fmt: skip
SUBSETS = {"small": ("central", "deep", "cerebellum")}
"""Classes with the fewest pixels in the training slices."""
TRAINING = ("train", "pool")  # splits that are augmented
MEAN, STD = 0.2, 0.25  # of the pixels in [0, 1]: about those of the training slices

ROTATION, SCALE, SHIFT = 10.0, 0.1, 0.06  # degrees, share, share of the side, either way
GAIN, OFFSET = 0.2, 0.05  # either way


def load(split: str, labelled: int = 24, folder: Path = FILES) -> Data:
    """One split as the task serves it.

    Args:
        split: "train" (with labels), "pool" (all training slices, without labels), "val" or "test".
        labelled: training slices that have labels, 8 to 134, spread evenly over the planes.
        folder: where the files of tools/build_brain.py are.

    Returns:
        Data whose items are (N, 104, 104) uint8, ids "train/axial/42". Batches have views image (B, 1, 104, 104)
        float32; labels (B, 104, 104) int64, the class, or `IGNORE` everywhere in the pool; counts item, and pixel, the
        pixels with a label.

    Raises:
        KdzooError: no such split; a file that is missing or not the one in the manifest.
    """
    if split not in SPLITS:
        raise unknown("split of brain-slices", split, SPLITS, f"It has {', '.join(SPLITS)}.")
    return _load(split, labelled, folder.resolve())


@cache
def _load(split: str, labelled: int, folder: Path) -> Data:
    images, truth, manifest = read(folder)
    part = "train" if split == "pool" else split
    chosen = [row for row, name in enumerate(manifest["splits"]) if name == part]
    if split == "train":
        chosen = spread(chosen, labelled)
    rows_of = torch.tensor(chosen)
    items, labels = images[rows_of], truth[rows_of]
    ids = [f"{split}/{manifest['ids'][row]}" for row in chosen]
    if split == "pool":
        labels = torch.full_like(labels, IGNORE)

    def collate(items: Tensor, rows: Tensor, seeds: Tensor | None) -> Batch:
        image, masks = items[rows].unsqueeze(1).float() / 255, labels[rows]
        if seeds is not None and split in TRAINING:
            image, moved = augment(image, masks, seeds)
            # In the pool, what comes in at the border would be labelled as air.
            masks = moved if split == "train" else masks
        return Batch(
            ids=[ids[row] for row in rows.tolist()],
            views={"image": (image - MEAN) / STD},
            labels=masks.long(),
            counts={"item": len(rows), "pixel": int((masks != IGNORE).sum())},
        )

    digest = hashlib.sha256("\n".join(ids).encode())
    for part_of in (items, labels):
        digest.update(part_of.numpy().tobytes())
    return Data(items, ids, collate, digest.hexdigest(), fixed_views=split not in TRAINING)


def spread(rows: list[int], count: int) -> list[int]:
    """`count` of the rows, evenly spaced: slices follow each other plane by plane, so every plane gets its share."""
    return [rows[int((k + 0.5) * len(rows) / count)] for k in range(min(count, len(rows)))]


def augment(image: Tensor, labels: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """The training view of (B, 1, 104, 104) in [0, 1] and (B, 104, 104); a row's depends on its seed alone."""
    draw = 2 * torch.from_numpy(uniforms(seeds, 6).astype(np.float32)) - 1  # [-1, 1)
    angle, scale = torch.deg2rad(ROTATION * draw[:, 0]), 1 + SCALE * draw[:, 1]
    shift = 2 * SHIFT * draw[:, 2:4]  # affine_grid's unit is half an image
    cos, sin = angle.cos() / scale, angle.sin() / scale
    theta = torch.stack((cos, -sin, shift[:, 0], sin, cos, shift[:, 1]), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    moved = F.grid_sample(image, grid, align_corners=False)  # outside is black, as the scan's air
    masks = F.grid_sample(labels.unsqueeze(1).float(), grid, mode="nearest", align_corners=False).squeeze(1)
    gain, offset = 1 + GAIN * draw[:, 4], OFFSET * draw[:, 5]
    return moved * gain.view(-1, 1, 1, 1) + offset.view(-1, 1, 1, 1), masks.to(labels.dtype)


@cache
def read(folder: Path = FILES) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Images and labels of all slices, (206, 104, 104) uint8, and the manifest; verified, read once a process."""
    path = folder / "brain-manifest.json"
    manifest = SHIPPED.parsed(path, SHIPPED.content(path), ("sha256", "ids", "splits", "classes"))
    content = SHIPPED.content(folder / "brain.npz", manifest["sha256"]["brain.npz"])
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]), manifest
