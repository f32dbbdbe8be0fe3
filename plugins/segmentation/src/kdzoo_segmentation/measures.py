"""What evaluation measures on label maps: areas of classes, borders, calibration; summed image by image.

Areas and the scores made of them are mmseg's (`IoUMetric`); nothing is kept but sums, so a split of photos of two
million pixels each needs the memory of one.

Shapes: N images, C classes, H x W pixels. Labels are class numbers, or 255 where nothing counts. Distances are
chessboard distances in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo_segmentation.openmmlab import IoUMetric

IGNORE = 255  # label of a pixel that no loss and no metric counts
BINS = 15  # of confidence, for the expected calibration error


@dataclass
class Areas:
    """Pixels a class, summed over images, as mmseg counts them.

    Attributes:
        total: (4, C) float64: intersection, union, prediction, truth.
    """

    classes: int
    total: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.total = torch.zeros(4, self.classes, dtype=torch.float64)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """Count (N, H, W) classes against (N, H, W) labels."""
        for mine, true in zip(predicted, truth, strict=True):
            self.total += torch.stack(
                IoUMetric.intersect_and_union(mine, true, self.classes, IGNORE)
            ).double()

    @property
    def iou(self) -> Tensor:
        """(C,) intersection over union; NaN for a class that neither side holds."""
        return self.total[0] / self.total[1].masked_fill(self.total[1] == 0, torch.nan)

    def mean_iou(self, classes: Sequence[int] | None = None) -> float | None:
        """Mean over those of the classes that truth or prediction hold; None if there is none."""
        return _mean(self.iou if classes is None else self.iou[list(classes)])

    @property
    def mean_accuracy(self) -> float | None:
        """Mean over classes of the share of their pixels that were found; None without any labelled pixel."""
        truth = self.total[3]
        return _mean(self.total[0] / truth.masked_fill(truth == 0, torch.nan))

    @property
    def pixel_accuracy(self) -> float | None:
        """Share of the labelled pixels that were found; None if there is none."""
        counted = float(self.total[3].sum())
        return float(self.total[0].sum()) / counted if counted else None


@dataclass
class Borders:
    """Boundary IoU (Cheng et al. 2021, arXiv:2103.16562, equation 1), pixels summed over images, one value a class.

    Of truth and prediction only the pixels within `width` pixels of their own contour count; so the measure sees
    contours of large objects, whose inner pixels would hide them.
    """

    classes: int
    width: int
    total: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.total = torch.zeros(2, self.classes, dtype=torch.float64)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """Compare (N, H, W) classes with (N, H, W) labels."""
        kept = (truth != IGNORE).unsqueeze(1)
        mine, true = (
            rim(_one_hot(labels.masked_fill(~kept.squeeze(1), self.classes), self.classes), self.width) & kept
            for labels in (predicted, truth)
        )
        self.total += torch.stack([(mine & true).sum((0, 2, 3)), (mine | true).sum((0, 2, 3))]).double().cpu()

    @property
    def mean_iou(self) -> float | None:
        """Mean over the classes that truth or prediction hold; None if there is none."""
        return _mean(self.total[0] / self.total[1].masked_fill(self.total[1] == 0, torch.nan))


@dataclass
class Calibration:
    """Expected calibration error over pixels: |confidence - accuracy| over 15 bins of confidence, by their pixels."""

    total: Tensor = field(default_factory=lambda: torch.zeros(3, BINS, dtype=torch.float64))

    def add(self, probabilities: Tensor, truth: Tensor) -> None:
        """Compare (N, C, H, W) probabilities with (N, H, W) labels."""
        confidence, predicted = probabilities.max(1)
        kept = truth != IGNORE
        sure, right = confidence[kept].double(), (predicted == truth)[kept].double()
        place = (sure * BINS).long().clamp(max=BINS - 1)
        for row, weight in enumerate((torch.ones_like(sure), sure, right)):
            self.total[row] += torch.bincount(place, weight, BINS).cpu()

    @property
    def error(self) -> float | None:
        """In [0, 1]; None without any labelled pixel."""
        count, sure, right = self.total
        return float((sure - right).abs().sum() / count.sum()) if count.sum() else None


def band(labels: Tensor, width: int) -> Tensor:
    """The trimap: pixels within `width` pixels of a pixel of another class, on both sides of a border.

    Args:
        labels: (N, H, W) int64.
        width: at least 1.

    Returns:
        (N, H, W) bool. A pixel to be ignored is no class and its border none; the image's border is none either.
    """
    values = labels.float().unsqueeze(1)
    kept = (labels != IGNORE).unsqueeze(1)
    high = _highest(values.masked_fill(~kept, -torch.inf), width)
    low = -_highest((-values).masked_fill(~kept, -torch.inf), width)
    return ((high != low) & kept).squeeze(1)


def rim(masks: Tensor, width: int) -> Tensor:
    """Pixels of each mask within `width` pixels of its contour; the image's border belongs to the contour.

    Args:
        masks: (N, C, H, W) bool.
        width: at least 1.
    """
    inner = masks.float()
    edge = F.pad(
        inner.new_zeros(inner.shape[2:])[None, None], (width,) * 4, value=1.0
    )  # beyond it all is outside
    border = _highest(edge, width)[..., width : edge.shape[2] - width, width : edge.shape[3] - width] > 0
    return masks & ((_highest(1 - inner, width) > 0) | border)


def _highest(values: Tensor, width: int) -> Tensor:
    """Maximum over squares of 2 width + 1 pixels: along rows, then along columns, at a fraction of the cost."""
    side = 2 * width + 1
    return F.max_pool2d(F.max_pool2d(values, (1, side), 1, (0, width)), (side, 1), 1, (width, 0))


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """(N, C, H, W) bool; a label that is no class has no mask."""
    return labels.unsqueeze(1) == torch.arange(classes, device=labels.device).view(1, -1, 1, 1)


def _mean(values: Tensor) -> float | None:
    value = float(values.nanmean())
    return None if value != value else value
