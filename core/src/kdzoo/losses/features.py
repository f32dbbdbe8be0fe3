"""Losses between inner activations of student and teacher, one value per sample.

FitNets, ICLR 2015, https://arxiv.org/abs/1412.6550: hint regression. Paying More Attention to Attention, ICLR
2017, https://arxiv.org/abs/1612.03928: attention transfer. And the two ways to compare directions only.

Legend: B samples, C channels, (...) positions (H, W or none), P number of positions; item = sample.

A student of another width needs a projection first; it has parameters, so it belongs to the method. Spatial
sizes are
not matched here either: a silent interpolation would hide a wrong layer.

Not here: projections, correlation of class scores, losses between relations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdzoo.losses.masks import Reduction, check_reduction, reduce


def _check(name: str, features: Tensor, *, axes: int) -> None:
    if not features.is_floating_point():
        raise TypeError(
            f"{name}: got dtype {features.dtype}, expected floating point; integers carry no gradient"
        )
    if features.dim() < axes or 0 in features.shape:
        raise ValueError(
            f"{name}: got shape {tuple(features.shape)}, expected at least {axes} non-empty axes, samples "
            "first; otherwise values of different samples would be averaged"
        )


def _pair(student: Tensor, teacher: Tensor, *, teacher_grad: bool) -> tuple[Tensor, Tensor]:
    """Both sides checked, in float32 or wider, the teacher detached."""
    _check("student_features", student, axes=2)
    _check("teacher_features", teacher, axes=2)
    if student.shape != teacher.shape:
        raise ValueError(
            f"shapes: got student_features {tuple(student.shape)} and teacher_features "
            f"{tuple(teacher.shape)}, expected equal ones; broadcasting would compare the wrong values. "
            "Project channels and resize positions first"
        )
    teacher = teacher if teacher_grad else teacher.detach()
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.to(dtype)


def _check_axis(features: Tensor, axis: int) -> int:
    """The channel axis counted from the front; refused where it is the sample axis or none."""
    if not -features.dim() <= axis < features.dim() or axis % features.dim() == 0:
        raise ValueError(
            f"axis: got {axis} for {features.dim()} axes, expected a channel axis other than the sample axis "
            "0; samples would be normalized across the batch"
        )
    return axis % features.dim()


def attention_maps(features: Tensor, *, power: float = 2.0) -> Tensor:
    """Where a layer is active: the channel mean of |x|^power at each position, L2-normalized over
    positions.

    Args:
        features: (B, C, ...) with at least one position axis.
        power: > 0; 2 in both papers' experiments (arXiv 1612.03928 section 3.1, lenscloth/RKD@0a6c3c0).

    Returns:
        (B, P), >= 0, unit L2 norm per row; a row of a dead layer (all zero) is zero. float32 or wider.

    Raises:
        TypeError: integer features.
        ValueError: no position axis, an empty axis, or power <= 0.

    Example:
        >>> attention_maps(torch.tensor([[[3.0, 0.0]]]), power=2.0).tolist()
        [[1.0, 0.0]]
    """
    _check("features", features, axes=3)
    if not power > 0:
        raise ValueError(f"power: got {power}, expected > 0; the map would not grow with the activation")
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    # The square is its own case: |x|^p has no gradient at 0 for p < 1, and pow is slower.
    strength = features.square() if power == 2 else features.abs().pow(power)
    return F.normalize(strength.mean(dim=1).flatten(1), dim=1)


def attention_transfer(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    reduction: Reduction,
    power: float = 2.0,
    teacher_grad: bool = False,
) -> Tensor:
    """Mean squared difference of the two attention maps; channels may differ in number, positions may not.

    ``l_b = 1/P sum_p ( a^s_bp - a^t_bp )^2`` with a from `attention_maps`.

    Args:
        student_features: (B, Cs, ...).
        teacher_features: (B, Ct, ...), the same positions.
        reduction: "none" = one value per sample, "mean" or "sum" over samples.
        power: exponent of the activation, > 0.
        teacher_grad: let the gradient flow into the teacher too.

    Returns:
        (B,) or scalar, in [0, 2 / P], unitless; float32 or wider.

    Raises:
        TypeError: integer features.
        ValueError: different batch or positions, no position axis, power <= 0, unknown reduction.

    Source: lenscloth/RKD@0a6c3c0 metric/loss.py:AttentionTransfer. arXiv 1612.03928 equation 2 has the norm
    instead of the mean square; its authors' code has the mean square as well.

    Example:
        >>> s, t = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]])
        >>> attention_transfer(s, t, reduction="none").tolist()
        [1.0]
    """
    check_reduction(reduction)
    _check("student_features", student_features, axes=3)
    _check("teacher_features", teacher_features, axes=3)
    if (
        student_features.shape[:1] + student_features.shape[2:]
        != teacher_features.shape[:1] + teacher_features.shape[2:]
    ):
        raise ValueError(
            f"shapes: got student_features {tuple(student_features.shape)} and teacher_features "
            f"{tuple(teacher_features.shape)}, expected the same samples and positions (all axes but axis "
            "1); different places would be compared. Resize one side first"
        )
    teacher = teacher_features if teacher_grad else teacher_features.detach()
    difference = attention_maps(student_features, power=power) - attention_maps(teacher, power=power)
    return reduce(difference.square().mean(dim=1), reduction=reduction)


def hint_regression(
    regressed_features: Tensor,
    teacher_features: Tensor,
    *,
    reduction: Reduction,
    teacher_grad: bool = False,
) -> Tensor:
    """Mean squared error of the student's regressed feature against the teacher's hint.

    ``l_b = mean over all axes but the first of ( r(s)_b - t_b )^2``

    Args:
        regressed_features: (B, ...) the student's feature after the regressor r, in the teacher's shape.
        teacher_features: (B, ...).
        reduction: "none" = one value per sample, "mean" or "sum" over samples.
        teacher_grad: let the gradient flow into the teacher too.

    Returns:
        (B,) or scalar, >= 0, in the teacher's squared unit; float32 or wider.

    Raises:
        TypeError: integer features.
        ValueError: unequal or empty shapes, no feature axis, unknown reduction.

    Source: lenscloth/RKD@0a6c3c0 metric/loss.py:FitNet (mean over elements). arXiv 1412.6550 equation 3 is
    half the
    sum over elements: multiply by their number / 2.

    Example:
        >>> hint_regression(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2), reduction="none").tolist()
        [5.0]
    """
    check_reduction(reduction)
    student, teacher = _pair(regressed_features, teacher_features, teacher_grad=teacher_grad)
    squares = F.mse_loss(student, teacher, reduction="none")  # its backward pass needs no map of differences
    return reduce(squares.mean(tuple(range(1, squares.dim()))), reduction=reduction)


def cosine_distance(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    axis: int,
    reduction: Reduction,
    teacher_grad: bool = False,
) -> Tensor:
    """How far two directions are apart: the mean over positions of 1 - cosine along `axis`.

    ``l_b = mean over positions of 1 - <s, t> / (||s|| ||t||)``

    Args:
        student_features: (B, ...).
        teacher_features: (B, ...), the same shape.
        axis: the channel axis, not 0.
        reduction: "none" = one value per sample, "mean" or "sum" over samples.
        teacher_grad: let the gradient flow into the teacher too.

    Returns:
        (B,) or scalar, in [0, 2], unitless; 1 where either vector is zero. float32 or wider.

    Raises:
        TypeError: integer features.
        ValueError: unequal or empty shapes, an axis that is not a channel axis, unknown reduction.

    Example:
        >>> s, t = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> cosine_distance(s, t, axis=1, reduction="none").tolist()
        [1.0]
    """
    check_reduction(reduction)
    student, teacher = _pair(student_features, teacher_features, teacher_grad=teacher_grad)
    axis = _check_axis(student, axis)
    cosines = (F.normalize(student, dim=axis) * F.normalize(teacher, dim=axis)).sum(dim=axis)
    return reduce(
        (1.0 - cosines).flatten(1).mean(dim=1) if cosines.dim() > 1 else 1.0 - cosines, reduction=reduction
    )


def normalized_mse(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    axis: int,
    reduction: Reduction,
    teacher_grad: bool = False,
) -> Tensor:
    """Squared distance of the two L2-normalized vectors along `axis`, averaged over positions.

    ``l_b = mean over positions of || s / ||s|| - t / ||t|| ||^2`` = 2 (1 - cosine) for non-zero vectors.
    Unlike `cosine_distance` it keeps its digits where the two nearly agree.

    Args:
        student_features: (B, ...).
        teacher_features: (B, ...), the same shape.
        axis: the channel axis, not 0.
        reduction: "none" = one value per sample, "mean" or "sum" over samples.
        teacher_grad: let the gradient flow into the teacher too.

    Returns:
        (B,) or scalar, in [0, 4], unitless; float32 or wider. A sum over channels, not a mean: divide by C
        for the elementwise mean of F.mse_loss.

    Raises:
        TypeError: integer features.
        ValueError: unequal or empty shapes, an axis that is not a channel axis, unknown reduction.

    Example:
        >>> s, t = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> normalized_mse(s, t, axis=1, reduction="none").tolist()
        [2.0]
    """
    check_reduction(reduction)
    student, teacher = _pair(student_features, teacher_features, teacher_grad=teacher_grad)
    axis = _check_axis(student, axis)
    difference = F.normalize(student, dim=axis) - F.normalize(teacher, dim=axis)
    return reduce(difference.square().sum(dim=axis, keepdim=True).flatten(1).mean(dim=1), reduction=reduction)
