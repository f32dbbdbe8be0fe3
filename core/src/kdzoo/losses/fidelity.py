"""Ways to make a student repeat a teacher or an ensemble of teachers, beyond KL and cross-entropy.

Legend: B items, M members of an ensemble, C classes; (..., C, ...) logits with the class axis at `axis`; (...) the item
axes that are left. T temperature, p = softmax(teacher / T), q = softmax(student / T). Information in nats.

Common to all functions here: as in `kdzoo.losses.divergences`. One value per item, then `reduction`; no factor T^2
inside; the teacher is detached; half precision is read and summed in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdzoo.losses.divergences import (
    Temperature,
    check_pair,
    kl_divergence,
    log_probabilities,
    reverse_kl,
    soft_cross_entropy,
)
from kdzoo.losses.masks import Reduction, blank, reduce


def ensemble_log_probabilities(member_logits: Tensor, *, member_axis: int, axis: int) -> Tensor:
    """The log of the members' mean probability, which serves as the logits of the ensemble.

    Formula: log (1/M) sum_m softmax(z_m) = logsumexp_m log_softmax(z_m) - log M.

    A temperature applied to the result acts on the log of the mean probability, not on the members' own logits: with
    T != 1 that is another distribution than the mean of the members' softened ones.

    Args:
        member_logits: (..., M, ..., C, ...), M >= 1.
        member_axis: the axis of the members.
        axis: the class axis, counted in `member_logits`.

    Returns:
        The shape of `member_logits` without the member axis; float32 (float64 for float64). Not detached.

    Raises:
        ValueError: no member, or the two axes are one.

    Source: Stanton et al. 2021, arXiv 2106.05945; samuelstanton/gnosis@7a40c5d reduce_ensemble_logits.

    Example:
        >>> members = torch.tensor([[[0.0, -torch.inf], [-torch.inf, 0.0]]])  # two certain members, at odds
        >>> ensemble_log_probabilities(members, member_axis=1, axis=2).exp().tolist()
        [[0.5, 0.5]]
    """
    members, axes = member_logits.shape[member_axis], member_logits.dim()
    if member_axis % axes == axis % axes or members == 0:
        raise ValueError(
            f"member_logits: got shape {tuple(member_logits.shape)}, member_axis {member_axis} and class axis {axis}; "
            "expected two different axes and at least one member, or there is no mean over members"
        )
    log_p = log_probabilities(member_logits, temperature=1.0, axis=axis)
    return torch.logsumexp(log_p, member_axis) - math.log(members)


def symmetric_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
) -> Tensor:
    """KL both ways, summed (Jeffreys' divergence): 0 exactly where both are equal, and blind to which side is which.

    Formula: KL(p || q) + KL(q || p). inf as soon as one side forbids a class that the other allows.
    Arguments, result and errors as in `kdzoo.losses.divergences.kl_divergence`.

    Source: samuelstanton/gnosis@7a40c5d SymmetrizedKLLoss.

    Example:
        >>> s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
        >>> round(symmetric_kl(s, t, temperature=1.0, axis=-1, reduction="mean").item(), 4)  # (log 3) / 4
        0.2747
    """
    one_way = kl_divergence(
        student_logits, teacher_logits, temperature=temperature, axis=axis, reduction=reduction, mask=mask
    )
    return one_way + reverse_kl(
        student_logits, teacher_logits, temperature=temperature, axis=axis, reduction=reduction, mask=mask
    )


def averaged_symmetric_kl(
    student_logits: Tensor, member_logits: Tensor, *, temperature: Temperature, reduction: Reduction
) -> Tensor:
    """`symmetric_kl` to each member of an ensemble, averaged: 0 only where all members are equal, and the student too.

    Formula: (1/M) sum_m KL(p_m || q) + KL(q || p_m).

    Args:
        student_logits: (B, C).
        member_logits: (B, M, C); detached.
        temperature: T > 0, or (T_student, T_teacher).
        reduction: "none" -> (B,), "sum" or "mean" over items.

    Raises:
        ValueError: shapes that do not match, and as in `symmetric_kl`.

    Source: samuelstanton/gnosis@7a40c5d AveragedSymmetrizedKLLoss.
    """
    items, classes = student_logits.shape
    if member_logits.dim() != 3 or member_logits.shape[::2] != (items, classes) or not member_logits.shape[1]:
        raise ValueError(
            f"member_logits: got shape {tuple(member_logits.shape)}, expected ({items}, M, {classes}) with M >= 1; "
            "broadcasting would compare a student with another item's teachers"
        )
    each = symmetric_kl(
        student_logits.unsqueeze(1).expand_as(member_logits),
        member_logits,
        temperature=temperature,
        axis=-1,
        reduction="none",
    )
    return reduce(each.mean(1), reduction=reduction)


def brier(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
) -> Tensor:
    """Squared distance of the probabilities, averaged over the classes too; bounded, so no item dominates.

    Formula: (1/C) sum_c (q_c - p_c)^2, between 0 and 2/C. No unit.
    Arguments and errors as in `kdzoo.losses.divergences.kl_divergence`.

    Source: samuelstanton/gnosis@7a40c5d BrierLoss (mean over classes and items).

    Example:
        >>> s, t = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]])
        >>> brier(s, t, temperature=1.0, axis=-1, reduction="mean").item()
        1.0
    """
    axis, (s_temperature, t_temperature) = check_pair(
        student_logits, teacher_logits, temperature, axis, reduction, mask
    )
    q = log_probabilities(blank(student_logits, mask, axis), temperature=s_temperature, axis=axis).exp()
    p = log_probabilities(blank(teacher_logits.detach(), mask, axis), temperature=t_temperature, axis=axis)
    return reduce((q - p.exp()).square().mean(axis), reduction=reduction, mask=mask)


def reverse_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
) -> Tensor:
    """Cross-entropy with the sides swapped. No divergence: least where the student is certain of the teacher's first.

    Formula: -sum_c q_c log p_c = KL(q || p) + H(q): unlike the reverse KL it rewards a student for being certain.
    Arguments and errors as in `kdzoo.losses.divergences.kl_divergence`.

    Source: samuelstanton/gnosis@7a40c5d TeacherStudentRevCrossEntLoss, without its factor T^2.

    Example:
        >>> s, t = torch.tensor([[0.0, -torch.inf]]), torch.zeros(1, 2)
        >>> round(reverse_cross_entropy(s, t, temperature=1.0, axis=-1, reduction="mean").item(), 4)  # log 2
        0.6931
    """
    axis, (s_temperature, t_temperature) = check_pair(
        student_logits, teacher_logits, temperature, axis, reduction, mask
    )
    # The soft cross-entropy with the sides swapped: the gradient goes to who gives the labels.
    return soft_cross_entropy(
        teacher_logits.detach(),
        student_logits,
        temperature=(t_temperature, s_temperature),
        axis=axis,
        reduction=reduction,
        mask=mask,
        teacher_grad=True,
    )


def teacher_labels(
    teacher_logits: Tensor,
    *,
    choice: str,
    temperature: float,
    corruption: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One class per item, as the teacher says it: its first choice, or a draw from its softened distribution.

    With T the temperature of the loss, a drawn label makes the hard cross-entropy an unbiased estimate of the soft one.

    Args:
        teacher_logits: (B, C).
        choice: "argmax" or "sampled".
        temperature: T of the draw; plays no part for "argmax".
        corruption: share of the items, rounded down, that get a class drawn from all with equal chance; 0 to 1.
        generator: on the CPU; needed for "sampled" and where corruption > 0.

    Returns:
        (B,) int64, on the device of the logits.

    Raises:
        ValueError: another choice, corruption outside 0 to 1, or no generator where one is needed.

    Source: samuelstanton/gnosis TeacherStudentHardCrossEntLoss, which corrupts items drawn with repetition.
    """
    if choice not in ("argmax", "sampled") or not 0.0 <= corruption <= 1.0:
        raise ValueError(
            f"choice {choice!r}, corruption {corruption}: expected 'argmax' or 'sampled' and a share from 0 to 1"
        )
    items, classes = teacher_logits.shape
    wrong = int(items * corruption)
    if generator is None and (choice == "sampled" or wrong):
        raise ValueError("generator: got None, expected one: labels that are drawn must be repeatable")
    if choice == "argmax":
        labels = teacher_logits.argmax(1)
    else:
        p = log_probabilities(teacher_logits.detach(), temperature=temperature, axis=1).exp().cpu()
        labels = torch.multinomial(p, 1, generator=generator).squeeze(1).to(teacher_logits.device)
    if wrong:
        places = torch.randperm(items, generator=generator)[:wrong].to(labels.device)
        drawn = torch.randint(classes, (wrong,), generator=generator).to(labels.device)
        labels = labels.index_copy(0, places, drawn)
    return labels


def hard_cross_entropy(
    student_logits: Tensor, labels: Tensor, *, temperature: float, reduction: Reduction
) -> Tensor:
    """-log softmax(student / T)[label] per item; nats.

    Args:
        student_logits: (B, C).
        labels: (B,) integers, such as those of `teacher_labels`.
        temperature: T > 0.
        reduction: "none" -> (B,), "sum" or "mean".

    Raises:
        ValueError: shapes that do not match, temperature <= 0.

    Source: samuelstanton/gnosis@7a40c5d TeacherStudentHardCrossEntLoss, without its factor T^2.

    Example:
        >>> round(hard_cross_entropy(torch.zeros(1, 4), torch.tensor([2]), temperature=4.0, reduction="mean").item(), 4)
        1.3863
    """
    if labels.shape != student_logits.shape[:1]:
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)}, expected ({student_logits.shape[0]},), one class per item of "
            f"logits {tuple(student_logits.shape)}"
        )
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature: got {temperature}, expected a finite number > 0")
    log_q = log_probabilities(student_logits, temperature=temperature, axis=1)
    return reduce(-log_q.gather(1, labels.unsqueeze(1)).squeeze(1), reduction=reduction)


def falling_share(first: float, *, step: int, steps: int) -> float:
    """A mixing weight that falls linearly, by first / steps a step: `first` at step 0, 0 from `steps` on.

    Example:
        >>> [falling_share(0.5, step=step, steps=5) for step in (0, 1, 5)]
        [0.5, 0.4, 0.0]
    """
    return first * max(0.0, 1.0 - step / steps)
