"""Euclidean distances between all rows of one batch, exact for rows that nearly coincide.

Legend: N rows of the batch, D embedding size; d_ij = ||e_i - e_j||.

The usual ||e_i||^2 + ||e_j||^2 - 2 e_i.e_j loses every digit once two rows differ by less than about 1e-4 of
their norm in float32, and the N x N x D table of differences that would avoid it costs D times the memory. So
the product is taken in float64 of centered rows, and the few pairs for which even that is too coarse are
computed once more from their differences.

Not here: distances between two different batches, other norms.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# Smallest squared distance under the root: lenscloth/RKD@0a6c3c0 metric/utils.py. Equal rows have d = 1e-6.
SQUARED_FLOOR = 1e-12
# Below this share of ||e_i||^2 + ||e_j||^2 the product has lost too many digits and the difference is taken:
# a relative error of about 1e-9 is left in float64, of 1e-5 in float32.
CANCELLED = {torch.float64: 1e-7, torch.float32: 1e-2}
# Pairs recomputed at a time: bounds the memory when all rows coincide (N^2 / 2 pairs of D numbers otherwise).
PAIRS_AT_A_TIME = 4096


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, except on Apple's MPS, which has none: angles at near-duplicate rows are less exact there."""
    return torch.float32 if device.type == "mps" else torch.float64


def check_embeddings(name: str, embeddings: Tensor) -> None:
    """Refuse what is not an (N, D) table of real floating-point rows.

    Raises:
        TypeError: not floating point.
        ValueError: not two axes, or an empty one.
    """
    if not embeddings.is_floating_point():
        raise TypeError(
            f"{name}: got dtype {embeddings.dtype}, expected floating point; distances between integers "
            "would be rounded and carry no gradient"
        )
    if embeddings.dim() != 2 or 0 in embeddings.shape:
        raise ValueError(
            f"{name}: got shape {tuple(embeddings.shape)}, expected (N, D), both at least 1; "
            "with other axes the relations would be between the wrong things. Flatten features to (N, D) "
            "first"
        )


def check_same_batch(student_embeddings: Tensor, teacher_embeddings: Tensor) -> None:
    """Refuse a student and a teacher table that do not describe the same N samples on the same device."""
    check_embeddings("student_embeddings", student_embeddings)
    check_embeddings("teacher_embeddings", teacher_embeddings)
    if len(student_embeddings) != len(teacher_embeddings):
        raise ValueError(
            f"batch: got {len(student_embeddings)} student rows and {len(teacher_embeddings)} teacher rows, "
            "expected the same samples in the same order; relations of different samples would be compared"
        )
    if student_embeddings.device != teacher_embeddings.device:
        raise ValueError(
            f"device: got student_embeddings on {student_embeddings.device} and teacher_embeddings on "
            f"{teacher_embeddings.device}, expected one device"
        )


def centered(embeddings: Tensor) -> Tensor:
    """(N, D) rows minus their mean, in `wide_dtype`: relations do not change, products cancel less."""
    rows = embeddings.to(wide_dtype(embeddings.device))
    return rows - rows.mean(dim=0)


def full_precision(rows: Tensor) -> AbstractContextManager[object]:
    """Where products of `rows` keep their dtype: autocast leaves float64 alone, but would halve MPS's float32."""
    if rows.dtype == torch.float64:
        return nullcontext()  # entering autocast costs as much as a small product
    return torch.autocast(rows.device.type, enabled=False)


def squared_distances(rows: Tensor) -> Tensor:
    """All squared distances between the rows of a centered table, without gradient.

    Args:
        rows: (N, D) from `centered`.

    Returns:
        (N, N), symmetric, >= 0, zero on the diagonal (all NaN if any row has one), in the dtype of `rows`,
        with a relative error of about 1e-9 in float64 however close two rows are.
    """
    with torch.no_grad(), full_precision(rows):
        products = rows @ rows.T
        norms = products.diagonal().clone()
        sums = norms.unsqueeze(0) + norms.unsqueeze(1)
        squared = torch.sub(sums, products, alpha=2.0, out=products)
        diagonal = squared.diagonal()
        # Not simply 0: a NaN row must stay visible even in a batch of one.
        zero = diagonal - diagonal
        diagonal.fill_(torch.inf)
        near = squared < sums.mul_(CANCELLED[rows.dtype])
        if bool(near.any()):
            first, second = near.triu_().nonzero(as_tuple=True)
            for i, k in zip(first.split(PAIRS_AT_A_TIME), second.split(PAIRS_AT_A_TIME), strict=True):
                exact = (rows[i] - rows[k]).square_().sum(dim=1)
                squared[i, k] = exact
                squared[k, i] = exact
        diagonal.copy_(zero)
        return squared


class _Distances(torch.autograd.Function):
    """d = sqrt(max(d^2, floor)), zero diagonal; the backward pass is one N x N by N x D product."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor) -> Tensor:
        squared = squared_distances(centered(embeddings))
        distances = squared.clamp_(min=SQUARED_FLOOR).sqrt_()
        diagonal = distances.diagonal()
        diagonal.sub_(diagonal.clone())
        result = distances.to(torch.promote_types(embeddings.dtype, torch.float32))
        ctx.save_for_backward(embeddings, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad_distances: Tensor) -> Tensor:
        # Written with differentiable operations only, so that second derivatives (meta-learning) work.
        embeddings, distances = ctx.saved_tensors
        rows = centered(embeddings)
        # A pair at the floor is where the clamp is flat: no gradient, and no division by the zero diagonal.
        floored = distances.square() <= SQUARED_FLOOR * (1 + 1e-6)
        weights = grad_distances.to(rows.dtype) / distances.to(rows.dtype).masked_fill(floored, torch.inf)
        weights = weights + weights.T
        with full_precision(rows):
            # float64, for the two products nearly cancel where rows nearly coincide.
            gradient = weights.sum(dim=1, keepdim=True) * rows - weights @ rows
        return gradient.to(embeddings.dtype)


def pairwise_distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances between all rows of a batch.

    ``d_ij = sqrt(max(||e_i - e_j||^2, 1e-12))`` for i != j, and ``d_ii = 0``.

    Args:
        embeddings: (N, D) floating point, N >= 1, D >= 1. Half precision is read and computed in float32 or
            wider.

    Returns:
        (N, N), in the unit of the embeddings, float32 (float64 for float64 input). The gradient with respect
        to two rows that coincide (d <= 1e-6) is zero. A NaN anywhere makes everything NaN.

    Raises:
        TypeError: integer embeddings.
        ValueError: not (N, D), or empty.

    Source: lenscloth/RKD@0a6c3c0 metric/utils.py:pdist. Differs: exact for near-duplicate rows, where the
    official float32 product returns rounding noise.

    Example:
        >>> pairwise_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).tolist()
        [[0.0, 5.0], [5.0, 0.0]]
    """
    check_embeddings("embeddings", embeddings)
    distances: Tensor = _Distances.apply(embeddings)
    return distances
