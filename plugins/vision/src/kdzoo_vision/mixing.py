"""Mixup and CutMix of a batch and its labels, as a task's `prepare_batch`: student and teacher see the mixed images.

Shapes: B images, I channels, H x W pixels, C classes.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def prepare_batch(run: Run, batch: Batch) -> None:
    """The settings `mixup` and `cutmix` are the parameters of the Beta distributions, 0 for none.

    With both, either is used half of the time, on the whole batch. Labels become (B, C) probabilities.
    """
    mixup, cutmix = float(run.cfg.mixup), float(run.cfg.cutmix)
    if not mixup and not cutmix:
        return
    seed = int(torch.randint(1 << 62, (), generator=run.rng("mixing")))
    images, share, labels = batch.views["image"], random.Random(seed), batch.labels
    paste = cutmix > 0 and (not mixup or share.random() < 0.5)
    weight = share.betavariate(cutmix, cutmix) if paste else share.betavariate(mixup, mixup)
    if paste:
        box, weight = random_box(images.shape[2], images.shape[3], weight, share)
        batch.views["image"] = pasted(images, box)
    else:
        batch.views["image"] = images.lerp(images.flip(0), 1.0 - weight)
    sure = F.one_hot(labels, run.task.sizes["classes"]).to(images.dtype)
    batch.labels = sure.lerp(sure.flip(0), 1.0 - weight)


Box = tuple[int, int, int, int]


def random_box(height: int, width: int, weight: float, draw: random.Random) -> tuple[Box, float]:
    """A box of a share ``1 - weight`` of the area around a uniform centre, cut at the border, and the share left.

    Returns:
        (top, bottom, left, right), and 1 minus the share of the area that the box really has.

    Source: Yun et al. 2019 (CutMix, arXiv 1905.04899), equation 2; the correction at the border as in timm's Mixup.
    """
    side = math.sqrt(1.0 - weight)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    row, column = draw.randrange(height), draw.randrange(width)
    top, bottom = max(0, row - half_height), min(height, row + half_height)
    left, right = max(0, column - half_width), min(width, column + half_width)
    return (top, bottom, left, right), 1.0 - (bottom - top) * (right - left) / (height * width)


def pasted(images: Tensor, box: Box) -> Tensor:
    """Every image with the box of its partner in the reversed batch: (B, I, H, W)."""
    top, bottom, left, right = box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed
