"""Triplet loss and the ways to choose its triples, for metric learning.

FaceNet, CVPR 2015, https://arxiv.org/abs/1503.03832: triplet loss, semi-hard negatives. Sampling Matters in
Deep Embedding Learning, ICCV 2017, https://arxiv.org/abs/1706.07567: distance-weighted negatives. Relational
Knowledge Distillation (card `rkd`) trains its teachers with both.

Legend: N samples of the batch, D embedding size, P ordered pairs of the same class, T triples; item = triple
(anchor, positive, negative): rows of the batch, the first two of one class, the third of another.

Choosing and scoring are apart: the choosers return `Triples` of row numbers, without gradient and, where they
draw, from the generator that is passed in.

Not here: proxies, memory banks, losses over whole lists of positives.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kdzoo.losses.distances import check_embeddings, pairwise_distances, wide_dtype
from kdzoo.losses.masks import Reduction, check_reduction, reduce


class Triples(NamedTuple):
    """Row numbers, three int64 tensors (T,); T = 0 in a batch of one class or without two of one class."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor


def _check_labels(labels: Tensor, embeddings: Tensor | None = None) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"labels: got dtype {labels.dtype}, expected integer classes; rounding would decide what is a "
            "positive"
        )
    if labels.dim() != 1:
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)}, expected (N,); one-hot or multi-label rows would be "
            "compared number by number"
        )
    if embeddings is not None and len(labels) != len(embeddings):
        raise ValueError(
            f"labels: got {len(labels)} for {len(embeddings)} embeddings, expected one each; classes of "
            "other samples would be used"
        )


def _pairs(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors and positives (P,), ordered by anchor, then positive; and (N, N) bool, True for negatives."""
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    positives = same.clone()
    positives.fill_diagonal_(False)
    # An anchor without any negative makes no triple.
    positives &= ~same.all(dim=1, keepdim=True)
    anchor, positive = positives.nonzero(as_tuple=True)
    return anchor, positive, ~same


def all_triples(labels: Tensor) -> Triples:
    """Every triple of the batch, ordered by anchor, positive, negative.

    Args:
        labels: (N,) integer classes.

    Returns:
        `Triples`; with c samples in each class T = N (c - 1) (N - c).

    Raises:
        TypeError, ValueError: not (N,) integers.

    Source: lenscloth/RKD@0a6c3c0 metric/pairsampler.py:AllPairs.

    Example:
        >>> [index.tolist() for index in all_triples(torch.tensor([7, 7, 8]))]
        [[0, 1], [1, 0], [2, 2]]
    """
    _check_labels(labels)
    anchor, positive, negatives = _pairs(labels)
    pair, negative = negatives[anchor].nonzero(as_tuple=True)
    return Triples(anchor[pair], positive[pair], negative)


def semi_hard_triples(embeddings: Tensor, labels: Tensor) -> Triples:
    """For each pair of one class the nearest negative that is farther than the positive, else the farthest
    negative.

    Args:
        embeddings: (N, D) floating point.
        labels: (N,) integer classes.

    Returns:
        `Triples`, T = P: one negative for each ordered pair whose class is not alone in the batch.

    Raises:
        TypeError, ValueError: wrong shapes or types, NaN embeddings (the choice would be arbitrary).

    Source: arXiv 1503.03832 section 3.2; the fallback from lenscloth/RKD@0a6c3c0 metric/pairsampler.py.

    Example:
        >>> line = torch.tensor([[0.0], [2.0], [1.0], [5.0], [3.0]])
        >>> semi_hard_triples(line, torch.tensor([0, 0, 1, 2, 3])).negative.tolist()
        [4, 3]
    """
    check_embeddings("embeddings", embeddings)
    _check_labels(labels, embeddings)
    with torch.no_grad():
        distances = _finite_distances(embeddings)
        anchor, positive, negatives = _pairs(labels)
        to_negatives, allowed = distances[anchor], negatives[anchor]
        farther = allowed & (to_negatives > distances[anchor, positive].unsqueeze(1))
        # argmin and argmax of an empty (0, N) table along dim 1 are empty, too.
        nearest_farther = to_negatives.masked_fill(~farther, torch.inf).argmin(dim=1)
        farthest = to_negatives.masked_fill(~allowed, -1.0).argmax(dim=1)
        return Triples(anchor, positive, torch.where(farther.any(dim=1), nearest_farther, farthest))


def distance_weights(
    embeddings: Tensor,
    labels: Tensor,
    *,
    cutoff: float = 0.5,  # lenscloth/RKD@0a6c3c0 metric/pairsampler.py:DistanceWeighted
    nonzero_loss_cutoff: float = 1.4,  # same
) -> Tensor:
    """With which probability an anchor's negatives are drawn so that all distances are drawn evenly.

    ``w_ij ~ 1 / q(max(d_ij, cutoff))`` for d_ij < nonzero_loss_cutoff, else 0, where
    ``q(d) = d^(D - 2) (1 - d^2 / 4)^((D - 3) / 2)`` is the density of the distance of two random points on
    the unit sphere. An anchor all of whose negatives are beyond draws evenly among them.

    Args:
        embeddings: (N, D) floating point, D >= 2; rows are L2-normalized here.
        labels: (N,) integer classes.
        cutoff: in (0, 2), floor of the distance: nearer negatives would get almost all the weight, and noisy
            gradients.
        nonzero_loss_cutoff: > 0, distance from which a negative is taken to have no loss.

    Returns:
        (N, N) float64, row = anchor: sums to 1, or to 0 for an anchor without negatives.

    Raises:
        TypeError, ValueError: wrong shapes, types or ranges, NaN embeddings.

    Source: arXiv 1706.07567 equations 3 and 4. Differs from lenscloth/RKD@0a6c3c0: the largest weight is
    taken among the admissible negatives, so that near positives cannot underflow all of them to 0; and 1 -
    d^2 / 4 is floored at 1e-8, for opposite points.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> distance_weights(rows, torch.tensor([0, 1, 1, 2]))[0].tolist()
        [0.0, 0.3333333333333333, 0.3333333333333333, 0.3333333333333333]
    """
    check_embeddings("embeddings", embeddings)
    _check_labels(labels, embeddings)
    size = embeddings.shape[1]
    if size < 2:
        raise ValueError(
            f"embeddings: got D = {size}, expected at least 2; on a line every distance is 0 or 2"
        )
    if not (0 < cutoff < 2 and nonzero_loss_cutoff > 0):
        raise ValueError(
            f"cutoff, nonzero_loss_cutoff: got {cutoff}, {nonzero_loss_cutoff}, expected in (0, 2) and > 0, "
            "distances on the unit sphere; all negatives would weigh the same or nothing"
        )
    with torch.no_grad():
        rows = torch.nn.functional.normalize(
            embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1
        )
        # float64: exponents grow with D, and 1 - d^2 / 4 cancels for opposite points.
        distances = _finite_distances(rows).to(wide_dtype(rows.device))
        floored = distances.clamp(min=cutoff)
        log_weights = (2.0 - size) * floored.log()
        log_weights -= 0.5 * (size - 3.0) * (1.0 - 0.25 * floored.square()).clamp(min=1e-8).log()
        negatives = labels.unsqueeze(0) != labels.unsqueeze(1)
        admissible = negatives & (distances < nonzero_loss_cutoff)
        even = negatives & ~admissible.any(dim=1, keepdim=True)
        log_weights = log_weights.masked_fill(~admissible, -torch.inf).masked_fill(even, 0.0)
        # softmax of a row of -inf is NaN: an anchor without negatives, whose row is to be 0.
        return log_weights.softmax(dim=1).masked_fill(~negatives, 0.0)


def distance_weighted_triples(
    embeddings: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator,
    cutoff: float = 0.5,  # see distance_weights
    nonzero_loss_cutoff: float = 1.4,  # same
) -> Triples:
    """For each pair of one class a negative drawn with `distance_weights`.

    Args:
        embeddings: (N, D) floating point, D >= 2.
        labels: (N,) integer classes.
        generator: source of randomness, on the device of `embeddings`.
        cutoff, nonzero_loss_cutoff: as in `distance_weights`.

    Returns:
        `Triples`, T = P: one negative for each ordered pair whose class is not alone in the batch.

    Raises:
        TypeError, ValueError: as `distance_weights`; a generator of another device.

    Source: arXiv 1706.07567; lenscloth/RKD@0a6c3c0 metric/pairsampler.py:DistanceWeighted.

    Example:
        >>> rows, labels = torch.eye(3), torch.tensor([0, 0, 1])
        >>> draws = torch.Generator().manual_seed(0)
        >>> distance_weighted_triples(rows, labels, generator=draws).negative.tolist()
        [2, 2]
    """
    if generator.device.type != embeddings.device.type:
        raise ValueError(
            f"generator: got device {generator.device}, expected that of the embeddings, "
            f"{embeddings.device}; the draw would fail. Make it with "
            "torch.Generator(device=embeddings.device)"
        )
    weights = distance_weights(embeddings, labels, cutoff=cutoff, nonzero_loss_cutoff=nonzero_loss_cutoff)
    anchor, positive, _ = _pairs(labels)
    if len(anchor) == 0:
        return Triples(anchor, positive, anchor.clone())
    negative = torch.multinomial(weights[anchor], 1, generator=generator).squeeze(1)
    return Triples(anchor, positive, negative)


def triplet_loss(embeddings: Tensor, triples: Triples, *, margin: float, reduction: Reduction) -> Tensor:
    """How much farther than the positive the negative is not: unsquared Euclidean triplet margin loss.

    ``l = max(0, d(anchor, positive) - d(anchor, negative) + margin)``

    Args:
        embeddings: (N, D) floating point; normalize them first where the margin is meant on the unit sphere.
        triples: row numbers, from one of the choosers above.
        margin: >= 0, in the unit of the embeddings (0.2 in lenscloth/RKD@0a6c3c0).
        reduction: "none" = one value per triple, "mean" over all triples, those without loss included, or
            "sum".

    Returns:
        (T,) or scalar, >= 0, in the unit of the embeddings; float32 or wider. "sum" over no triple is 0 with
        gradient 0. Coinciding rows get no gradient from each other.

    Raises:
        TypeError: integer embeddings.
        ValueError: not (N, D), margin < 0, unknown reduction, row numbers outside 0 to N - 1, or "mean" over
            no triple.

    Source: arXiv 1503.03832 with the root taken, as lenscloth/RKD@0a6c3c0 metric/loss.py:L2Triplet, which
    adds 1e-6 to every coordinate's difference where we floor the distance at 1e-6.

    Example:
        >>> line = torch.tensor([[0.0], [1.0], [1.5]])
        >>> triplet_loss(line, all_triples(torch.tensor([0, 0, 1])), margin=1.0, reduction="none").tolist()
        [0.5, 1.5]
    """
    check_reduction(reduction)
    check_embeddings("embeddings", embeddings)
    if not (margin >= 0 and math.isfinite(margin)):
        raise ValueError(
            f"margin: got {margin}, expected finite and >= 0; the loss would reward near negatives"
        )
    index = torch.stack(tuple(triples))
    if index.numel():
        lowest, highest = int(index.min()), int(index.max())
        if lowest < 0 or highest >= len(embeddings):
            raise ValueError(
                f"triples: got row numbers from {lowest} to {highest}, expected 0 to N - 1 = "
                f"{len(embeddings) - 1}; they belong to another batch"
            )
    # From the N x N table: the T x D gathers of a loss over all triples would be N^3 x D numbers.
    distances = pairwise_distances(embeddings)
    anchor, positive, negative = triples
    losses = (distances[anchor, positive] - distances[anchor, negative] + margin).clamp(min=0.0)
    return reduce(losses, reduction=reduction)


def _finite_distances(embeddings: Tensor) -> Tensor:
    distances = pairwise_distances(embeddings)
    if not bool(distances.isfinite().all()):
        raise ValueError(
            "embeddings: got NaN or infinite values, expected finite ones; which triples are chosen would be "
            "arbitrary"
        )
    return distances
