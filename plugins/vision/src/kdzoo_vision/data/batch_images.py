"""Changes to a whole batch of images that models are about to see: what a data set's own augmentation does not do.

Shapes: B images, I channels, H x W pixels. Images are normalised floats; "black" is a batch's darkest value in each
channel, which is what comes in at a border. All randomness is drawn from the generator (on the CPU), one number or more
an image, whether the change takes hold of it or not. Every function returns new images and leaves its argument alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo_vision.data import emoji

BLUR_SIGMA = (
    0.1,
    1.0,
)  # pixels; SimCLR's range (Chen et al. 2020) on images of 224 pixels, halved at the top
COLOUR = 0.4  # brightness and contrast are multiplied by 1 +- this; SimCLR's strength 0.5 of 0.8


def augmented(images: Tensor, policy: str, share: float, rng: Callable[[str], torch.Generator]) -> Tensor:
    """What is done beyond the standard augmentation.

    Args:
        images: (B, I, H, W).
        policy: "rotation" (up to 30 degrees), "vertical-flip", "colour", "blur", or "all" of them; any other: nothing.
        share: of the images that each change takes hold of.
        rng: name of a change -> generator of its draws.
    """
    if policy in ("rotation", "all"):
        images = rotated(images, 30.0, share, rng("rotation"))
    if policy in ("vertical-flip", "all"):
        images = upside_down(images, share, rng("vertical-flip"))
    if policy in ("colour", "all"):
        images = recoloured(images, share, rng("colour"))
    if policy in ("blur", "all"):
        images = blurred(images, share, rng("blur"))
    return images


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `most` pixels along both axes and mirrored half of the time: the standard augmentation.

    Args:
        images: (B, I, H, W).
        most: pixels, at least 0; the same as padding by so many and cropping at random.
        generator: of the draws.
    """
    size, _, height, width = images.shape
    down, right = torch.randint(-most, most + 1, (2, size), generator=generator).to(images.device)
    mirrored = (torch.rand(size, generator=generator) < 0.5).to(images.device)
    lines = torch.arange(height, device=images.device) + down.unsqueeze(1)
    columns = torch.arange(width, device=images.device) + right.unsqueeze(1)
    columns = torch.where(mirrored.unsqueeze(1), columns.flip(1), columns)
    black = darkest(images)
    padded = F.pad(images - black, (most, most, most, most)) + black
    rows = torch.arange(size, device=images.device)[:, None, None]
    return padded[rows, :, (lines + most)[:, :, None], (columns + most)[:, None, :]].permute(0, 3, 1, 2)


def rotated(images: Tensor, degrees: float, share: float, generator: torch.Generator) -> Tensor:
    """A share of the images turned by up to so many degrees either way (bilinear)."""
    size = len(images)
    draw = torch.rand(2, size, generator=generator).to(images.device, images.dtype)
    angle = math.radians(degrees) * (2 * draw[0] - 1) * (draw[1] < share)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack((cos, -sin, zero, sin, cos, zero), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    black = darkest(images)
    return F.grid_sample(images - black, grid, align_corners=False) + black


def upside_down(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the images with their lines in reverse order."""
    return _where(_chosen(images, share, generator), images.flip(2), images)


def blurred(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the images blurred by a Gaussian of 5 x 5 pixels, each with its own width from `BLUR_SIGMA`."""
    size, channels, height, width = images.shape
    low, high = BLUR_SIGMA
    sigma = low + (high - low) * torch.rand(size, generator=generator).to(images.device, images.dtype)
    offsets = torch.arange(-2, 3, device=images.device, dtype=images.dtype)
    line = torch.softmax(-offsets.square() / (2 * sigma.square().unsqueeze(1)), dim=1)
    kernel = (line[:, :, None] * line[:, None, :]).repeat_interleave(channels, 0).unsqueeze(1)
    black = darkest(images)
    flat = (images - black).reshape(1, size * channels, height, width)
    soft = F.conv2d(flat, kernel, padding=2, groups=size * channels).view_as(images) + black
    return _where(_chosen(images, share, generator), soft, images)


def recoloured(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the images with brightness and contrast multiplied by 1 +- `COLOUR`, each channel for itself."""
    size, channels = images.shape[:2]
    draw = torch.rand(2, size, channels, 1, 1, generator=generator).to(images.device, images.dtype)
    contrast, brightness = 1 + COLOUR * (2 * draw - 1)
    black = darkest(images)
    light = images - black
    mean = light.mean((2, 3), keepdim=True)
    changed = ((light - mean) * contrast + mean * brightness).clamp_min(0) + black
    return _where(_chosen(images, share, generator), changed, images)


def mixed(images: Tensor, alpha: float, share: float, generator: torch.Generator) -> Tensor:
    """The first images of a batch, a share of it, each averaged with another of them: mixup without labels.

    Formula: lambda x_i + (1 - lambda) x_pi(i), lambda ~ Beta(alpha, alpha), one for the batch, pi a permutation.

    Args:
        images: (B, I, H, W).
        alpha: > 0; at 1 lambda is uniform.
        share: of the batch that is mixed, rounded to whole images.
        generator: of lambda and pi.

    Source: Zhang et al. 2018, arXiv 1710.09412, equation 1.
    """
    count = round(share * len(images))
    seed = int(torch.randint(1 << 62, (), generator=generator))  # torch's Beta takes no generator
    weight = float(np.random.default_rng(seed).beta(alpha, alpha))
    partner = torch.randperm(count, generator=generator).to(images.device)
    some = images[:count]
    return torch.cat((weight * some + (1 - weight) * some[partner], images[count:]))


def noise(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, I, H, W) of independent uniform pixels between the darkest and the lightest of `images`, by channel."""
    draw = torch.rand(count, *images.shape[1:], generator=generator).to(images.device, images.dtype)
    return _between(images, draw)


def drawings(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, I, H, W) of emoji on black, resized, in grey for one channel: real images of no class of the task."""
    sheet = emoji.read().pixels.flatten(0, 1)
    rows = torch.randint(len(sheet), (count,), generator=generator)
    pixels = sheet[rows, :3].float() / 255
    if images.shape[1] == 1:
        pixels = (pixels * torch.tensor(emoji.LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    side = (images.shape[2], images.shape[3])
    pixels = F.interpolate(pixels, side, mode="bilinear", antialias=True, align_corners=False)
    return _between(images, pixels.to(images.device, images.dtype))


def darkest(images: Tensor) -> Tensor:
    """(1, I, 1, 1): the least value of each channel in the batch."""
    return images.amin((0, 2, 3), keepdim=True)


def _between(images: Tensor, pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] stretched to the range that the batch's pixels have."""
    low = darkest(images)
    return low + pixels * (images.amax((0, 2, 3), keepdim=True) - low)


def _chosen(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(len(images), generator=generator) < share).to(images.device)


def _where(chosen: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, 1, 1, 1), changed, images)
