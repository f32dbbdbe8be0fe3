"""Losses on label-wise embeddings: one vector per item and label, compared by its distances to others.

Multi-Label Knowledge Distillation, ICCV 2023, https://arxiv.org/abs/2308.06453 (card `l2d`, C3 and C4).

Legend: N items, C labels, Ds and Dt widths of the student's and the teacher's vectors, y (N, C) the true labels.
A group is the set of vectors that are compared: all items that have a label (class-wise), or all labels that an item
has (instance-wise). Within a group the Euclidean distances are divided by their mean, each side by its own, so widths
and scales of the two sides may differ.

Groups are packed into one padded table (G, M, D), M the largest group: at most the size of the embeddings themselves,
and G x M x M distances; there is no loop over labels or items. Groups couple the items of a batch, so class-wise
losses do not go with gradient accumulation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdzoo.losses.masks import Reduction, check_reduction, reduce
from kdzoo.losses.vocabulary import accumulation_dtype

FLOOR = 1e-6  # smallest distance: penghui-yang/L2D@ea7fa55 le_based/huber_dist.py clamps its square to 1e-12
# One distance is its own mean, so a group of two is 1 on both sides: it has neither loss nor gradient.
FEWEST = 3


class _Groups(NamedTuple):
    """Which groups count, where their members are, and which places of the padded table are real pairs."""

    chosen: Tensor  # (G,) positions among all groups
    members: Tensor  # (G, M) positions within a group's row
    pairs: Tensor  # (G, M, M) bool, off the diagonal and both real
    sizes: Tensor  # (G,)


def class_wise_distance(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    targets: Tensor,
    *,
    reduction: Reduction,
    teacher_grad: bool = False,
) -> Tensor:
    """How far the distances among a label's items are from the teacher's, for every label (class-aware, CD).

    ``l_c = 1/n_c sum_ij SmoothL1(d^s_ij / mu^s, d^t_ij / mu^t)`` over the n_c items i, j that have label c;
    ``d_ij = ||e_ic - e_jc||``, mu the mean over i != j, separately for student and teacher; beta = 1.

    Args:
        student_embeddings: (N, C, Ds).
        teacher_embeddings: (N, C, Dt), the same items and labels.
        targets: (N, C), true where above 0.
        reduction: "none" = one value per label, "sum" (the paper's) or "mean" over the C labels.
        teacher_grad: let the gradient reach the teacher too.

    Returns:
        (C,) or scalar, >= 0, unitless; float32 (float64 if an input is). 0 for a label of fewer than three items: two
        have one distance, which is its own mean.

    Raises:
        TypeError: embeddings that are not floating point.
        ValueError: shapes that do not fit each other, unknown reduction.

    Source: penghui-yang/L2D@ea7fa55 criterion/distiller_zoo/le_based/cd.py:CD. Differs: members are chosen by the
    labels; there by rows that are not all zero after masking.

    Example:
        >>> line = torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1)  # three items of one label
        >>> class_wise_distance(5 * line, line, torch.ones(3, 1), reduction="sum").item()
        0.0
    """
    _check(student_embeddings, teacher_embeddings, targets, reduction)
    values = _values(
        student_embeddings.transpose(0, 1), teacher_embeddings.transpose(0, 1), targets.T, teacher_grad
    )
    return reduce(values, reduction=reduction)


def instance_wise_distance(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    targets: Tensor,
    *,
    reduction: Reduction,
    teacher_grad: bool = False,
) -> Tensor:
    """How far the distances among an item's labels are from the teacher's, for every item (instance-aware, ID).

    ``l_n = 1/m_n sum_bc SmoothL1(d^s_bc / mu^s, d^t_bc / mu^t)`` over the m_n labels b, c of item n;
    ``d_bc = ||e_nb - e_nc||``. Arguments, floor, errors as in `class_wise_distance`; `reduction` is over the N items.

    Source: penghui-yang/L2D@ea7fa55 criterion/distiller_zoo/le_based/id.py:ID.

    Example:
        >>> one = torch.tensor([0.0, 1.0, 3.0]).view(1, 3, 1)  # three labels of one item
        >>> instance_wise_distance(one, one.flip(1), torch.ones(1, 3), reduction="none").shape
        torch.Size([1])
    """
    _check(student_embeddings, teacher_embeddings, targets, reduction)
    values = _values(student_embeddings, teacher_embeddings, targets, teacher_grad)
    return reduce(values, reduction=reduction)


@torch.no_grad()
def structure_gap(student_embeddings: Tensor, teacher_embeddings: Tensor, members: Tensor) -> Tensor:
    """Mean |d^s_ij / mu^s - d^t_ij / mu^t| over the pairs of each group: a measure, not a loss.

    Args:
        student_embeddings: (G, M, Ds): row g holds the vectors of group g.
        teacher_embeddings: (G, M, Dt).
        members: (G, M), true where above 0: which places of a row belong to its group.

    Returns:
        (groups of three or more members,), unitless, in the order of the groups; empty if there is none.

    Example:
        >>> line = torch.tensor([[[0.0], [1.0], [3.0]]])
        >>> round(structure_gap(line, line.flip(1), torch.ones(1, 3)).item(), 4)
        0.3333
    """
    _check(student_embeddings, teacher_embeddings, members, "none")
    groups = _groups(members)
    student = _relative(student_embeddings, groups)
    gap = (student - _relative(teacher_embeddings, groups)).abs().sum((1, 2))
    return gap / (groups.sizes * (groups.sizes - 1))


def _values(student: Tensor, teacher: Tensor, members: Tensor, teacher_grad: bool) -> Tensor:
    """The loss of every group; (groups, places, D) twice and (groups, places)."""
    groups = _groups(members)
    dtype = accumulation_dtype(student, teacher)
    # Also without any group the result hangs on the graph: a gradient of zero, not none.
    values = torch.zeros(len(members), dtype=dtype, device=student.device) + 0.0 * student[:0].sum()
    if not len(groups.chosen):
        return values
    target = _relative(teacher if teacher_grad else teacher.detach(), groups)
    errors = F.smooth_l1_loss(
        _relative(student, groups).to(dtype), target.to(dtype), reduction="none", beta=1.0
    )
    return values.index_copy(0, groups.chosen, errors.sum((1, 2)) / groups.sizes)


def _groups(members: Tensor) -> _Groups:
    member = members > 0
    sizes = member.sum(1)
    chosen = (sizes >= FEWEST).nonzero().squeeze(1)
    sizes, member = sizes[chosen], member[chosen]
    most = int(sizes.max()) if len(chosen) else 0
    # Stable: a group's members keep their order, and what pads the row comes behind them.
    places = member.logical_not().to(torch.uint8).sort(dim=1, stable=True).indices[:, :most]
    real = torch.arange(most, device=members.device) < sizes.unsqueeze(1)
    pairs = real.unsqueeze(2) & real.unsqueeze(1)
    pairs.diagonal(dim1=1, dim2=2).fill_(False)
    return _Groups(chosen, places, pairs, sizes)


def _relative(embeddings: Tensor, groups: _Groups) -> Tensor:
    """(G, M, M) distances over the mean of the group's pairs; 0 on the diagonal and in the padding."""
    rows = embeddings[groups.chosen.unsqueeze(1), groups.members]
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    # From differences, not from products: exact for near neighbours; its gradient at distance 0 is 0.
    with torch.autocast(rows.device.type, enabled=False):
        distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances.clamp(min=FLOOR).masked_fill(~groups.pairs, 0.0)
    mean = distances.sum((1, 2)) / (groups.sizes * (groups.sizes - 1))
    return distances / mean.view(-1, 1, 1)


def _check(student: Tensor, teacher: Tensor, targets: Tensor, reduction: str) -> None:
    check_reduction(reduction)
    for name, embeddings in (("student_embeddings", student), ("teacher_embeddings", teacher)):
        if not embeddings.is_floating_point():
            raise TypeError(
                f"{name}: got dtype {embeddings.dtype}, expected floating point; distances between integers carry no "
                "gradient"
            )
        if embeddings.dim() != 3 or embeddings.shape[:2] != targets.shape:
            raise ValueError(
                f"{name}: got shape {tuple(embeddings.shape)} with targets {tuple(targets.shape)}, expected "
                "(items, labels, width) and (items, labels); vectors of other labels would be compared. A decoder "
                "whose labels share queries has no label-wise embeddings: give it one query a label"
            )
