"""Losses over the positions of maps (B, C, h, w).

Shapes: B images, C channels or classes, h x w positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.features import hint_regression
from kdzoo.losses.masks import Reduction, check_reduction, reduce


def channel_wise_divergence(
    student: Tensor, teacher: Tensor, *, temperature: float, reduction: Reduction, teacher_grad: bool = False
) -> Tensor:
    """KL(teacher || student) of where each channel is active: a softmax over POSITIONS, channel by channel.

    Formula: sum_p phi(t)_p log(phi(t)_p / phi(s)_p), phi(z)_p = exp(z_p / T) / sum_q exp(z_q / T). The factor T^2 and
    any division by C are the caller's.

    Args:
        student: (B, C, h, w).
        teacher: the same shape.
        temperature: T > 0.
        reduction: "none", "sum" or "mean" (over images and channels).
        teacher_grad: let the gradient reach the teacher too.

    Returns:
        (B, C) for "none", else a scalar; nats.

    Raises:
        ValueError: shapes differ or are not those of maps, temperature <= 0.

    Source: Shu et al., ICCV 2021, arXiv:2011.13256, equation 3.
    """
    if student.dim() != 4:
        raise ValueError(f"channel_wise_divergence: student is {tuple(student.shape)}, expected (B, C, h, w)")
    if student.shape != teacher.shape:
        raise ValueError(
            f"channel_wise_divergence: student is {tuple(student.shape)} and teacher {tuple(teacher.shape)}, expected "
            "the same shape: resize one of them first"
        )
    values = kl_divergence(
        student.flatten(2),
        teacher.flatten(2),
        temperature=temperature,
        axis=2,
        reduction="none",
        teacher_grad=teacher_grad,
    )
    return reduce(values, reduction=reduction)


def hierarchical_context_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    reduction: Reduction,
    levels: Sequence[int] = (4, 2, 1),  # ReviewKD and TransKD: hcl
    teacher_grad: bool = False,
) -> Tensor:
    """Mean squared difference of two maps and of their averages over ever larger parts.

    With d = s - t and P_l the adaptive average pooling to l x l cells:

        l_b = ( mean d^2 + sum_k 2^-k mean (P_k d)^2 ) / (1 + sum_k 2^-k)

    where k = 1, 2, ... counts the levels l < h; the others are skipped, so the first one that is used weighs 1/2
    whatever the map's size.

    Args:
        student: (B, C, h, w), h and w > 0.
        teacher: the same shape.
        reduction: "none", "sum" or "mean", over images.
        levels: l of each pooled comparison, in the order of falling weight, each >= 1.
        teacher_grad: let the gradient reach the teacher too.

    Returns:
        (B,) for "none", else a scalar; >= 0, the maps' squared unit, float32 or wider.

    Raises:
        ValueError: shapes differ, are not those of maps or empty; a level below 1; unknown reduction.

    Source: Chen et al., CVPR 2021, arXiv:2104.09044, section 3.4; RuipingL/TransKD@39ab795 train/CSF.py:hcl, which
    sums it over stages.

    Example:
        >>> student, teacher = torch.tensor([[[[1.0], [-1.0]]]]), torch.zeros(1, 1, 2, 1)
        >>> round(hierarchical_context_loss(student, teacher, reduction="mean").item(), 6)  # 1, and 0 where pooled
        0.666667
    """
    check_reduction(reduction)
    if student.dim() != 4 or student.numel() == 0:
        raise ValueError(
            f"hierarchical_context_loss: student is {tuple(student.shape)}, expected (B, C, h, w) with entries; the "
            "mean of nothing would be NaN"
        )
    if student.shape != teacher.shape:
        raise ValueError(
            f"hierarchical_context_loss: student is {tuple(student.shape)} and teacher {tuple(teacher.shape)}, "
            "expected the same shape: project channels and resize positions first"
        )
    if min(levels, default=1) < 1:
        raise ValueError(f"levels: got {list(levels)}, expected numbers of cells a side, 1 or more")
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    whole = student.to(dtype), (teacher if teacher_grad else teacher.detach()).to(dtype)
    pooled: tuple[Tensor, ...] = whole
    finer, weight, total = 1, 1.0, 1.0
    values = hint_regression(*whole, reduction="none", teacher_grad=True)
    for level in levels:
        if level >= student.shape[2]:
            continue
        # A cell is the mean of the finer cells in it, where those are equal and none lies in two cells.
        if finer % level or any(side % finer for side in student.shape[2:]):
            pooled = whole
        pooled = tuple(F.adaptive_avg_pool2d(side, (level, level)) for side in pooled)
        finer, weight = level, weight / 2
        values = values + weight * hint_regression(*pooled, reduction="none", teacher_grad=True)
        total += weight
    return reduce(values / total, reduction=reduction)
