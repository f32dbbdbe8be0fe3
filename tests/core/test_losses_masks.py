"""Masks and reductions: what counts, and what a total is divided by."""

from __future__ import annotations

import math

import pytest
import torch

from kdzoo.losses.masks import length_mask, reduce, valid_labels


def test_valid_labels() -> None:
    """-100 and -1 confused: only the named value is ignored."""
    assert valid_labels(torch.tensor([[0, -1], [-100, 7]]), ignore_index=-100).tolist() == [
        [True, True],
        [False, True],
    ]


def test_length_mask() -> None:
    """Off by one at the end of a sequence."""
    mask = length_mask(torch.tensor([0, 2, 3]), size=3)
    assert mask.tolist() == [[False] * 3, [True, True, False], [True] * 3]
    assert length_mask(torch.tensor([], dtype=torch.long), size=3).shape == (0, 3)
    for lengths in ([4], [-1]):
        with pytest.raises(ValueError, match="expected 0 to 3"):
            length_mask(torch.tensor(lengths), size=3)
    with pytest.raises(ValueError, match=r"expected \(B,\)"):
        length_mask(torch.tensor(2), size=3)


def test_reductions() -> None:
    """A mean over all items instead of those that count; a masked NaN that survives."""
    values = torch.tensor([[1.0, math.nan], [3.0, 5.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    assert reduce(values, reduction="none", mask=mask).tolist() == [[1.0, 0.0], [3.0, 5.0]]
    assert reduce(values, reduction="sum", mask=mask).item() == 9.0
    mean = reduce(values, reduction="mean", mask=mask)
    assert mean.item() == 3.0
    mean.backward()
    assert values.grad.tolist() == [[pytest.approx(1 / 3), 0.0], [pytest.approx(1 / 3), pytest.approx(1 / 3)]]


def test_padding_does_not_change_a_mean() -> None:
    """A mean that depends on how far a batch was padded."""
    short = torch.tensor([[1.0, 2.0], [4.0, 0.0]])
    long = torch.nn.functional.pad(short, (0, 3), value=99.0)
    lengths = torch.tensor([2, 1])
    means = [reduce(x, reduction="mean", mask=length_mask(lengths, size=x.shape[1])) for x in (short, long)]
    assert means[0].item() == means[1].item() == pytest.approx(7 / 3)


def test_nothing_to_average() -> None:
    """0/0 = NaN in the middle of a training run; a sum of nothing is 0 with a gradient."""
    values = torch.ones(2, requires_grad=True)
    nothing = torch.zeros(2, dtype=torch.bool)
    with pytest.raises(ValueError, match="no item that counts"):
        reduce(values, reduction="mean", mask=nothing)
    with pytest.raises(ValueError, match="no item that counts"):
        reduce(values[:0], reduction="mean")
    total = reduce(values, reduction="sum", mask=nothing)
    total.backward()
    assert total.item() == 0.0
    assert values.grad.tolist() == [0.0, 0.0]


def test_bad_arguments_are_named() -> None:
    """A mask that broadcasts, or 0/1 numbers used as an index."""
    with pytest.raises(ValueError, match="reduction: got 'avg'"):
        reduce(torch.ones(2), reduction="avg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mask: got shape \(2, 1\)"):
        reduce(torch.ones(2, 2), reduction="sum", mask=torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"mask: got dtype torch.int64"):
        reduce(torch.ones(2), reduction="sum", mask=torch.ones(2, dtype=torch.long))
