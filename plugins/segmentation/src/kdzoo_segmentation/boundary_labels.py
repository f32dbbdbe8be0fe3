"""Labels that are soft at borders, where annotators disagree: boundary label smoothing (arXiv:2302.05666).

Shapes: B images, C classes, H x W pixels. Labels are class numbers, or 255 where nothing counts.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo_segmentation.measures import IGNORE, band


def at_border(labels: Tensor, side: int) -> Tensor:
    """Pixels whose `side` x `side` neighbourhood holds another class, and no pixel to be ignored.

    Args:
        labels: (B, H, W) int64.
        side: odd, at least 3. What lies outside of the image is no class.

    Returns:
        (B, H, W) bool.

    Raises:
        KdzooError: an even or too small side.

    Source: zifuwanggg/JDTLosses@68ce8ac train_soft_label.py:get_label_boundary, which erodes one-hot maps.
    """
    if side < 3 or side % 2 == 0:
        raise KdzooError(
            f"neighbourhood of a border: got side {side}, expected an odd number of at least 3: a neighbourhood has "
            "its pixel in the middle. Set border_side to 3."
        )
    ignored = (labels == IGNORE).float().unsqueeze(1)
    touching = F.max_pool2d(ignored, side, 1, side // 2).squeeze(1) > 0
    return band(labels, side // 2) & ~touching


def smoothed(labels: Tensor, *, classes: int, epsilon: float, side: int) -> Tensor:
    """Labels as probabilities: at borders ``(1 - epsilon) one-hot + epsilon / C``, elsewhere one-hot.

    Args:
        labels: (B, H, W) int64, classes below C or 255.
        classes: C.
        epsilon: in [0, 1].
        side: of the neighbourhood that makes a border, see `at_border`.

    Returns:
        (B, C, H, W) float32; 0 for all classes where a pixel is to be ignored.

    Source: zifuwanggg/JDTLosses@68ce8ac train_soft_label.py:smoothing_label.
    """
    counts = labels != IGNORE
    hard = F.one_hot(labels.masked_fill(~counts, 0), classes).movedim(-1, 1).float()
    hard = hard * counts.unsqueeze(1)
    share = epsilon * at_border(labels, side).unsqueeze(1)
    return hard * (1.0 - share) + share / classes
