"""Cutout and RandAugment: the training view of multi-label photos (augment = "rand").

Cutout (DeVries, Taylor 2017, arXiv:1708.04552) with a random colour: a box of half the height and width around a
random place, cut off at the border. Then RandAugment (Cubuk et al. 2019, arXiv:1909.13719): `OPERATIONS` drawn with
replacement, all at one magnitude. Every choice is a number of the sample's own (see `kdzoo_vision.data.transforms`).

The paper's code takes both from packages at their defaults; which list and magnitude those were is not recorded, so
these are RandAugment's own: 14 operations, 2 of them, magnitude 9 of 10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

CUTOUT = 0.5  # penghui-yang/L2D@ea7fa55: CutoutPIL(cutout_factor=0.5)
OPERATIONS = 2  # arXiv:1909.13719, section 4.2 (ImageNet)
MAGNITUDE = 0.9  # 9 of 10, the same
DRAWS = 5 + 2 * OPERATIONS  # numbers a sample uses

Operation = Callable[[Image.Image, float], Image.Image]


def cut_and_distort(image: Image.Image, draws: Sequence[float]) -> Image.Image:
    """Cutout, then RandAugment.

    Args:
        image: mode RGB; not changed.
        draws: at least `DRAWS` numbers in [0, 1).
    """
    image = cutout(image, draws[:5])
    for k in range(OPERATIONS):
        which, sign = draws[5 + 2 * k], draws[6 + 2 * k]
        operation = TABLE[int(which * len(TABLE))]
        image = operation(image, MAGNITUDE if sign < 0.5 else -MAGNITUDE)
    return image


def cutout(image: Image.Image, draws: Sequence[float]) -> Image.Image:
    """The image with one box filled: draws are its centre (x, y) and its colour (red, green, blue)."""
    x, y = int(draws[0] * image.width), int(draws[1] * image.height)
    wide, high = int(CUTOUT * image.width + 0.5), int(CUTOUT * image.height + 0.5)
    left, top = max(0, x - wide // 2), max(0, y - high // 2)
    right, bottom = min(image.width, x + wide // 2), min(image.height, y + high // 2)
    if right <= left or bottom <= top:
        return image
    image = image.copy()
    colour = tuple(int(256 * value) for value in draws[2:5])
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=colour)
    return image


def _affine(image: Image.Image, a: float, b: float, c: float, d: float, e: float, f: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """Colour, contrast, brightness or sharpness, times 1 +- 0.9."""
    return lambda image, size: kind(image).enhance(1 + 0.9 * size)


# `size` is the signed magnitude in [-1, 1]; ranges are those of AutoAugment (arXiv:1805.09501, table 6), which
# RandAugment uses. Operations without a strength ignore it, those without a direction take its absolute value.
TABLE: tuple[Operation, ...] = (
    lambda image, size: image,
    lambda image, size: ImageOps.autocontrast(image),
    lambda image, size: ImageOps.equalize(image),
    lambda image, size: image.rotate(30 * size, Image.Resampling.BILINEAR),
    lambda image, size: ImageOps.solarize(image, 256 - int(256 * abs(size))),
    lambda image, size: ImageOps.posterize(image, 8 - int(4 * abs(size))),
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Sharpness),
    lambda image, size: _affine(image, 1, 0.3 * size, 0, 0, 1, 0),
    lambda image, size: _affine(image, 1, 0, 0, 0.3 * size, 1, 0),
    lambda image, size: _affine(image, 1, 0, 0.45 * size * image.width, 0, 1, 0),
    lambda image, size: _affine(image, 1, 0, 0, 0, 1, 0.45 * size * image.height),
)
