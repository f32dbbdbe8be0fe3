"""How good a model is and how close to its teacher: accuracy, agreement, KL, NLL, calibration, recall.

Legend: (..., C, ...) logits with the class axis at `axis`; (...) item axes; N embeddings of size D.

Measured without gradient, in at least float32. Fractions, never percent; information in nats. Functions that
have a value per item take `reduction` ("none", "sum", "mean") and `mask` as the losses do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdzoo.losses.divergences import check_pair, kl_divergence, log_probabilities
from kdzoo.losses.masks import Reduction, reduce
from kdzoo.losses.vocabulary import accumulation_dtype


@torch.no_grad()
def accuracy(
    logits: Tensor, labels: Tensor, *, axis: int, reduction: Reduction, mask: Tensor | None = None
) -> Tensor:
    """Whether the largest logit is the label's: 1.0 or 0.0 per item (ties: the lowest class).

    Args:
        logits: (..., C, ...). An item whose logits hold NaN counts as wrong.
        labels: (...) integers; hide missing ones with `mask`.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])
        >>> accuracy(logits, labels, axis=-1, reduction="mean").item()
        0.5
    """
    _check_labels(logits, labels, axis)
    hit = logits.argmax(axis) == labels
    return reduce((hit & ~logits.isnan().any(axis)).to(torch.float32), reduction=reduction, mask=mask)


@torch.no_grad()
def agreement(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
) -> Tensor:
    """Whether both choose the same class: 1.0 or 0.0 per item, right or wrong. NaN agrees with nothing."""
    check_pair(student_logits, teacher_logits, 1.0, axis, reduction, mask)
    broken = student_logits.isnan().any(axis) | teacher_logits.isnan().any(axis)
    same = (student_logits.argmax(axis) == teacher_logits.argmax(axis)) & ~broken
    return reduce(same.to(torch.float32), reduction=reduction, mask=mask)


@torch.no_grad()
def predictive_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
) -> Tensor:
    """KL(teacher || student) at temperature 1, whatever temperature the training used; nats."""
    return kl_divergence(
        student_logits, teacher_logits, temperature=1.0, axis=axis, reduction=reduction, mask=mask
    )


@torch.no_grad()
def negative_log_likelihood(
    logits: Tensor, labels: Tensor, *, axis: int, reduction: Reduction, mask: Tensor | None = None
) -> Tensor:
    """-log softmax(logits)[label] per item; nats.

    Example:
        >>> nll = negative_log_likelihood(torch.zeros(1, 4), torch.tensor([2]), axis=-1, reduction="mean")
        >>> round(nll.item(), 4)  # log 4
        1.3863
    """
    _check_labels(logits, labels, axis)
    if mask is not None:
        labels = labels.masked_fill(~mask, 0)
    log_p = log_probabilities(logits, temperature=1.0, axis=axis)
    values = -log_p.gather(axis, labels.long().unsqueeze(axis)).squeeze(axis)
    return reduce(values, reduction=reduction, mask=mask)


@torch.no_grad()
def expected_calibration_error(
    logits: Tensor, labels: Tensor, *, axis: int, bins: int, mask: Tensor | None = None
) -> Tensor:
    """How far confidence is from accuracy: sum over bins of n_b / n |accuracy_b - mean confidence_b|, 0 to 1.

    Bins of equal width on (0, 1], each open below and closed above; empty bins weigh nothing. Biased upwards
    for few items: compare models on the same items and bins only.

    Args:
        logits: (..., C, ...).
        labels: (...) integers; hide missing ones with `mask`.
        bins: 15 in the source.

    Returns:
        A float64 scalar. NaN if any confidence is NaN.

    Raises:
        ValueError: bins < 1, shapes that do not match, or no item that counts.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3.

    Example:
        >>> logits = torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log()  # two hits at confidence 0.8
        >>> round(expected_calibration_error(logits, torch.tensor([0, 0]), axis=-1, bins=10).item(), 6)
        0.2
    """
    hits, confidence = _confident(logits, labels, axis, bins, mask)
    if bool(confidence.isnan().any()):
        return confidence.new_full((), torch.nan)
    gap = confidence.new_zeros(bins).index_add_(0, _bin_of(confidence, bins), hits - confidence)
    return gap.abs().sum() / hits.numel()


class CalibrationBins(NamedTuple):
    """Sums over the items of each bin, (bins,): how many, how many right, and their confidences."""

    items: Tensor
    hits: Tensor
    confidence: Tensor


@torch.no_grad()
def calibration_bins(
    logits: Tensor, labels: Tensor, *, axis: int, bins: int, mask: Tensor | None = None
) -> CalibrationBins:
    """What `expected_calibration_error` sums over, bin by bin: the content of a reliability diagram.

    Args:
        logits: (..., C, ...), without NaN.
        labels: (...) integers; hide missing ones with `mask`.
        bins: bins of equal width on (0, 1], each open below and closed above.

    Raises:
        ValueError: as for `expected_calibration_error`, and for a confidence that is NaN: it belongs to no bin.

    Example:
        >>> logits = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log()
        >>> found = calibration_bins(logits, torch.tensor([0, 0]), axis=-1, bins=2)
        >>> found.items.tolist(), found.hits.tolist(), round(found.confidence[1].item(), 6)
        ([0, 2], [0, 1], 1.4)
    """
    hits, confidence = _confident(logits, labels, axis, bins, mask)
    if bool(confidence.isnan().any()):
        raise ValueError("logits: got NaN, expected finite numbers; a confidence that is NaN is in no bin")
    at = _bin_of(confidence, bins)
    return CalibrationBins(
        torch.bincount(at, minlength=bins),
        torch.bincount(at[hits > 0], minlength=bins),
        confidence.new_zeros(bins).index_add_(0, at, confidence),
    )


def _confident(
    logits: Tensor, labels: Tensor, axis: int, bins: int, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(right or wrong, probability of the most probable class) of every item that counts, float64."""
    if bins < 1:
        raise ValueError(f"bins: got {bins}, expected at least 1")
    hits = accuracy(logits, labels, axis=axis, reduction="none").double()
    # not exp(log softmax), which may leave the bin whose edge a confidence is on
    confidence = torch.softmax(logits.to(accumulation_dtype(logits)), axis).amax(axis).double()
    if mask is not None:
        hits, confidence = hits[mask], confidence[mask]
    hits, confidence = hits.flatten(), confidence.flatten()
    if hits.numel() == 0:
        raise ValueError("logits: got no item that counts, expected at least one; the error would be 0/0")
    return hits, confidence


def _bin_of(confidence: Tensor, bins: int) -> Tensor:
    return ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)


@torch.no_grad()
def recall_at_k(
    embeddings: Tensor, labels: Tensor, *, ks: Sequence[int], reduction: Reduction, chunk: int = 1024
) -> Tensor:
    """Whether one of the k nearest other samples has the query's label: 1.0 or 0.0 per k and query.

    Euclidean distance; a sample is never its own neighbor. A query whose label nobody shares is a miss.
    Distances are computed in float64 from centered embeddings, `chunk` queries at a time: chunk x N numbers
    at a time, not N x N.

    Args:
        embeddings: (N, D) with N > max(ks), finite.
        labels: (N,) integers.
        ks: distinct neighborhood sizes, each >= 1.
        reduction: "none" -> (len(ks), N); "sum" or "mean" over queries -> (len(ks),).
        chunk: queries at a time.

    Returns:
        float32, in the order of `ks`.

    Raises:
        ValueError: shapes that do not match, k < 1 or k >= N, embeddings that are not finite.

    Source: the retrieval protocol of Oh Song et al. 2016, arXiv 1511.06452, as in lenscloth/RKD
    metric/utils.py.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
        >>> recall_at_k(x, torch.tensor([0, 0, 1, 1]), ks=[1, 2], reduction="mean").tolist()
        [0.5, 0.75]
    """
    count = embeddings.shape[0]
    if embeddings.dim() != 2 or labels.shape != (count,):
        raise ValueError(
            f"embeddings, labels: got shapes {tuple(embeddings.shape)} and {tuple(labels.shape)}, "
            "expected (N, D) and (N,)"
        )
    if not ks or min(ks) < 1 or max(ks) >= count:
        raise ValueError(
            f"ks: got {list(ks)} for {count} samples, expected each from 1 to {count - 1}; "
            "a query has only that many neighbors"
        )
    points = embeddings.double()
    if not bool(points.isfinite().all()):
        raise ValueError(
            "embeddings: got NaN or inf, expected finite numbers; the order of neighbors is undefined"
        )
    points = points - points.mean(0)
    squares = points.square().sum(1)
    hits = torch.empty(len(ks), count, device=points.device)
    for start in range(0, count, chunk):
        rows = slice(start, start + chunk)
        # |a - b|^2 without |a|^2, which does not change the order of one query's neighbors
        distance = torch.addmm(squares, points[rows], points.T, alpha=-2.0)
        own = torch.arange(distance.shape[0], device=points.device)
        distance[own, own + start] = torch.inf
        nearest = distance.topk(max(ks), largest=False, sorted=True).indices
        right = (labels[nearest] == labels[rows].unsqueeze(1)).cummax(1).values
        for i, k in enumerate(ks):
            hits[i, rows] = right[:, k - 1].to(hits.dtype)
    if reduction == "none":
        return hits
    return torch.stack([reduce(row, reduction=reduction) for row in hits])


def _check_labels(logits: Tensor, labels: Tensor, axis: int) -> None:
    items = logits.movedim(axis, -1).shape[:-1]
    if labels.shape != items:
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)}, expected the item axes {tuple(items)} of logits "
            f"{tuple(logits.shape)} with class axis {axis}; broadcasting would compare other items"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels: got dtype {labels.dtype}, expected integer classes")
