"""CutMix for segmentation: boxes of one image pasted into another, and the same boxes of what is said about them.

French et al., BMVC 2020, arXiv:1906.01916 (semi-supervised semantic segmentation by mixing unlabelled images).

Shapes: N masks or images, H x W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def box_masks(
    count: int,
    size: tuple[int, int],
    *,
    random: np.random.RandomState,
    boxes: int,
    low: float,
    high: float,
    random_aspect: bool,
    invert: bool,
) -> Tensor:
    """Which pixels come from the other image.

    Each box has the area ``p / boxes`` of the image, p uniform in [low, high], and lies wholly inside. A random aspect
    takes the height's share as ``p^e``, e uniform in [0, 1], and the width's as ``p / p^e``, each divided by
    ``sqrt(boxes)``; otherwise both are ``sqrt(p / boxes)``. Where boxes overlap they cancel in pairs.

    Args:
        count: N.
        size: (H, W).
        random: source of the draws, taken in the order areas, aspects, positions.
        boxes: at least 1.
        low, high: 0 < low <= high <= 1, of the area of all boxes together, overlaps counted twice.
        random_aspect: see above.
        invert: True gives ones inside the boxes, False ones outside.

    Returns:
        (N, 1, H, W) bool.

    Raises:
        ValueError: no box, or a range that is no range of shares.

    Source: JayQine/MGD-SSSS@9309105 mask_gen.py:BoxMaskGenerator with prop_by_area and within_bounds.
    """
    if boxes < 1 or not 0 < low <= high <= 1:
        raise ValueError(
            f"box_masks: got {boxes} boxes of {low} to {high} of the area, expected at least one box and "
            "0 < low <= high <= 1: nothing, or more than the image, would be pasted"
        )
    area = random.uniform(low, high, size=(count, boxes))
    exponent = random.uniform(size=(count, boxes)) if random_aspect else np.full((count, boxes), 0.5)
    tall = area**exponent
    shares = np.stack((tall, area / tall), axis=2) / np.sqrt(boxes)
    whole = np.array(size)
    extent = np.round(shares * whole)
    start = np.round((whole - extent) * random.uniform(size=extent.shape))
    inside = []
    for axis, length in enumerate(size):
        place = np.arange(length)
        first, width = start[:, :, axis, None], extent[:, :, axis, None]
        inside.append((place >= first) & (place < first + width))
    covered = (inside[0][:, :, :, None] & inside[1][:, :, None, :]).sum(1) % 2
    return torch.from_numpy((covered == 1) == invert).unsqueeze(1)


def pasted(under: Tensor, over: Tensor, masks: Tensor) -> Tensor:
    """`over` where the mask is true, `under` elsewhere.

    Args:
        under, over: (N, C, H, W) images or (N, H, W) labels.
        masks: (N, 1, H, W) bool.
    """
    return torch.where(masks if under.dim() == 4 else masks.squeeze(1), over, under)
