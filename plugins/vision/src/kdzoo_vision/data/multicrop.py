"""Several random crops of each image, for learning without labels: two large ones and some small ones.

Recipe (Caron et al. 2021, arXiv 2104.14294, after BYOL, arXiv 2006.07733, table 6; skyoux/mokd@f7b1386
augmentations/dino_augmentation.py): a random area of random ratio, resized; mirror image; brightness and contrast; blur
(always on the first large crop, for a tenth of the second, for half of the small ones); solarisation for a fifth of
the second large crop.

`grey_crops` does this for small grey images, a whole batch at once; `photo_crop` for one crop of a photo, with colours
too. All numbers are drawn from the sample's seed.

Shapes: B images, V = 2 + L crops, S pixels a side. Crops lie one after the other along the first axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo.rng import uniforms
from kdzoo_vision.data.transforms import RATIO, TRIES, random_area

GREY_DRAWS = 12  # numbers a crop of a grey image uses
PHOTO_DRAWS = 11 + 4 * TRIES  # those of a photo: the last ones are the tries of `random_area`
MIRROR, JITTER, GREY = 0.5, 0.8, 0.2  # probabilities; skyoux/mokd@f7b1386 augmentations/dino_augmentation.py
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1  # ibid.
BLUR = (1.0, 0.1, 0.5)  # probability on the first large crop, the second, a small one; ibid.
SOLARIZE = 0.2  # probability on the second large crop; ibid.
RADIUS = (0.1, 2.0)  # of the blur at 224 pixels; skyoux/mokd@f7b1386 utils/preprocess.py
SIGMA = (0.1, 1.0)  # of the blur on small grey images, pixels: scaled from 224 pixels it would blur nothing


@dataclass(frozen=True, slots=True)
class Crops:
    """Sizes, in pixels, and areas, as shares of the image's, of the two kinds of crops.

    Attributes:
        small: how many small crops, L.
    """

    large_size: int
    small_size: int
    small: int
    large_area: tuple[float, float]
    small_area: tuple[float, float]

    def __post_init__(self) -> None:
        for name, (low, high) in (("large", self.large_area), ("small", self.small_area)):
            if not 0.0 < low <= high <= 1.0:
                raise KdzooError(
                    f"areas of the {name} crops are {low:g} to {high:g}; expected shares above 0, up to 1, in order"
                )
        if self.small < 1 or min(self.large_size, self.small_size) < 1:
            raise KdzooError(
                f"{self.small} small crops of {self.small_size} pixels and large ones of {self.large_size}: "
                "expected at least one small crop and one pixel; without small crops there is nothing to search for"
            )

    @property
    def count(self) -> int:
        """V."""
        return 2 + self.small

    def size(self, crop: int) -> int:
        return self.large_size if crop < 2 else self.small_size

    def area(self, crop: int) -> tuple[float, float]:
        return self.large_area if crop < 2 else self.small_area


def grey_crops(images: Tensor, seeds: Tensor, crops: Crops) -> tuple[Tensor, Tensor]:
    """Crops of small grey square images, bilinear, all of a batch at once.

    Args:
        images: (B, 1, S, S) float, 0 to 1.
        seeds: (B,) int64.

    Returns:
        large (2 B, 1, large_size, large_size) and small (L B, 1, small_size, small_size), 0 to 1.
    """
    drawn = torch.from_numpy(uniforms(seeds, crops.count * GREY_DRAWS)).float()
    drawn = drawn.view(len(images), crops.count, GREY_DRAWS).transpose(0, 1)
    return _grey(images, drawn[:2], crops, 0), _grey(images, drawn[2:], crops, 2)


def _grey(images: Tensor, drawn: Tensor, crops: Crops, first: int) -> Tensor:
    """`drawn` (V', B, GREY_DRAWS) -> crops (V' B, 1, size, size)."""
    views, count = drawn.shape[:2]
    area, ratio, left, top, mirror, jitter, bright, contrast, order, blur, sigma, solar = drawn.flatten(
        0, 1
    ).unbind(1)
    low, high = crops.area(first)
    share = low + (high - low) * area
    shape = torch.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * ratio)
    # Of a square image a box of area 1 fits with ratio 1 only; a side that is too long is cut.
    width, height = (share * shape).sqrt().clamp_max(1.0), (share / shape).sqrt().clamp_max(1.0)
    flip = torch.where(mirror < MIRROR, -1.0, 1.0)
    zero = torch.zeros_like(width)
    boxes = torch.stack(
        [
            torch.stack([width * flip, zero, (1 - width) * (2 * left - 1)], 1),
            torch.stack([zero, height, (1 - height) * (2 * top - 1)], 1),
        ],
        1,
    )
    size = crops.size(first)
    grid = F.affine_grid(boxes, [views * count, 1, size, size], align_corners=False)
    x = F.grid_sample(
        images.repeat(views, 1, 1, 1), grid, mode="bilinear", padding_mode="border", align_corners=False
    )

    def column(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1)

    change = jitter < JITTER
    by = column(torch.where(change, 1 - BRIGHTNESS + 2 * BRIGHTNESS * bright, 1.0))
    spread = column(torch.where(change, 1 - CONTRAST + 2 * CONTRAST * contrast, 1.0))
    # Brightness and contrast in random order, as torchvision's ColorJitter: only the mean that contrast keeps differs.
    before = column((order < 0.5).float())
    x = x * (before * by + 1 - before)
    x = (x - (mean := x.mean((2, 3), keepdim=True))) * spread + mean
    x = (x * ((1 - before) * by + before)).clamp(0, 1)
    chances = torch.tensor([BLUR[min(first + v, 2)] for v in range(views)]).repeat_interleave(count)
    s = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * sigma
    side = column(torch.where(blur < chances, torch.exp(-0.5 / s.square()), 0.0))
    x = _blurred(x, side)
    if first == 0:
        second = torch.arange(views).repeat_interleave(count) == 1
        x = torch.where(column(second & (solar < SOLARIZE)), torch.where(x >= 0.5, 1 - x, x), x)
    return x


def _blurred(x: Tensor, side: Tensor) -> Tensor:
    """Three taps (side, 1, side) / (1 + 2 side) each way; `side` (n, 1, 1, 1)."""
    centre = 1 / (1 + 2 * side)
    padded = F.pad(x, (1, 1, 0, 0), mode="replicate")
    x = (padded[..., 1:-1] + side * (padded[..., :-2] + padded[..., 2:])) * centre
    padded = F.pad(x, (0, 0, 1, 1), mode="replicate")
    return (padded[..., 1:-1, :] + side * (padded[..., :-2, :] + padded[..., 2:, :])) * centre


def photo_crop(image: Image.Image, crop: int, drawn: list[float], crops: Crops) -> np.ndarray:
    """Crop `crop` (0 and 1 large, then small) of a photo: (S, S, 3) uint8.

    Args:
        image: mode RGB, any size.
        drawn: `PHOTO_DRAWS` numbers in [0, 1).
    """
    mirror, jitter, bright, contrast, saturation, hue, grey, blur, radius, solar, order = drawn[:11]
    left, top, width, height = random_area(image.width, image.height, drawn[11:], crops.area(crop))
    size = crops.size(crop)
    box = (left, top, left + width, top + height)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if mirror < MIRROR:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if jitter < JITTER:
        image = _coloured(image, bright, contrast, saturation, hue, int(order * 24))
    if grey < GREY:
        image = image.convert("L").convert("RGB")
    if blur < BLUR[min(crop, 2)]:
        image = image.filter(ImageFilter.GaussianBlur(RADIUS[0] + (RADIUS[1] - RADIUS[0]) * radius))
    if crop == 1 and solar < SOLARIZE:
        image = ImageOps.solarize(image)
    return np.asarray(image)


def _coloured(
    image: Image.Image, bright: float, contrast: float, saturation: float, hue: float, order: int
) -> Image.Image:
    """Brightness, contrast, saturation and hue, in the order of permutation number `order` (0 to 23)."""

    def factor(width: float, draw: float) -> float:
        return 1 - width + 2 * width * draw

    steps = ["brightness", "contrast", "saturation", "hue"]
    for left in (4, 3, 2, 1):
        step = steps.pop(order % left)
        order //= left
        if step == "brightness":
            image = ImageEnhance.Brightness(image).enhance(factor(BRIGHTNESS, bright))
        elif step == "contrast":
            image = ImageEnhance.Contrast(image).enhance(factor(CONTRAST, contrast))
        elif step == "saturation":
            image = ImageEnhance.Color(image).enhance(factor(SATURATION, saturation))
        else:
            h, s, v = image.convert("HSV").split()
            turn = round(255 * HUE * (2 * hue - 1))
            turned = Image.fromarray((np.asarray(h).astype(np.int16) + turn).astype(np.uint8))
            image = Image.merge("HSV", (turned, s, v)).convert("RGB")
    return image
