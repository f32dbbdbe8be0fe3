"""Decoding and augmentation of images, as a function of the file and one seed per sample.

Shapes: B rows of a batch, H x W pixels, S = image_size. Random numbers come from SplitMix64 (Steele, Lea,
Flood 2014), used as a counter: draw k of a sample is a hash of (seed, k). It needs no state, gives the same
numbers in each thread, process and library version, and costs a few vector operations for a whole batch.

Training transforms (`augment`):
- ``crop``: resize, random S x S crop, flip. Metric learning (lenscloth/RKD@0a6c3c0, run.py: 256, 224).
- ``area``: a random part of 8 to 100 % of the area and ratio 3/4 to 4/3, resized to S x S, flip. ImageNet.
- ``strong``: as ``area``, then RandAugment as in DeiT's recipe (`kdzoo_vision.data.strong`), all bicubic. ImageNet.
- ``pad``: 4 black pixels at each side, random S x S crop, flip. CIFAR and other small images.
- ``rand``: the whole image resized to S x S, Cutout, RandAugment (`kdzoo_vision.data.randaugment`). Multi-label.
- ``none``: the evaluation transform.
The evaluation transform is resize and centre crop (for ``pad``: resize to S, without effect at native size).
Resizing is PIL's antialiased bilinear filter (for ``strong`` the bicubic one); evaluation gives the pixels of
torchvision's PIL transforms.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdzoo.errors import KdzooError
from kdzoo.rng import uniforms
from kdzoo_vision.data import strong
from kdzoo_vision.data.datasets import Augment
from kdzoo_vision.data.randaugment import cut_and_distort

PAD = 4  # pixels; He et al. 2016 (CIFAR recipe)
AREA = (0.08, 1.0)  # share of the image's area; Szegedy et al. 2015
RATIO = (3 / 4, 4 / 3)  # width / height; Szegedy et al. 2015
TRIES = 10  # torchvision's number of attempts before it falls back to a centre crop
DRAWS = 1 + 4 * TRIES  # flip, then at most four numbers a try


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an image becomes a tensor.

    Attributes:
        image_size: S, pixels.
        resize: side before the crop, pixels, >= S; used by ``crop`` and by evaluation.
        augment: see the module.
        squash: resize to resize x resize instead of the short side to `resize`.
        mean, std: RGB, in units of 255.
    """

    image_size: int
    resize: int
    augment: Augment
    squash: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise KdzooError(f"image_size is {self.image_size}; expected at least 1 pixel")
        if self.resize < self.image_size:
            raise KdzooError(
                f"resize is {self.resize} but image_size is {self.image_size}: the crop would not fit. "
                "Set resize to at least image_size."
            )
        if self.augment not in ("crop", "area", "strong", "pad", "rand", "none"):
            raise KdzooError(
                f"augment is {self.augment!r}; expected 'crop', 'area', 'strong', 'pad', 'rand' or 'none'"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise KdzooError(
                f"mean is {self.mean} and std is {self.std}; expected three RGB values each, std above 0"
            )

    def __call__(self, image: Image.Image, draws: Sequence[float] | None) -> np.ndarray:
        """(S, S, 3) uint8 pixels of one image.

        Args:
            image: mode RGB, any size.
            draws: `draws` numbers in [0, 1), or None for the evaluation transform.
        """
        size = self.image_size
        if draws is None or self.augment == "none":
            if self.augment == "pad":
                image = _resized(image, size, size)
            else:
                image = self._shrunk(image)
                left, top = _middle(image.width - size), _middle(image.height - size)
                image = image.crop((left, top, left + size, top + size))
            return np.asarray(image)
        if self.augment == "rand":
            return np.asarray(cut_and_distort(_resized(image, size, size), draws))
        if self.augment in ("area", "strong"):
            left, top, width, height = random_area(image.width, image.height, draws[1:])
            image = image.crop((left, top, left + width, top + height))
            image = _resized(image, size, size, self.filter)
        else:
            if self.augment == "pad":
                image = _resized(image, size, size)
                padded = Image.new("RGB", (size + 2 * PAD, size + 2 * PAD))
                padded.paste(image, (PAD, PAD))
                image = padded
            else:
                image = self._shrunk(image)
            left = int(draws[1] * (image.width - size + 1))
            top = int(draws[2] * (image.height - size + 1))
            image = image.crop((left, top, left + size, top + size))
        if draws[0] < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.augment == "strong":
            red, green, blue = (round(255 * value) for value in self.mean)
            image = strong.rand_augment(image, draws[DRAWS:], (red, green, blue))
        return np.asarray(image)

    @property
    def draws(self) -> int:
        """How many numbers the training transform of an image takes."""
        return DRAWS + strong.DRAWS if self.augment == "strong" else DRAWS

    @property
    def filter(self) -> Image.Resampling:
        """DeiT resizes with the bicubic filter, in training and in evaluation."""
        return Image.Resampling.BICUBIC if self.augment == "strong" else Image.Resampling.BILINEAR

    def keeps_size(self, side: int) -> bool:
        """Whether square images of this side are never resized: ``pad`` at native size."""
        return self.augment == "pad" and self.image_size == side

    def _shrunk(self, image: Image.Image) -> Image.Image:
        if self.squash:
            return _resized(image, self.resize, self.resize, self.filter)
        short = min(image.width, image.height)
        # Integer truncation of the long side, as torchvision does.
        return _resized(
            image,
            int(self.resize * image.width / short),
            int(self.resize * image.height / short),
            self.filter,
        )

    def normalized(self, pixels: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> (B, 3, S, S) float32: (pixels / 255 - mean) / std."""
        values = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        mean = torch.tensor(self.mean, dtype=torch.float32).view(1, 3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32).view(1, 3, 1, 1)
        return values.div_(255).sub_(mean).div_(std)


def random_area(
    width: int, height: int, draws: Sequence[float], share: tuple[float, float] = AREA
) -> tuple[int, int, int, int]:
    """A random box (left, top, width, height) inside an image: area share and log ratio are uniform.

    Args:
        width, height: of the image, pixels.
        draws: 4 * TRIES numbers in [0, 1).
        share: smallest and largest share of the image's area.
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for k in range(0, 4 * TRIES, 4):
        area = width * height * (share[0] + (share[1] - share[0]) * draws[k])
        ratio = math.exp(low + (high - low) * draws[k + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[k + 2] * (width - w + 1)), int(draws[k + 3] * (height - h + 1)), w, h
    # A very long image: no try fitted. The largest centred box of the nearest allowed ratio.
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return (width - w) // 2, (height - h) // 2, w, h


def decode(path: Path) -> Image.Image:
    """The image of a file in mode RGB.

    Raises:
        KdzooError: naming the file, if it is missing, unreadable, no image, truncated or absurdly large.
    """
    try:
        with Image.open(path) as image:
            # convert() decodes; ImageNet has grey, CMYK and one PNG file under the name of a JPEG.
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        # PIL's decoders raise all of these for damaged files.
        raise KdzooError(
            f"cannot read the image {path}: {error}. Without it the run would see other data than the rest. "
            "The file is missing or damaged: unpack the archive again, then go on with --resume."
        ) from error


def batch_pixels(
    count: int,
    load: Callable[[int], Image.Image],
    recipe: Recipe,
    seeds: Tensor | None,
    decoders: int,
) -> Tensor:
    """(count, S, S, 3) uint8: each image loaded and transformed.

    Args:
        count: B.
        load: position in the batch -> RGB image; called in threads.
        recipe: the transform.
        seeds: (B,) int64, or None for the evaluation transform.
        decoders: threads; 1 uses the calling one. The result does not depend on it.
    """
    size = recipe.image_size
    pixels = np.empty((count, size, size, 3), dtype=np.uint8)
    draws = None if seeds is None else uniforms(seeds, recipe.draws)

    def fill(k: int) -> None:
        pixels[k] = recipe(load(k), None if draws is None else draws[k].tolist())

    if decoders > 1 and count > 1:
        from concurrent.futures import ThreadPoolExecutor

        # A pool a batch: a pool kept over batches would not survive the fork of a loader's worker process.
        # PIL decodes and resizes without holding Python's lock. The first error in row order is raised.
        with ThreadPoolExecutor(min(decoders, count)) as pool:
            for _ in pool.map(fill, range(count)):
                pass
    else:
        for k in range(count):
            fill(k)
    return torch.from_numpy(pixels)


def padded_windows(pixels: Tensor, draws: np.ndarray) -> Tensor:
    """The ``pad`` transform of a whole batch at native size; the same pixels as `Recipe` gives one by one.

    About seven times faster for a batch of 128 CIFAR images, for which a GPU would otherwise wait.

    Args:
        pixels: (B, 3, S, S) uint8.
        draws: (B, DRAWS) in [0, 1).

    Returns:
        (B, S, S, 3) uint8.
    """
    size = pixels.shape[-1]
    steps = torch.arange(size)
    offsets = torch.from_numpy((draws[:, 1:3] * (2 * PAD + 1)).astype(np.int64))
    columns = offsets[:, :1] + torch.where(torch.from_numpy(draws[:, :1] < 0.5), steps.flip(0), steps)
    lines = offsets[:, 1:] + steps
    padded = torch.nn.functional.pad(pixels, (PAD, PAD, PAD, PAD)).permute(0, 2, 3, 1)
    batch = torch.arange(len(pixels))
    return padded[batch[:, None, None], lines[:, :, None], columns[:, None, :]]


def _resized(
    image: Image.Image,
    width: int,
    height: int,
    filter_: Image.Resampling = Image.Resampling.BILINEAR,
) -> Image.Image:
    if image.size == (width, height):
        return image
    return image.resize((width, height), filter_)


def _middle(slack: int) -> int:
    # Half to even, as torchvision's centre crop.
    return round(slack / 2.0)
