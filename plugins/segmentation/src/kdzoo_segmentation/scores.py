"""The scores that losses compare: both sides at the resolution of the student's head.

Shapes: B images, C classes, h x w pixels of the student's head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from kdzoo.errors import KdzooError

if TYPE_CHECKING:
    from kdzoo.runs import Run


def pair_of_scores(run: Run, role: str = "student", teacher: str = "teacher") -> tuple[Tensor, Tensor]:
    """Student's and teacher's scores before they are resized to the image, (B, C, h, w) each.

    A teacher of another stride is resized bilinearly (align_corners False) to the student's grid.

    Raises:
        KdzooError: the two have different classes.
    """
    mine, taught = run.out(role).features["score"], run.signal(teacher).features["score"]
    if mine.shape[1] != taught.shape[1]:
        raise KdzooError(
            f"the student scores {mine.shape[1]} classes and the teacher {taught.shape[1]}: channel k would be another "
            "class on each side. Train both on the same set of classes, or choose a method that compares features."
        )
    return mine, on_grid(taught, mine)


def on_grid(map_: Tensor, like: Tensor) -> Tensor:
    """A map (B, D, h', w') at another's grid, (B, D, h, w), bilinearly (align_corners False)."""
    if map_.shape[2:] == like.shape[2:]:
        return map_
    return F.interpolate(map_.float(), like.shape[2:], mode="bilinear", align_corners=False)


def at_scores(labels: Tensor, scores: Tensor) -> Tensor:
    """Labels (B, H, W) at the grid of scores (B, C, h, w), by nearest neighbour: (B, h, w) int64."""
    if labels.shape[1:] == scores.shape[2:]:
        return labels
    return F.interpolate(labels[:, None].float(), scores.shape[2:], mode="nearest").squeeze(1).long()
