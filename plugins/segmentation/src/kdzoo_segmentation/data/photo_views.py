"""How a photo becomes what models see: mmseg's transforms, with all randomness taken from the sample's seed.

mmseg's transforms draw from numpy's and Python's global generators. `seeded` seeds both for the time of a sample and
puts their states back, so a view is a function of the seed alone, and nothing else in the process moves. Files are
decoded before, without any draw: that may happen in threads; the random part may not.

Shapes: H x W pixels of the file, h x w of the view. Images are BGR, uint8, as mmcv reads them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdzoo.errors import KdzooError
from kdzoo_segmentation.measures import IGNORE
from kdzoo_segmentation.openmmlab import TRANSFORMS, in_mmseg

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # RGB: mmseg configs/_base_/models/*.py
SHIFT = 2  # pixels: RuipingL/TransKD@39ab795 train/train_TransKDBase.py, MyCoTransform
COLOURS = {3: 0, 6: 1, 5: 2, 2: 3, 1: 4, 7: 5, 0: IGNORE}
"""DeepGlobe's colours as bits (red 4, green 2, blue 1) -> class; red alone is the colour of none."""
NO_CLASS = 254


@dataclass(frozen=True)
class Recipe:
    """What is done to an image and its mask.

    Attributes:
        scale: (long side, short side) that the image is resized to fit, pixels.
        jitter: range of the factor on `scale` in training.
        crop: (height, width) of training views; smaller images are padded, with mask `IGNORE`.
        augment: "mmseg": resize, crop, flip, colours; "shift": the image at `scale`, flip, shift by up to 2 pixels.
        pad: fill small images up before normalising (black), as mmseg does on VOC, not after (the mean).
        resized: evaluate at `scale`, the scores resized to the mask, not at the file's own size.
        stride: masks are given at 1 / stride of the view's size, by nearest neighbour.
        pixels: "imagenet" (mean 0, standard deviation 1 over ImageNet) or "unit" ([0, 1]).
        coloured: masks are in DeepGlobe's colours.
    """

    scale: tuple[int, int]
    crop: tuple[int, int]
    jitter: tuple[float, float] = (0.5, 2.0)
    augment: str = "mmseg"
    pad: bool = False
    resized: bool = True
    stride: int = 1
    pixels: str = "imagenet"
    coloured: bool = False

    @cached_property
    def loading(self) -> list[Any]:
        """Read image and mask."""
        kind = "LoadAnnotations" if not self.coloured else "LoadColouredAnnotations"
        return _built({"type": "LoadImageFromFile"}, {"type": kind})

    @cached_property
    def training(self) -> list[Any]:
        """What is drawn anew for each view."""
        flip = {"type": "RandomFlip", "prob": 0.5}
        if self.augment == "shift":
            return _built(self._resize, flip, {"type": "RandomShift", "most": SHIFT})
        height, width = self.crop
        pad = {"type": "Pad", "size": (width, height), "pad_val": {"img": 0, "seg": IGNORE}}
        return _built(
            {"type": "RandomResize", "scale": self.scale, "ratio_range": self.jitter, "keep_ratio": True},
            {"type": "RandomCrop", "crop_size": self.crop, "cat_max_ratio": 0.75},
            flip,
            {"type": "PhotoMetricDistortion"},
            *([pad] if self.pad else []),
        )

    @property
    def _resize(self) -> dict[str, Any]:
        return {"type": "Resize", "scale": self.scale, "keep_ratio": True}

    @cached_property
    def resizing(self) -> list[Any]:
        """The image's size in evaluation; the mask keeps the file's, unless it is wanted at a stride."""
        return _built(self._resize) if self.resized else []

    def load(self, piece: dict[str, Any], classes: int) -> dict[str, Any]:
        """Read a photo; deterministic.

        Args:
            piece: an entry of `kdzoo_segmentation.data.mm_sets.pieces`.
            classes: C, to hold the mask against.

        Raises:
            KdzooError: a file that cannot be read, or a mask that is not the image's or not the data set's.
        """
        found = {**piece, "seg_fields": []}
        for step in self.loading:
            try:
                found = step(found)
            except Exception as error:  # whatever the decoders of mmcv, OpenCV and Pillow raise
                raise KdzooError(
                    f"{found['img_path']} or its mask {found['seg_map_path']} cannot be read "
                    f"({type(error).__name__}: {' '.join(str(error).split())[:120]}): unpack the data set again."
                ) from error
        check_mask(found, classes)
        return found

    def trained(self, photo: dict[str, Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """A training view of a loaded photo: image (h, w, 3) and mask, a function of the photo and the seed."""
        with seeded(seed):
            for step in self.training:
                photo = step(photo)
        return photo["img"], self._strided(photo["gt_seg_map"], photo["img"])

    def shown(self, photo: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The view in evaluation: the whole image, at `scale` if `resized`, and the mask at its own size."""
        mask = photo.pop("gt_seg_map")
        photo["seg_fields"] = []
        for step in self.resizing:
            photo = step(photo)
        return photo["img"], mask if self.stride == 1 else self._strided(mask, photo["img"])

    def _strided(self, mask: np.ndarray, image: np.ndarray) -> np.ndarray:
        if self.stride == 1:
            return mask
        rows, columns = (
            ((np.arange(-(-side // self.stride)) + 0.5) * full / -(-side // self.stride)).astype(int)
            for side, full in zip(image.shape[:2], mask.shape, strict=True)
        )
        return mask[rows[:, None], columns]

    def normalised(self, image: np.ndarray) -> Tensor:
        """(3, h, w) float32, RGB, of an image (h, w, 3)."""
        rgb = torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1).float()
        if self.pixels == "unit":
            return rgb / 255
        return (rgb - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def _built(*steps: dict[str, Any]) -> list[Any]:
    with in_mmseg():
        return [TRANSFORMS.build(step) for step in steps]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Both global generators that mmseg's transforms draw from start at `seed`; their states come back after."""
    state, plain = np.random.get_state(), random.getstate()
    np.random.seed([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF])
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
        random.setstate(plain)


def check_mask(photo: dict[str, Any], classes: int) -> None:
    """Refuse a mask in colours, of another size than its image, or with numbers that are no class.

    Raises:
        KdzooError: so.
    """
    mask, size, name = photo["gt_seg_map"], photo["ori_shape"], photo["seg_map_path"]
    if mask.ndim != 2:
        raise KdzooError(
            f"the mask {name} has {mask.shape[-1]} colour channels, expected one number a pixel: its palette was lost "
            "when it was saved, and colours would be read as classes. Take the data set's own PNG files (mode P or L)."
        )
    if mask.shape != tuple(size):
        raise KdzooError(
            f"the mask {name} is {mask.shape[0]} x {mask.shape[1]} pixels and its image {size[0]} x {size[1]}: classes "
            "would be held against the wrong places. Take the mask that belongs to the image, at its full size."
        )
    strange = (mask >= classes) & (mask != IGNORE)
    if strange.any():
        raise KdzooError(
            f"the mask {name} holds the number {int(mask[strange].min())} at {int(strange.sum()):,} pixels, expected 0 "
            f"to {classes - 1}, or {IGNORE} to be ignored: the loss would read outside of the scores. Make the masks "
            "with the data set's own script; 'kdzoo show' says which files are expected."
        )


@TRANSFORMS.register_module()
class LoadColouredAnnotations:
    """Read a mask in DeepGlobe's colours; a channel counts as on from 128 (its masks are compressed with losses)."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        with Image.open(results["seg_map_path"]) as picture:
            on = np.asarray(picture.convert("RGB")) >= 128
        table = np.full(8, NO_CLASS, dtype=np.uint8)
        for bits, label in COLOURS.items():
            table[bits] = label
        results["gt_seg_map"] = table[on @ np.array([4, 2, 1])]
        results["seg_fields"].append("gt_seg_map")
        return results


@TRANSFORMS.register_module()
class RandomShift:
    """Move image and mask by up to `most` pixels along both axes; black, and `IGNORE`, come in."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        right, down = np.random.randint(-self.most, self.most + 1, 2)
        for name, filling in (("img", 0), ("gt_seg_map", IGNORE)):
            results[name] = shifted(results[name], int(down), int(right), filling)
        return results


def shifted(part: np.ndarray, down: int, right: int, filling: int) -> np.ndarray:
    """An image or mask (H, W, ...) moved by whole pixels; `filling` comes in."""
    height, width = part.shape[:2]
    moved = np.full_like(part, filling)
    moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = part[
        max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return moved
