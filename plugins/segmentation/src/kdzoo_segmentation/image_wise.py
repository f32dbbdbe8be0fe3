"""Scores image by image: in the mean over a split's areas, small objects and small images count for next to nothing.

Wang et al., Revisiting Evaluation Metrics for Semantic Segmentation, NeurIPS 2023, arXiv:2310.19252.

Shapes: N images, C classes, H x W pixels. Labels are class numbers, or 255 where nothing counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kdzoo_segmentation.measures import IGNORE
from kdzoo_segmentation.openmmlab import IoUMetric

Measure = Literal["iou", "dice", "accuracy"]
Over = Literal["dataset", "image", "class"]


@dataclass
class ImageAreas:
    """Pixels a class and image, as mmseg counts them; images without any labelled pixel are left out.

    Attributes:
        rows: one (4, C) float64 an image: intersection, union, prediction, truth.
    """

    classes: int
    rows: list[Tensor] = field(default_factory=list)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """Count (N, H, W) classes against (N, H, W) labels."""
        for mine, true in zip(predicted, truth, strict=True):
            counted = torch.stack(IoUMetric.intersect_and_union(mine, true, self.classes, IGNORE)).double()
            if counted[3].sum():
                self.rows.append(counted)

    def mean(self, measure: Measure, over: Over) -> float | None:
        """The measure of each class and image, joined.

        Args:
            measure: "iou", "dice", or "accuracy", the share of a class's pixels that were found.
            over: "dataset": areas are summed over images, mean over the classes that truth or prediction hold (for
                accuracy: truth). "image": mean over the classes that an image's truth holds, mean over images.
                "class": mean over the images whose truth holds a class, mean over classes.

        Returns:
            A fraction, or None where nothing was counted.

        Source: zifuwanggg/JDTLosses@e584fd8 metrics/accuracy_metric.py:AccuracyMetric, in percent; there a class that
        no image holds makes the means over the data set and over classes NaN.
        """
        if not self.rows:
            return None
        areas = torch.stack(self.rows)
        values, truth = _values(areas, measure), areas[:, 3] > 0
        if over == "dataset":
            return _mean(_values(areas.sum(0), measure))
        values = values.masked_fill(~truth, torch.nan)
        return _mean(values.nanmean(1 if over == "image" else 0))


def _values(areas: Tensor, measure: Measure) -> Tensor:
    """(..., C) of areas (..., 4, C); NaN where it is 0 / 0."""
    shared, union, mine, truth = areas.unbind(-2)
    if measure == "dice":
        return 2 * shared / (mine + truth)
    return shared / (union if measure == "iou" else truth)


def _mean(values: Tensor) -> float | None:
    value = float(values.nanmean())
    return None if value != value else value
