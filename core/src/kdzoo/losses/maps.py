"""Losses over the positions of maps (B, C, h, w).

Shapes: B images, C channels or classes, h x w positions.
"""

from __future__ import annotations

from torch import Tensor

from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.masks import Reduction, reduce


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
