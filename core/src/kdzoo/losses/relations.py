"""Losses on the relations among the samples of a batch: structure is taught, so dimensions may differ.

Relational Knowledge Distillation, CVPR 2019, https://arxiv.org/abs/1904.05068 (card `rkd`): distance-wise
(C1) and angle-wise (C2) loss. DarkRank, AAAI 2018, https://arxiv.org/abs/1707.01220: the hard listwise loss
that RKD is compared with.

Legend: N samples of the batch, Ds and Dt embedding sizes of student and teacher, K length of a ranked list;
item = anchor, i.e. one row of the relation table.

All of them couple the samples of a batch: the mean over two half batches is another loss than that of the
whole, so they do not go with gradient accumulation.

Not here: DarkRank's soft variant (a sum over all permutations), relations across devices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdzoo.losses.angle import rkd_angle
from kdzoo.losses.distances import check_same_batch, pairwise_distances
from kdzoo.losses.masks import Reduction, check_reduction, reduce

__all__ = ["hard_darkrank", "pairwise_distances", "rkd_angle", "rkd_distance"]


def _relative_distances(embeddings: Tensor) -> Tensor:
    """(N, N) distances over the mean of the positive ones; all zero for a batch of one."""
    distances = pairwise_distances(embeddings)
    # Off the diagonal every distance is at least 1e-6, so the positive ones are the N (N - 1) others: no
    # mask, and no device sync to build it.
    others = max(1, len(distances) * (len(distances) - 1))
    # The floor only matters for a batch of one, whose single distance is 0: 0 / floor = 0 where the mean was
    # 0/0.
    return distances / (distances.sum() / others).clamp(min=1e-12)


def rkd_distance(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    *,
    reduction: Reduction,
    teacher_grad: bool = False,
) -> Tensor:
    """How far the distances between all pairs of the student's batch are from the teacher's, up to scale.

    ``l_i = 1/N sum_j SmoothL1(d^s_ij / mu^s, d^t_ij / mu^t)``, ``d_ij = ||e_i - e_j||``, mu = mean of the
    positive distances of the batch, separately for student and teacher and with gradient; beta = 1.

    Args:
        student_embeddings: (N, Ds) floating point, any scale.
        teacher_embeddings: (N, Dt), the same samples in the same order; Dt may differ from Ds.
        reduction: "none" = one value per anchor i, "mean" = the paper's mean over all N^2 entries (the
            diagonal zeros included), "sum" = N times that.
        teacher_grad: let the gradient flow into the teacher too (mutual and meta-learning).

    Returns:
        (N,) or scalar, >= 0, squared share of the mean distance (unitless); float32, or float64 for float64
        input. 0 if both sides agree up to rotation, shift and scale, and for N <= 2 (a single pair is the
        mean itself). Where all rows coincide every distance counts as equal, with gradient 0. A NaN row gives
        NaN.

    Raises:
        TypeError: integer embeddings.
        ValueError: not (N, D), different N or devices, unknown reduction.

    Source: arXiv 1904.05068 equations 3 to 5; lenscloth/RKD@0a6c3c0 metric/loss.py:RkdDistance (mean over
    positive entries, floor 1e-12 under the root).

    Example:
        >>> line = torch.tensor([[0.0], [1.0], [3.0]])
        >>> rkd_distance(10.0 * line, line, reduction="mean").item()
        0.0
    """
    check_reduction(reduction)
    check_same_batch(student_embeddings, teacher_embeddings)
    teacher = teacher_embeddings if teacher_grad else teacher_embeddings.detach()
    student_NN, teacher_NN = _relative_distances(student_embeddings), _relative_distances(teacher)
    errors = F.smooth_l1_loss(student_NN, teacher_NN.to(student_NN.dtype), reduction="none", beta=1.0)
    return reduce(errors.mean(dim=1), reduction=reduction)


def hard_darkrank(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    *,
    reduction: Reduction,
    alpha: float = 3.0,  # lenscloth/RKD@0a6c3c0 metric/loss.py:HardDarkRank
    beta: float = 3.0,  # same
    list_length: int = 4,  # same, `permute_len`
    teacher_grad: bool = False,
) -> Tensor:
    """How unlikely the teacher's order of nearest neighbors is under the student's scores.

    ``l_i = - sum_{m=1}^{K} ( S_i(m) - log sum_{n=m}^{K} exp S_i(n) )``, ``S_i(m) = -alpha d^s_{i
    pi(m)}^beta``, pi(1), ..., pi(K) the K nearest other samples of i by the teacher's distance, nearest first
    (Plackett-Luce).

    Args:
        student_embeddings: (N, Ds) floating point. The scale matters: scores grow with its power `beta`.
        teacher_embeddings: (N, Dt), the same samples in the same order.
        reduction: "none" = one value per anchor i, "mean" or "sum" over the anchors.
        alpha: > 0, sharpness of the scores.
        beta: > 0, contrast between near and far.
        list_length: K >= 1; a batch of K or fewer samples uses the N - 1 others that there are.
        teacher_grad: accepted for uniformity and refused when True: an order has no gradient.

    Returns:
        (N,) or scalar, >= 0, in nats: a negative log-likelihood, so not 0 at student = teacher. 0 for a batch
        of one. NaN student rows give NaN.

    Raises:
        TypeError: integer embeddings.
        ValueError: not (N, D), different N or devices, unknown reduction, alpha, beta or list_length out of
            range, teacher_grad, or NaN in the teacher (its order would be arbitrary).

    Source: arXiv 1707.01220 (hard variant); lenscloth/RKD@0a6c3c0 metric/loss.py:HardDarkRank.

    Example:
        >>> line = torch.tensor([[0.0], [1.0], [3.0]])
        >>> hard_darkrank(line, line, reduction="none", alpha=1.0, beta=1.0, list_length=1).abs().tolist()
        [0.0, 0.0, 0.0]
    """
    check_reduction(reduction)
    check_same_batch(student_embeddings, teacher_embeddings)
    if not (alpha > 0 and beta > 0 and list_length >= 1):
        raise ValueError(
            f"alpha, beta, list_length: got {alpha}, {beta}, {list_length}, expected > 0, > 0 and >= 1; "
            "otherwise far samples would score as high as near ones, or nothing would be ranked"
        )
    if teacher_grad:
        raise ValueError(
            "teacher_grad: got True, expected False; only the order of the teacher's neighbors enters, which "
            "has no gradient"
        )
    with torch.no_grad():
        teacher_NN = pairwise_distances(teacher_embeddings)
        if bool(teacher_NN.isnan().any()):
            raise ValueError(
                "teacher_embeddings: got NaN or infinite values, expected finite ones; the order of the "
                "neighbors would be arbitrary"
            )
        # The sample itself is left out by name, not as "the first": that holds when others coincide with it,
        # too.
        teacher_NN.fill_diagonal_(torch.inf)
        length = min(list_length, len(teacher_NN) - 1)
        nearest = teacher_NN.sort(dim=1, stable=True).indices[:, :length]
    scores = -alpha * pairwise_distances(student_embeddings).gather(1, nearest).pow(beta)
    # Position m competes with itself and those behind it. Not logcumsumexp: its gradient adds and subtracts
    # scores in the hundreds, this one only their differences.
    competing = sum(torch.logsumexp(scores[:, m:], dim=1) for m in range(length))
    return reduce(competing - scores.sum(dim=1), reduction=reduction)
