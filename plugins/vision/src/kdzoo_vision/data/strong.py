"""The image changes of the DeiT recipe: RandAugment on PIL images, random erasing on normalised batches.

All numbers come from the caller's draws, uniform in [0, 1), so that a sample's seed fixes its pixels. The policy is
``rand-m9-mstd0.5-inc1`` in timm's notation: two operations out of fifteen, each applied half of the time, at magnitude
9 of 10 with a normal spread of 0.5; operations that can, change an image more with the magnitude in both directions.

Shapes: B images, I channels, S side in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

OPERATIONS = 2  # an image
MAGNITUDE, SPREAD, TOP = 9.0, 0.5, 10.0  # of the operations; Touvron et al. 2021 (arXiv 2012.12877), table 9
APPLY = 0.5  # timm's probability of each chosen operation
DRAWS = 5 * OPERATIONS  # choice, whether, two for the magnitude, direction
ERASE_TRIES = 10
ERASE_DRAWS = 1 + 4 * ERASE_TRIES
ERASE_AREA = (0.02, 1 / 3)  # share of the image; Zhong et al. 2017 (arXiv 1708.04896)
ERASE_RATIO = (0.3, 1 / 0.3)  # height / width

Fill = tuple[int, int, int]
Operation = Callable[[Image.Image, float, float, Fill], Image.Image]
"""(image, level in [0, 1], sign, fill) -> image."""


def rand_augment(image: Image.Image, draws: Sequence[float], fill: Fill) -> Image.Image:
    """Two random operations, one after the other.

    Args:
        image: mode RGB.
        draws: `DRAWS` numbers in [0, 1).
        fill: colour of what comes in at the border: the data set's mean.

    Source: Cubuk et al. 2020, arXiv 1909.13719; magnitudes as in timm's "increasing" set.
    """
    for k in range(OPERATIONS):
        choice, apply, first, second, direction = draws[5 * k : 5 * k + 5]
        if apply >= APPLY:
            continue
        # Box-Muller; 1 - u is never 0.
        normal = math.sqrt(-2.0 * math.log(1.0 - first)) * math.cos(2.0 * math.pi * second)
        level = min(max(MAGNITUDE + SPREAD * normal, 0.0), TOP) / TOP
        operation = _OPERATIONS[int(choice * len(_OPERATIONS))]
        image = operation(image, level, -1.0 if direction < 0.5 else 1.0, fill)
    return image


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    transform, filter_ = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    return image.transform(image.size, transform, matrix, resample=filter_, fillcolor=fill)


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """Colour, contrast, brightness or sharpness multiplied by 1 +- 0.9 level, at least 0.1."""
    return lambda image, level, sign, _: kind(image).enhance(max(0.1, 1.0 + sign * 0.9 * level))


def _posterized(image: Image.Image, level: float, sign: float, fill: Fill) -> Image.Image:
    bits = 4 - int(4 * level)
    # PIL keeps 1 to 8 bits; with none a black image is left.
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def _solarized(image: Image.Image, level: float, sign: float, fill: Fill) -> Image.Image:
    return ImageOps.solarize(image, 256 - min(256, int(256 * level)))


def _brightened_below(image: Image.Image, level: float, sign: float, fill: Fill) -> Image.Image:
    """Pixels under 128 gain up to 110: timm's SolarizeAdd."""
    gain = min(128, int(110 * level))
    return image.point([min(255, value + gain) if value < 128 else value for value in range(256)] * 3)


_OPERATIONS: tuple[Operation, ...] = (
    lambda image, level, sign, fill: ImageOps.autocontrast(image),
    lambda image, level, sign, fill: ImageOps.equalize(image),
    lambda image, level, sign, fill: ImageOps.invert(image),
    lambda image, level, sign, fill: image.rotate(
        sign * 30.0 * level, resample=Image.Resampling.BICUBIC, fillcolor=fill
    ),
    _posterized,
    _solarized,
    _brightened_below,
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Sharpness),
    lambda image, level, sign, fill: _affine(image, (1, sign * 0.3 * level, 0, 0, 1, 0), fill),
    lambda image, level, sign, fill: _affine(image, (1, 0, 0, sign * 0.3 * level, 1, 0), fill),
    lambda image, level, sign, fill: _affine(image, (1, 0, sign * 0.45 * level * image.width, 0, 1, 0), fill),
    lambda image, level, sign, fill: _affine(
        image, (1, 0, 0, 0, 1, sign * 0.45 * level * image.height), fill
    ),
)


def erase(images: Tensor, seeds: Tensor, draws: np.ndarray, share: float) -> Tensor:
    """A share of the images gets one box of standard normal noise, pixel by pixel; in place.

    Args:
        images: (B, I, S, S) normalised.
        seeds: (B,) int64, of the noise.
        draws: (B, `ERASE_DRAWS`) in [0, 1).
        share: probability of an image to lose a box.

    Source: Zhong et al. 2017, arXiv 1708.04896; timm's mode "pixel".
    """
    height, width = images.shape[2:]
    for k in np.flatnonzero(draws[:, 0] < share).tolist():
        box = _box(height, width, draws[k, 1:])
        if box is None:
            continue
        top, left, h, w = box
        generator = torch.Generator().manual_seed(int(seeds[k]))
        images[k, :, top : top + h, left : left + w] = torch.randn(images.shape[1], h, w, generator=generator)
    return images


def _box(height: int, width: int, draws: np.ndarray) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) smaller than the image, or None where no try fits."""
    low, high = map(math.log, ERASE_RATIO)
    for area, ratio, top, left in draws.reshape(-1, 4).tolist():
        size = height * width * (ERASE_AREA[0] + (ERASE_AREA[1] - ERASE_AREA[0]) * area)
        shape = math.exp(low + (high - low) * ratio)
        h, w = round(math.sqrt(size * shape)), round(math.sqrt(size / shape))
        if 0 < h < height and 0 < w < width:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    return None
