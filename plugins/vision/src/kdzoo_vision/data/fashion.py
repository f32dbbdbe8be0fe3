"""A part of Fashion-MNIST with few labels (task `fashion-few-labels`), and the teacher that ships with it.

train   500 labelled images, 50 a class, of the official training part
pool    12,000 others of the training part; their labels do not ship
val     2,000, test 5,000: disjoint parts of the official test part, classes balanced
The teacher was trained on all 60,000 images of the training part, so its answers on train and pool are
answers on images it has learned. tools/build_fashion.py makes the files, tools/train_fashion_teacher.py the
teacher; the manifest holds the sha256 of all data files. The licence (MIT, Zalando SE) lies beside them.

Shapes: N images of a split, B rows of a batch.

Augmentation, all of it drawn from the sample's seed: a shift by -2 to 2 pixels each way (black comes in at
the border) and a mirror image half of the time: 50 equally likely views.
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

from kdzoo.errors import KdzooError, unknown
from kdzoo.method import Batch
from kdzoo.rng import uniforms
from kdzoo.shipped import Shipped
from kdzoo.task import Data

FILES = Path(__file__).parent / "files"
SHIPPED = Shipped("Fashion-MNIST", "build_fashion.py", "kdzoo-vision")
SPLITS = ("train", "pool", "val", "test")
SIDE = 28  # pixels
SHIFT = 2  # pixels, largest shift
FRAME = SIDE + 2 * SHIFT  # side of an image with its black border
CLASSES = 10
LABELS = 500  # how many labelled images ship
# Where each of the 50 augmented views begins: as it is or mirrored, then the two shifts.
VIEWS = torch.tensor(
    [
        (mirrored * FRAME + down) * FRAME + right
        for mirrored in range(2)
        for down in range(2 * SHIFT + 1)
        for right in range(2 * SHIFT + 1)
    ]
)


def load(split: str, labels: int = LABELS, *, augment: bool = True, folder: Path = FILES) -> Data:
    """One split, read once per process.

    Args:
        split: train, pool, val or test.
        labels: how many samples of train to keep, 10 to 500: the first ones, in which the classes are
            balanced (exactly so for multiples of 10). The other splits do not depend on it.
        augment: False to give every sample as it is even where the loader hands out seeds: what a frozen teacher
            says about it is then worth recording.
        folder: where the files are.

    Returns:
        Data whose items are (N, 2, 32, 32) uint8: each image with a black border of two pixels, as it is and
        mirrored; ids "<split>/<position>"; groups (N,) the classes, None for pool. Batches have views image
        (B, 1, 28, 28) float32, mean 0 and variance 1 over the official training part; labels (B,) int64, -1
        for pool; counts item (B) and label (B, or 0 for pool).

    Raises:
        KdzooError: unknown split, labels out of range, a file missing or not as in the manifest.
    """
    if split not in SPLITS:
        raise unknown("split of fashion-few-labels", split, SPLITS, f"It has {', '.join(SPLITS)}.")
    if not CLASSES <= labels <= LABELS:
        raise KdzooError(
            f"labels = {labels} given, {CLASSES} to {LABELS} expected: a class without a label could not be "
            f"learned, and only {LABELS} labelled images ship. Set labels to such a number."
        )
    return _load(split, labels if split == "train" else LABELS, augment, folder.resolve())


@cache
def _load(split: str, labels: int, augment: bool, folder: Path) -> Data:
    manifest = _description(folder / "fashion-manifest.json")
    images = _images(folder, manifest, split)
    classes = None
    if split != "pool":
        archive = SHIPPED.content(folder / "fashion-labels.npz", manifest["sha256"]["fashion-labels.npz"])
        with np.load(io.BytesIO(archive), allow_pickle=False) as arrays:
            classes = torch.from_numpy(arrays[split].astype(np.int64))
    if split == "train":
        images, classes = images[:labels], None if classes is None else classes[:labels]

    return as_data(split, images, classes, manifest["mean"], manifest["std"], augment)


def as_data(
    split: str, images: Tensor, classes: Tensor | None, mean: float, std: float, augment: bool = True
) -> Data:
    """Any images of this kind as a split.

    Args:
        split: the first part of the ids.
        images: (N, 28, 28) uint8.
        classes: (N,) int64, or None without labels.
        mean, std: of the pixels, in units of 255.
        augment: as in `load`.
    """
    items = torch.zeros(len(images), 2, FRAME, FRAME, dtype=torch.uint8)
    inner = slice(SHIFT, SHIFT + SIDE)
    items[:, 0, inner, inner] = images
    items[:, 1, inner, inner] = images.flip(2)
    ids = [f"{split}/{k}" for k in range(len(images))]
    digest = hashlib.sha256("\n".join(ids).encode())
    digest.update(images.numpy().tobytes())
    if classes is not None:
        digest.update(classes.numpy().tobytes())
    # normalised = pixel / (255 std) - mean / std, in one pass from uint8 to float32
    low, scale = torch.tensor(-mean / std), 1 / (255 * std)

    def collate(items: Tensor, rows: Tensor, seeds: Tensor | None) -> Batch:
        # A view is a 28x28 window of the flat memory; copying windows is twice as fast as gathering pixels.
        count = items.numel() - (SIDE - 1) * (FRAME + 1)
        windows = items.as_strided((count, SIDE, SIDE), (1, FRAME, 1))
        start = view_offsets(seeds) if augment and seeds is not None else SHIFT * FRAME + SHIFT
        pixels = windows.index_select(0, rows * (2 * FRAME * FRAME) + start)
        size = len(rows)
        return Batch(
            ids=[ids[row] for row in rows.tolist()],
            views={"image": torch.add(low, pixels, alpha=scale).unsqueeze(1)},
            labels=torch.full((size,), -1) if classes is None else classes[rows],
            counts={"item": size, "label": 0 if classes is None else size},
        )

    return Data(items, ids, collate, digest.hexdigest(), classes, fixed_views=not augment)


def statistics(folder: Path = FILES) -> tuple[float, float]:
    """Mean and standard deviation of the pixels of the official training part, in units of 255."""
    manifest = _description(folder / "fashion-manifest.json")
    return manifest["mean"], manifest["std"]


def view_offsets(seeds: Tensor) -> Tensor:
    """Where the augmented view of each sample begins, within its two frames.

    Args:
        seeds: (B,) int64.

    Returns:
        (B,) int64 positions in the 2 x 32 x 32 numbers of the sample.
    """
    view = (uniforms(seeds, 1)[:, 0] * len(VIEWS)).astype(np.int64)
    return VIEWS.index_select(0, torch.from_numpy(view))


def teacher(folder: Path = FILES) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The shipped teacher: what is known of it, and its weights.

    Returns:
        fashion-teacher.json (model: the name for `kdzoo_vision.models.build`, command, seed, steps,
        val_accuracy, sha256 ...) and the state dict, float32.

    Raises:
        KdzooError: a file is missing or not the one that the JSON describes.
    """
    from safetensors.torch import load as from_bytes

    info = _description(folder / "fashion-teacher.json")
    weights = from_bytes(SHIPPED.content(folder / "fashion-teacher.safetensors", info["sha256"]))
    return info, {
        name: value.float() if value.is_floating_point() else value for name, value in weights.items()
    }


def _images(folder: Path, manifest: dict[str, Any], split: str) -> Tensor:
    """(N, 28, 28) uint8 from the split's sheet."""
    from PIL import Image

    entry, columns = manifest["splits"][split], manifest["columns"]
    png = SHIPPED.content(folder / entry["file"], manifest["sha256"][entry["file"]])
    sheet = np.asarray(Image.open(io.BytesIO(png)))
    images = sheet.reshape(-1, SIDE, columns, SIDE).transpose(0, 2, 1, 3).reshape(-1, SIDE, SIDE)
    return torch.from_numpy(np.ascontiguousarray(images))


def _description(path: Path) -> dict[str, Any]:
    """A JSON file that says what other files hold."""
    return SHIPPED.parsed(path, SHIPPED.content(path), ("sha256",))
