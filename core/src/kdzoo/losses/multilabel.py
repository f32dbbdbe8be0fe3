"""Losses on independent labels: each is a binary problem of its own, and probabilities do not sum to one.

Legend: (N, C) logits of N items and C labels, p = sigmoid(teacher), q = sigmoid(student), y the true labels; an item
may have any number of them, none included. All values in nats unless said otherwise; logits are finite.

Multi-Label Knowledge Distillation, ICCV 2023, https://arxiv.org/abs/2308.06453 (card `l2d`): `binary_kl` is its C2;
the others are baselines that its official harness compares with.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdzoo.losses.masks import Reduction, check_reduction, reduce
from kdzoo.losses.vocabulary import accumulation_dtype

# Stands for "no such label" under a logsumexp: the probability is exactly 0, and unlike -inf its gradient is not NaN.
ABSENT = -1e30


def binary_cross_entropy(logits: Tensor, targets: Tensor, *, reduction: Reduction) -> Tensor:
    """Negative log-likelihood of an item's labels, each a coin of its own, summed over the labels.

    Formula: -sum_c y_c log q_c + (1 - y_c) log(1 - q_c).

    Args:
        logits: (N, C).
        targets: (N, C), 0 or 1.
        reduction: "none" = one value per item, "sum" or "mean" over the items, never over the labels.

    Returns:
        (N,) or scalar, nats; float32 (float64 if an input is).

    Raises:
        ValueError: shapes differ or are not (N, C), unknown reduction.

    Source: penghui-yang/L2D@ea7fa55 loss/bce.py:BCE, which is this sum.

    Example:
        >>> loss = binary_cross_entropy(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]]), reduction="sum")
        >>> round(loss.item(), 4)  # 3 log 2
        2.0794
    """
    logits, targets = _pair(logits, targets, reduction, False)
    values = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return reduce(values.sum(1), reduction=reduction)


def binary_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    reduction: Reduction,
    teacher_grad: bool = False,
) -> Tensor:
    """How far the student's belief in each label is from the teacher's: KL of two coins, summed over the labels.

    Formula: sum_c p_c log(p_c / q_c) + (1 - p_c) log((1 - p_c) / (1 - q_c)). 0 exactly where both are equal.

    Args:
        student_logits: (N, C), one binary logit a label.
        teacher_logits: (N, C); dtypes may differ.
        reduction: "none" = one value per item, "sum" or "mean" over the items, never over the labels.
        teacher_grad: let the gradient reach the teacher too.

    Returns:
        (N,) or scalar, >= 0, nats; float32 (float64 if an input is). The student's gradient is q - p.

    Raises:
        ValueError: shapes differ or are not (N, C), unknown reduction.
        TypeError: logits that are not floating point.

    Source: penghui-yang/L2D@ea7fa55 criterion/distiller_zoo/logits_based/mld.py:MLD, which is this mean. Differs:
    written with log sigmoids; there probabilities are clamped to [1e-8, 1 - 1e-8], which in float32 is 1 above, so
    that a logit of 17 or more gives infinity.

    Example:
        >>> s, t = torch.tensor([[0.0, 40.0]]), torch.tensor([[40.0, 40.0]])
        >>> round(binary_kl(s, t, reduction="sum").item(), 4)  # log 2: sure of what is open
        0.6931
    """
    student, teacher = _pair(student_logits, teacher_logits, reduction, teacher_grad)
    p = teacher.sigmoid()
    present = p * (F.logsigmoid(teacher) - F.logsigmoid(student))
    absent = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return reduce((present + absent).sum(1), reduction=reduction)


def partial_softmax_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    reduction: Reduction,
    teacher_grad: bool = False,
) -> Tensor:
    """Softmax distillation that never lets two true labels compete: one softmax per true label against all others.

    Formula: for each true label c of an item, P_c = softmax over {c} and the item's absent labels;
    ``sum over c of KL(P_c teacher || P_c student)``.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        targets: (N, C), true where above 0.
        reduction: "none" = one value per item, "sum" or "mean" over the items.
        teacher_grad: let the gradient reach the teacher too.

    Returns:
        (N,) or scalar, >= 0, nats. 0 for an item without a true label, and for one that has all labels. The
        softmaxes share their absent labels, so time and memory are N x C.

    Raises:
        ValueError: shapes differ or are not (N, C), unknown reduction.

    Source: penghui-yang/L2D@ea7fa55 criterion/distiller_zoo/logits_based/psm.py:PartialSoftmaxDistiller ("PS").

    Example:
        >>> s, t = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 9.0]])
        >>> y = torch.tensor([[True, False, True]])  # labels 0 and 2, each against label 1 alone
        >>> round(partial_softmax_kl(s, t, y, reduction="sum").item(), 4)
        0.8011
    """
    student, teacher = _pair(student_logits, teacher_logits, reduction, teacher_grad)
    if targets.shape != student.shape:
        raise ValueError(
            f"targets: got shape {tuple(targets.shape)}, expected {tuple(student.shape)}, that of the logits; "
            "broadcasting would give all items the labels of one"
        )
    true = targets > 0
    s_absent, t_absent = student.masked_fill(true, ABSENT), teacher.masked_fill(true, ABSENT)
    # log Z_c = log(exp(logit_c) + sum over absent): one logsumexp an item serves all of its true labels.
    s_total = torch.logaddexp(student, s_absent.logsumexp(1, keepdim=True))
    t_total = torch.logaddexp(teacher, t_absent.logsumexp(1, keepdim=True))
    difference = teacher - student
    among = (t_absent.softmax(1) * difference.masked_fill(true, 0.0)).sum(1, keepdim=True)
    own = (teacher - t_total).exp()
    values = s_total - t_total + own * difference + (1 - own) * among
    return reduce(values.masked_fill(~true, 0.0).sum(1), reduction=reduction)


def label_mse(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    of: Literal["logits", "probabilities"],
    reduction: Reduction,
    teacher_grad: bool = False,
) -> Tensor:
    """Squared difference of each label's logit, or of its sigmoid probability, summed over the labels.

    Args:
        student_logits, teacher_logits: (N, C).
        of: what is compared.
        reduction: "none" = one value per item, "sum" or "mean" over the items.
        teacher_grad: let the gradient reach the teacher too.

    Returns:
        (N,) or scalar, >= 0, squared logits or squared probability.

    Raises:
        ValueError: shapes differ or are not (N, C), unknown `of` or reduction.

    Source: a baseline of arXiv 2308.06453, whose normalisation is not known; ours is that of `binary_kl`.

    Example:
        >>> label_mse(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2), of="logits", reduction="sum").item()
        5.0
    """
    student, teacher = _pair(student_logits, teacher_logits, reduction, teacher_grad)
    if of not in ("logits", "probabilities"):
        raise ValueError(f"of: got {of!r}, expected 'logits' or 'probabilities'")
    if of == "probabilities":
        student, teacher = student.sigmoid(), teacher.sigmoid()
    return reduce((student - teacher).square().sum(1), reduction=reduction)


def _pair(
    student_logits: Tensor, teacher_logits: Tensor, reduction: str, teacher_grad: bool
) -> tuple[Tensor, Tensor]:
    """Both sides in the accumulation dtype, the teacher detached; refuses what would broadcast in silence."""
    check_reduction(reduction)
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if not logits.is_floating_point():
            raise TypeError(f"{name}: got dtype {logits.dtype}, expected floating point logits, not labels")
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"logits: got student {tuple(student_logits.shape)} and teacher {tuple(teacher_logits.shape)}, expected "
            "equal shapes (items, labels); broadcasting would compare a student with another item's teacher"
        )
    dtype = accumulation_dtype(student_logits, teacher_logits)
    teacher = teacher_logits if teacher_grad else teacher_logits.detach()
    return student_logits.to(dtype), teacher.to(dtype)
