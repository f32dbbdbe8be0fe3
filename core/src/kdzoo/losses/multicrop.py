"""Self-distillation over crops of one image: the DINO cross-entropy and the centre that keeps it from collapsing.

Legend: B images, V crops of each, K outputs of a head. Crops lie one after the other along the first axis: rows
0 to B-1 are crop 0 of all images, rows B to 2B-1 crop 1, and so on. The teacher sees the first two crops only (the
global ones), the student all V.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdzoo.losses.divergences import log_probabilities
from kdzoo.losses.masks import Reduction, check_reduction, reduce
from kdzoo.losses.vocabulary import accumulation_dtype

TEACHER_CROPS = 2


def dino_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    center: Tensor,
    *,
    crops: int,
    student_temperature: float,
    teacher_temperature: float,
    reduction: Reduction,
) -> Tensor:
    """Cross-entropy of the student's crops under what the teacher says about another crop of the same image.

    Formula, with P_q = softmax((t_q - c) / tau_t) and log S_v = log softmax(s_v / tau_s): the mean of
    -sum_k P_q log S_v over the 2 V - 2 pairs (q, v) with v != q. The teacher and the centre are detached.

    The sum over v is taken before the product with P_q, so that it costs two products instead of 2 V - 2.

    Args:
        student_logits: (V B, K), crops along the first axis as in the module's legend.
        teacher_logits: (2 B, K), the first two crops.
        center: (K,), subtracted from the teacher's logits; zeros for no centring.
        crops: V, at least 2.
        student_temperature: tau_s > 0.
        teacher_temperature: tau_t > 0; below tau_s, the teacher is sharper than the student.
        reduction: "none", "sum" or "mean" over the B images.

    Returns:
        (B,) for "none", else a scalar; nats. At least the teacher's entropy: no divergence.

    Raises:
        ValueError: shapes that are no crops of the same images, a temperature that is not above 0.

    Source: Caron et al. 2021, arXiv 2104.14294, equations 1 to 4 and algorithm 1; skyoux/mokd@f7b1386 models/mokd.py
    DINOLoss, which takes the mean over images within each pair first: the same number.

    Example:
        >>> same = torch.zeros(6, 4)  # three crops of two images, no opinion
        >>> loss = dino_loss(same, same[:4], torch.zeros(4), crops=3, student_temperature=0.1,
        ...                  teacher_temperature=0.04, reduction="mean")
        >>> round(loss.item(), 4)  # log 4
        1.3863
    """
    check_reduction(reduction)
    _check(student_logits, teacher_logits, center, crops, student_temperature, teacher_temperature)
    dtype = accumulation_dtype(student_logits, teacher_logits)
    sharp = (teacher_logits.detach().to(dtype) - center.detach().to(dtype)) / teacher_temperature
    p_QBK = torch.softmax(sharp, -1).unflatten(0, (TEACHER_CROPS, -1))
    s_VBK = log_probabilities(student_logits, temperature=student_temperature, axis=-1).unflatten(
        0, (crops, -1)
    )
    others = s_VBK.sum(0) - s_VBK[:TEACHER_CROPS]
    pairs = TEACHER_CROPS * (crops - 1)
    return reduce(-(p_QBK * others).sum((0, 2)) / pairs, reduction=reduction)


@torch.no_grad()
def moved_center(center: Tensor, total: Tensor, count: int, momentum: float) -> Tensor:
    """The centre after a step: an exponential moving average of the mean of the teacher's logits.

    Formula: m c + (1 - m) total / count.

    Args:
        center: (K,), before.
        total: (K,), the teacher's logits summed over all rows of the step: micro-batches, crops and ranks.
        count: how many rows `total` sums over.
        momentum: m, 0 to 1.

    Source: Caron et al. 2021, arXiv 2104.14294, equation 4; the momentum 0.9 from skyoux/mokd@f7b1386 models/mokd.py.

    Example:
        >>> moved_center(torch.tensor([1.0]), torch.tensor([8.0]), 4, 0.5)
        tensor([1.5000])
    """
    if not 0.0 <= momentum <= 1.0 or count < 1:
        raise ValueError(
            f"momentum, count: got {momentum} and {count}, expected a share from 0 to 1 and at least one row; "
            "the centre would run away from the logits"
        )
    return center * momentum + total.to(center.dtype) * ((1.0 - momentum) / count)


def _check(
    student: Tensor,
    teacher: Tensor,
    center: Tensor,
    crops: int,
    student_temperature: float,
    teacher_temperature: float,
) -> None:
    if crops < TEACHER_CROPS:
        raise ValueError(
            f"crops: got {crops}, expected at least {TEACHER_CROPS}: each teacher's crop needs another one to teach"
        )
    images, rest = divmod(student.shape[0], crops)
    fits = student.dim() == teacher.dim() == 2 and not rest and images > 0
    if not fits or teacher.shape != (TEACHER_CROPS * images, student.shape[1]):
        raise ValueError(
            f"logits: got student {tuple(student.shape)} and teacher {tuple(teacher.shape)} for {crops} crops, "
            f"expected ({crops} B, K) and ({TEACHER_CROPS} B, K); other rows would be crops of other images"
        )
    if center.shape != student.shape[1:]:
        raise ValueError(f"center: got shape {tuple(center.shape)}, expected ({student.shape[1]},)")
    for name, value in (
        ("student_temperature", student_temperature),
        ("teacher_temperature", teacher_temperature),
    ):
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name}: got {value}, expected a finite number > 0; 0 divides by zero")
