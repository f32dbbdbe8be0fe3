"""Online hard example mining over pixels: which labelled pixels a cross-entropy counts.

Shapes: B images, C classes, H x W pixels. Labels are class numbers, or 255 where nothing counts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo_segmentation.measures import IGNORE


@torch.no_grad()
def hard_pixels(logits: Tensor, labels: Tensor, *, threshold: float, at_least: int) -> Tensor:
    """Pixels whose label has at most the probability `threshold`; never fewer than the `at_least` least probable.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) int64.
        threshold: in [0, 1].
        at_least: of the whole batch; with so few labelled pixels, or fewer, all of them count.

    Returns:
        (B, H, W) bool, False where there is no label.

    Source: JayQine/MGD-SSSS@9309105 (ProbOhemCrossEntropy2d), threshold 0.7, 50,000 pixels an image.
    """
    labelled = labels != IGNORE
    count = int(labelled.sum())
    if count <= at_least:
        return labelled
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # The label's log-probability.
    own = -F.cross_entropy(wide, labels, ignore_index=IGNORE, reduction="none")
    limit = torch.tensor(threshold, dtype=own.dtype, device=own.device).log()
    if at_least > 0:
        limit = torch.maximum(limit, own[labelled].kthvalue(at_least).values)
    return labelled & (own <= limit)


def hard_cross_entropy(logits: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels of `keep`, nats; 0, and no gradient, where there is none.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) int64.
        keep: (B, H, W) bool, of `hard_pixels`.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    values = F.cross_entropy(wide, labels.masked_fill(~keep, IGNORE), ignore_index=IGNORE, reduction="sum")
    return values / keep.sum().clamp(min=1)
