"""How alike positions of a feature map are: relations inside each image, so channels of two nets need not agree.

Shapes: B images, C channels (of its own on each side), h x w positions, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.losses.masks import Reduction, reduce


def cosine_affinity(features: Tensor) -> Tensor:
    """Cosine similarity of every two positions.

    Args:
        features: (B, C, h, w) or (B, C, N).

    Returns:
        (B, N, N) float32 or wider in [-1, 1]; a position without any activation is like none (0).
    """
    if features.dim() not in (3, 4):
        raise ValueError(
            f"cosine_affinity: features are {tuple(features.shape)}, expected (B, C, h, w) or (B, C, N)"
        )
    wide = features.flatten(2).to(torch.promote_types(features.dtype, torch.float32))
    unit = F.normalize(wide, dim=1)
    return unit.transpose(1, 2) @ unit


def pairwise_affinity_loss(
    student: Tensor, teacher: Tensor, *, reduction: Reduction, teacher_grad: bool = False
) -> Tensor:
    """Mean squared difference of the two sides' cosine similarities, over all pairs of positions.

    Formula: 1 / N^2 sum_ij (a^S_ij - a^T_ij)^2, N = h w.

    Args:
        student, teacher: (B, C, h, w) with channels of their own, positions alike.
        reduction: "none" gives one value an image.
        teacher_grad: let the gradient reach the teacher too.

    Returns:
        (B,) for "none", else a scalar.

    Raises:
        ValueError: the grids differ.

    Source: Liu et al., CVPR 2019, arXiv:1903.04197, pair-wise distillation; winycg/CIRKD losses/skd.py.
    """
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f"pairwise_affinity_loss: student is {tuple(student.shape)} and teacher {tuple(teacher.shape)}, expected "
            "the same images and positions: pool or resize one of them first"
        )
    taught = cosine_affinity(teacher if teacher_grad else teacher.detach())
    values = (cosine_affinity(student) - taught).square().mean((1, 2))
    return reduce(values, reduction=reduction)


def class_likeness(features: Tensor, labels: Tensor, *, classes: int) -> Tensor:
    """Cosine similarity of each position to the mean feature of its class in the same image.

    Args:
        features: (B, C, h, w).
        labels: (B, h, w) int64; a value outside 0 to K - 1 is no class.
        classes: K.

    Returns:
        (B, h, w) float32 or wider; 1 at positions of no class.

    Source: Wang et al., ECCV 2020, arXiv:2008.11922, intra-class feature variation.
    """
    if labels.shape != features.shape[:1] + features.shape[2:]:
        raise ValueError(
            f"class_likeness: labels are {tuple(labels.shape)} and features {tuple(features.shape)}, expected a label "
            "for every position"
        )
    wide = features.flatten(2).to(torch.promote_types(features.dtype, torch.float32))
    flat = labels.flatten(1)
    known = (flat >= 0) & (flat < classes)
    place = flat.where(known, 0)
    member = F.one_hot(place, classes).to(wide.dtype) * known.unsqueeze(2)  # (B, N, K)
    means = (wide @ member) / member.sum(1, keepdim=True).clamp(min=1)  # (B, C, K)
    own = means.gather(2, place.unsqueeze(1).expand(-1, wide.shape[1], -1))
    likeness = F.cosine_similarity(wide, own, dim=1)
    return likeness.where(known, 1.0).view(labels.shape)


def intra_class_variation_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    classes: int,
    reduction: Reduction,
    teacher_grad: bool = False,
) -> Tensor:
    """Squared difference of how far positions lie from their class's mean, on either side.

    Formula: (cos(f^S_p, mean^S_y(p)) - cos(f^T_p, mean^T_y(p)))^2; 0 at positions of no class.

    Args:
        student, teacher: (B, C, h, w) with channels of their own, positions alike.
        labels: (B, h, w) int64.
        classes: K.
        reduction: "none" gives one value a position.
        teacher_grad: let the gradient reach the teacher too.

    Returns:
        (B, h, w) for "none", else a scalar; "mean" is over all positions, those of no class included.

    Source: Wang et al., ECCV 2020, arXiv:2008.11922, intra-class feature variation distillation.
    """
    taught = class_likeness(teacher if teacher_grad else teacher.detach(), labels, classes=classes)
    values = (class_likeness(student, labels, classes=classes) - taught).square()
    return reduce(values, reduction=reduction)
