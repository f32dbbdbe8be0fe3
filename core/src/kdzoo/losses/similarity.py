"""Losses between the tables of similarities that a batch has under the student and under the teacher.

Similarity-Preserving Knowledge Distillation, ICCV 2019, https://arxiv.org/abs/1907.09682 (card
`similarity-preserving`), and Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018,
https://arxiv.org/abs/1803.10837 (card `pkt`).

Legend: N samples of the batch, Ds and Dt widths of student and teacher; item = anchor, i.e. one row of the table.

Both couple the samples of a batch: the mean over two half batches is another loss than that of the whole. Widths may
differ, since only tables of N x N are compared.

Not here: distances and angles (`kdzoo.losses.relations`), kernels other than PKT's cosine.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdzoo.losses.distances import check_same_batch
from kdzoo.losses.masks import Reduction, check_reduction, reduce

EPSILON = 1e-7  # HobbitLong/RepDistiller@b84f547 distiller_zoo/PKT.py


def _rows(student: Tensor, teacher: Tensor, teacher_grad: bool) -> tuple[Tensor, Tensor]:
    """Both sides as checked (N, D) tables in float32 or wider, the teacher detached."""
    tables = [side.flatten(1) if side.dim() > 2 else side for side in (student, teacher)]
    check_same_batch(*tables)
    s_ND, t_ND = (table.to(torch.promote_types(table.dtype, torch.float32)) for table in tables)
    return s_ND, t_ND if teacher_grad else t_ND.detach()


def similarity_preserving(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    reduction: Reduction,
    teacher_grad: bool = False,
) -> Tensor:
    """Squared difference of the two tables of inner products, each row divided by its L2 norm.

    ``G = A A^T, g_i = G_i / ||G_i||, l_i = 1/N sum_j ( g^s_ij - g^t_ij )^2``, A the activations, one row a sample.

    Args:
        student_features: (N, ...) floating point; all axes but the first are one row.
        teacher_features: (N, ...), the same samples in the same order; another width is fine.
        reduction: "none" = one value per anchor i, "mean" = the paper's sum over all pairs / N^2, "sum" = N times that.
        teacher_grad: let the gradient flow into the teacher too.

    Returns:
        (N,) or scalar, in [0, 4 / N], unitless; float32 or wider. 0 if the activations agree up to rotation and one
        scale, and for N = 1 unless the activation is zero.

    Raises:
        TypeError: integer features.
        ValueError: different N or devices, an empty axis, unknown reduction.

    Source: arXiv 1907.09682 equations 1 to 4; HobbitLong/RepDistiller@b84f547 distiller_zoo/SP.py.

    Example:
        >>> a = torch.eye(2)
        >>> similarity_preserving(3.0 * a, a, reduction="mean").item()
        0.0
    """
    check_reduction(reduction)
    s_ND, t_ND = _rows(student_features, teacher_features, teacher_grad)
    with torch.autocast(s_ND.device.type, enabled=False):
        s_NN, t_NN = (F.normalize(rows @ rows.T, dim=1) for rows in (s_ND, t_ND))
    return reduce((s_NN - t_NN).square().mean(dim=1), reduction=reduction)


def probabilistic_transfer(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    *,
    reduction: Reduction,
    teacher_grad: bool = False,
) -> Tensor:
    """KL divergence, anchor by anchor, of the probabilities to choose each sample of the batch as neighbour.

    ``p_j|i = k_ij / sum_j k_ij, k_ij = (1 + cos(e_i, e_j)) / 2, l_i = sum_j p^t_j|i log((p^t_j|i + eps) / (p^s_j|i +
    eps))`` with eps = 1e-7; an anchor is its own neighbour too.

    Args:
        student_embeddings: (N, ...) floating point; all axes but the first are one row.
        teacher_embeddings: (N, ...), the same samples in the same order; another width is fine.
        reduction: "none" = one value per anchor i, "mean" or "sum" over the anchors. The official mean over all N^2
            pairs is the mean over anchors / N.
        teacher_grad: let the gradient flow into the teacher too.

    Returns:
        (N,) or scalar, >= -N * 1e-7, in nats; float32 or wider. 0 if all cosines agree.

    Raises:
        TypeError: integer embeddings.
        ValueError: different N or devices, an empty axis, unknown reduction.

    Source: arXiv 1803.10837 equations 3 to 8; HobbitLong/RepDistiller@b84f547 distiller_zoo/PKT.py. Differs: a zero
    row has gradient 0 where the official code has NaN.

    Example:
        >>> a = torch.eye(2)
        >>> probabilistic_transfer(3.0 * a, a, reduction="mean").item()
        0.0
    """
    check_reduction(reduction)
    s_ND, t_ND = _rows(student_embeddings, teacher_embeddings, teacher_grad)
    s_NN, t_NN = _neighbour_probabilities(s_ND), _neighbour_probabilities(t_ND)
    ratios = ((t_NN + EPSILON) / (s_NN + EPSILON)).log()
    return reduce((t_NN * ratios).sum(dim=1), reduction=reduction)


def _neighbour_probabilities(rows: Tensor) -> Tensor:
    """(N, D) -> (N, N), each row sums to 1."""
    directions = F.normalize(rows, dim=1, eps=EPSILON)
    with torch.autocast(rows.device.type, enabled=False):
        kernel = (directions @ directions.T + 1.0) / 2.0
    return kernel / kernel.sum(dim=1, keepdim=True)
