"""DIST: correlation with the teacher's predictions, within each sample and within each class.

Paper: Knowledge Distillation from A Stronger Teacher, Huang et al., NeurIPS 2022,
https://arxiv.org/abs/2205.10536. Here: inter-class and intra-class relation and their sum. Not here: the
cross-entropy on labels and the variant on instance features.

Legend: (..., C, ...) logits with the class axis at `axis`; N the items, all other axes in one; T temperature;
p, q = softmax(teacher / T), softmax(student / T), seen as (N, C).

The loss is 1 - r, r Pearson's correlation: 0 (same up to scale and shift) to 2. Where one side is constant up
to rounding r is undefined; it is taken as 0 (loss 1) with zero gradient. The official code adds 1e-8 to the
denominator: the same value, but the gradient there is the rounding noise times up to 1e8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdzoo.losses.divergences import Temperature, check_pair, log_probabilities
from kdzoo.losses.masks import Reduction, check_mask, reduce
from kdzoo.losses.vocabulary import accumulation_dtype


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float,
    gamma: float,
    temperature: Temperature,
    scale_by_temperature_squared: bool,
    axis: int,
    mask: Tensor | None = None,
    teacher_grad: bool = False,
) -> Tensor:
    """beta * mean of the inter-class losses + gamma * mean of the intra-class losses: a scalar.

    There is no per-item form of the sum: one part lives on samples, the other on classes. It couples the
    batch, so gradient accumulation changes it.

    Args:
        student_logits: (..., C, ...), at least two items and two classes.
        teacher_logits: the same shape.
        beta: weight of the inter-class part; official default 1.
        gamma: weight of the intra-class part; official default 1.
        temperature: T > 0 or (student, teacher). The first official code has none, that is T = 1; this is
            also the default (tau) of the later one.
        scale_by_temperature_squared: multiply by T^2, as the later official code does with tau; needs one
            temperature for both sides.
        axis: the class axis.
        mask: bool, item axes; items that are False are left out of both parts.
        teacher_grad: let the gradient reach the teacher.

    Returns:
        A scalar without unit, 0 to 2 (beta + gamma) (times T^2).

    Raises:
        ValueError: fewer than two items or classes (a correlation needs two points), T^2 with two
        temperatures, and
            as in `kl_divergence`.

    Source: equations 7 to 10; official hunto/image_classification_sota@2bc4832 lib/models/losses/dist_kd.py,
    for maps hunto/DIST_KD@6d93ca0 segmentation/losses/dist_kd.py (all pixels of a batch are items, here too).

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0]])
        >>> weights = {"beta": 1.0, "gamma": 1.0, "temperature": 1.0, "scale_by_temperature_squared": True}
        >>> abs(dist(logits, logits, axis=-1, **weights).item()) < 1e-6
        True
    """
    if scale_by_temperature_squared and isinstance(temperature, tuple):
        raise ValueError(
            f"scale_by_temperature_squared: got two temperatures {temperature}, expected one; "
            "T^2 would be ambiguous"
        )
    q, p = _probabilities(student_logits, teacher_logits, temperature, axis, mask, teacher_grad)
    _need_two(q.shape[1], "class", "the inter-class part correlates over classes")
    _need_two(q.shape[0], "item", "the intra-class part correlates over the batch; use drop_last")
    loss = beta * _one_minus_correlation(q, p, 1).mean() + gamma * _one_minus_correlation(q, p, 0).mean()
    return loss * float(temperature) ** 2 if scale_by_temperature_squared else loss  # type: ignore[arg-type]


def inter_class_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
    teacher_grad: bool = False,
) -> Tensor:
    """1 - correlation over the classes of each item: (...) for "none"; masked items 0. No T^2.

    With two classes r is always 1 or -1: only the sign can differ and the gradient is 0.
    Arguments and errors as in `dist`. Source: DIST equation 7.
    """
    q, p = _probabilities(student_logits, teacher_logits, temperature, axis, None, teacher_grad)
    _need_two(q.shape[1], "class", "the inter-class part correlates over classes")
    items = student_logits.movedim(axis, -1).shape[:-1]
    check_mask(mask, items)
    if mask is None:
        return reduce(_one_minus_correlation(q, p, 1).reshape(items), reduction=reduction)
    chosen = mask.flatten()
    values = q.new_zeros(q.shape[0])
    values = values.masked_scatter(chosen, _one_minus_correlation(q[chosen], p[chosen], 1))
    return reduce(values.reshape(items), reduction=reduction, mask=mask)


def intra_class_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
    teacher_grad: bool = False,
) -> Tensor:
    """1 - correlation over the items of each class: (C,) for "none"; mean over classes. No T^2.

    Arguments and errors as in `dist`. Source: DIST equation 9.
    """
    q, p = _probabilities(student_logits, teacher_logits, temperature, axis, mask, teacher_grad)
    _need_two(q.shape[0], "item", "the intra-class part correlates over the batch; use drop_last")
    return reduce(_one_minus_correlation(q, p, 0), reduction=reduction)


def _probabilities(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Temperature,
    axis: int,
    mask: Tensor | None,
    teacher_grad: bool,
) -> tuple[Tensor, Tensor]:
    """(q, p), each (N, C), the masked items left out before the softmax."""
    axis, temperatures = check_pair(student_logits, teacher_logits, temperature, axis, "none", mask)
    if not teacher_grad:
        teacher_logits = teacher_logits.detach()
    dtype = accumulation_dtype(student_logits, teacher_logits)
    classes = student_logits.shape[axis]
    pair = []
    for logits, t in zip((student_logits, teacher_logits), temperatures, strict=True):
        rows = logits.movedim(axis, -1)
        rows = rows.reshape(-1, classes) if mask is None else rows[mask]
        pair.append(log_probabilities(rows.to(dtype), temperature=t, axis=-1).exp())
    return pair[0], pair[1]


def _one_minus_correlation(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """1 - Pearson along `dim` of two (N, C) arrays, with 1 and zero gradient where either is constant."""
    x_mid, y_mid = x - x.mean(dim, keepdim=True), y - y.mean(dim, keepdim=True)
    xx, yy = x_mid.square().sum(dim), y_mid.square().sum(dim)
    # Constant up to rounding: the deviations are no larger than a few units in the last place of the numbers.
    floor = (4 * torch.finfo(x.dtype).eps) ** 2
    constant = (xx <= floor * x.square().sum(dim)) | (yy <= floor * y.square().sum(dim))
    # rsqrt of each factor, not of the product: xx * yy leaves float32 when both are small. The constant items
    # are replaced before the root, because a mask after it would leave 0 * inf = NaN in the gradient.
    scale = xx.masked_fill(constant, 1.0).rsqrt() * yy.masked_fill(constant, 1.0).rsqrt()
    correlation = (x_mid * y_mid).sum(dim) * scale
    return 1.0 - correlation.masked_fill(constant, 0.0)


def _need_two(given: int, what: str, why: str) -> None:
    if given < 2:
        raise ValueError(
            f"logits: got {given} {what}, expected at least 2; {why}, and one point has no correlation"
        )
