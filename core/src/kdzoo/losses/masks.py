"""Which items count, and what a total is divided by.

Legend: (...) = the item axes, e.g. (B,), (B, T) or (B, H, W); a mask has exactly the item axes, True =
counts.

Losses return one value per item. `reduce` turns these into a total or a mean. A training term should take the
total (`reduction="sum"`) and let the loop divide by the count of the whole optimizer step and of all ranks: a
mean per micro-batch weighs a token more the fewer valid tokens its micro-batch holds.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["none", "sum", "mean"]


def valid_labels(labels: Tensor, *, ignore_index: int) -> Tensor:
    """Where a label is real: ``labels != ignore_index``, bool, the labels' shape.

    Example:
        >>> valid_labels(torch.tensor([3, -100, 0]), ignore_index=-100).tolist()
        [True, False, True]
    """
    return labels != ignore_index


def length_mask(lengths: Tensor, *, size: int) -> Tensor:
    """Where a sequence padded on the right to `size` is real: (B,) lengths -> (B, size) bool.

    Raises:
        ValueError: a length is negative or over `size`; its tokens would be counted that are not there.

    Example:
        >>> length_mask(torch.tensor([2, 0]), size=3).tolist()
        [[True, True, False], [False, False, False]]
    """
    if lengths.dim() != 1:
        raise ValueError(f"lengths: got shape {tuple(lengths.shape)}, expected (B,)")
    if lengths.numel() and (int(lengths.min()) < 0 or int(lengths.max()) > size):
        raise ValueError(
            f"lengths: got values from {int(lengths.min())} to {int(lengths.max())}, expected 0 to {size} "
            "(size); the mask would count tokens that are not there"
        )
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def check_mask(mask: Tensor | None, items: torch.Size | tuple[int, ...]) -> None:
    """Refuse a mask that is not bool or has not exactly the item axes (broadcasting would miscount)."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(
            f"mask: got dtype {mask.dtype}, expected torch.bool (True = counts); "
            "numbers would be taken as an index"
        )
    if tuple(mask.shape) != tuple(items):
        raise ValueError(
            f"mask: got shape {tuple(mask.shape)}, expected the item axes {tuple(items)}; "
            "broadcasting it would divide by a wrong count"
        )


def blank(logits: Tensor, mask: Tensor | None, axis: int) -> Tensor:
    """`logits` with the items that do not count set to 0 along the class axis.

    Masking the loss alone is not enough: the backward pass multiplies a zero gradient with whatever stands in
    the padding, and 0 * NaN is NaN.
    """
    return logits if mask is None else logits.masked_fill(~mask.unsqueeze(axis), 0.0)


def check_reduction(reduction: str) -> None:
    """Refuse an unknown reduction before anything expensive runs."""
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(
            f"reduction: got {reduction!r}, expected 'none', 'sum' or 'mean'; "
            "'mean' is per item (per row), never per class"
        )


def reduce(values: Tensor, *, reduction: Reduction, mask: Tensor | None = None) -> Tensor:
    """Per-item values as they are, their total, or their mean over the items that count.

    Args:
        values: one value per item, any shape.
        reduction: "none" (masked items become 0), "sum", or "mean" = sum / number of items that count.
        mask: bool, the shape of `values`; None counts everything.

    Raises:
        ValueError: unknown reduction, wrong mask shape, or a mean over no item at all.

    Example:
        >>> mask = torch.tensor([True, True, False])
        >>> reduce(torch.tensor([1.0, 3.0, 9.0]), reduction="mean", mask=mask).item()
        2.0
    """
    check_reduction(reduction)
    check_mask(mask, values.shape)
    if mask is not None:
        values = values.masked_fill(~mask, 0.0)
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    count = values.numel() if mask is None else int(mask.sum())  # a device sync, paid only by a masked mean
    if count == 0:
        raise ValueError(
            f"reduction='mean': got no item that counts (shape {tuple(values.shape)}), expected at least "
            "one; the mean would be 0/0 = NaN. Take reduction='sum' and divide by the count of the whole "
            "optimizer step"
        )
    return values.sum() / count
