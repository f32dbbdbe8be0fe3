"""How good scores of independent labels are: average precision, and F1 at the true number of labels.

Legend: N items, C labels; scores (N, C), higher = more likely; targets (N, C), true where above 0. Measured without
gradient in float64. Fractions, never percent.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Area under each label's precision-recall steps: the mean over its items of the precision at that item's rank.

    ``AP_c = sum_k (R_k - R_{k-1}) P_k`` over the distinct scores in falling order; items of equal score are taken
    together, so their order does not matter. No interpolation.

    Args:
        scores: (N, C) without NaN; logits and probabilities give the same as long as they rank alike.
        targets: (N, C).

    Returns:
        (C,) float64 in (0, 1]; NaN for a label that no item has.

    Raises:
        ValueError: shapes that are not equal and (N, C), or NaN.

    Source: the definition of scikit-learn's `average_precision_score`, as the official evaluation of L2D
    (penghui-yang/L2D@ea7fa55 evaluate.py) uses it.

    Example:
        >>> average_precision(torch.tensor([[3.0], [2.0], [1.0]]), torch.tensor([[1], [0], [1]])).item()
        0.8333333333333333
    """
    true = _checked(scores, targets)
    # float64 would part nothing that float32 holds equal, and sorting it takes longer.
    ordered, order = scores.sort(dim=0, descending=True)
    hits = true.gather(0, order)
    count = len(scores)
    rank = torch.arange(1, count + 1, device=scores.device, dtype=torch.float64).unsqueeze(1)
    precision = hits.double().cumsum(0) / rank
    # The precision at a threshold is that of the last item with the same score.
    last = torch.ones_like(hits)
    last[:-1] = ordered[:-1] != ordered[1:]
    row = torch.arange(count, device=scores.device).unsqueeze(1).expand_as(hits)
    end = row.masked_fill(~last, count).flip(0).cummin(0).values.flip(0)
    return (precision.gather(0, end) * hits).sum(0) / hits.sum(0)


@torch.no_grad()
def f1_at_true_count(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Micro and macro F1 when an item with k true labels predicts its k best ones (OF1, CF1).

    An oracle tells how many labels each item has: these numbers are no result of a deployable classifier. Predicted
    are the scores above the (k + 1)-th best; where that ties with the k-th, fewer than k.

    Args:
        scores: (N, C) without NaN.
        targets: (N, C).

    Returns:
        (micro F1 over all item-label pairs, mean over the labels of each label's F1), float64. Labels that no item
        has are left out of the mean; NaN if no item has any.

    Raises:
        ValueError: shapes that are not equal and (N, C), or NaN.

    Source: penghui-yang/L2D@ea7fa55 evaluate.py:test.

    Example:
        >>> scores, targets = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.8, 0.3]]), torch.tensor([[1, 0, 1], [0, 1, 0]])
        >>> [round(f1.item(), 4) for f1 in f1_at_true_count(scores, targets)]
        [0.6667, 0.5556]
    """
    true = _checked(scores, targets)
    count = true.sum(1, keepdim=True)
    falling = scores.sort(dim=1, descending=True).values
    best = torch.cat((falling, torch.full_like(falling[:, :1], -torch.inf)), dim=1)
    said = scores > best.gather(1, count)
    right = (said & true).sum(0).double()
    predicted, present = said.sum(0).double(), true.sum(0).double()
    micro = 2 * right.sum() / (predicted.sum() + present.sum())
    macro = (2 * right / (predicted + present))[present > 0].mean()
    return micro, macro


def _checked(scores: Tensor, targets: Tensor) -> Tensor:
    """The targets as bool."""
    if scores.dim() != 2 or scores.shape != targets.shape:
        raise ValueError(
            f"scores, targets: got shapes {tuple(scores.shape)} and {tuple(targets.shape)}, expected equal ones "
            "(items, labels)"
        )
    if bool(scores.isnan().any()):
        raise ValueError("scores: got NaN, expected numbers; the ranking would be undefined")
    return targets > 0
