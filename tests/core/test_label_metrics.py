"""Average precision and F1 at the true number of labels, against their definitions in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdzoo.label_metrics import average_precision, f1_at_true_count


def case(ties: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(40, 6, generator=generator)
    targets = (torch.rand(40, 6, generator=generator) < 0.3).float()
    return (scores * 2).round() if ties else scores, targets


def slow_average_precision(scores: list[float], targets: list[float]) -> float:
    """Sum over distinct thresholds of (recall gained) x precision."""
    total, gained, before = sum(targets), 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [y for score, y in zip(scores, targets, strict=True) if score >= threshold]
        gained += (sum(chosen) - before) / total * (sum(chosen) / len(chosen))
        before = sum(chosen)
    return gained


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_against_the_definition(ties: bool) -> None:
    """Would catch ties that are broken by position: a constant score would then look like a ranking."""
    scores, targets = case(ties)
    found = average_precision(scores, targets)
    expected = [
        slow_average_precision(s.tolist(), y.tolist()) for s, y in zip(scores.T, targets.T, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_average_precision_at_the_ends() -> None:
    """Would catch a perfect ranking under 1, a constant one that is not the label's share, or 0 for no item at all."""
    targets = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]])
    found = average_precision(torch.tensor([[4.0, 1, 3], [3, 1, 2], [2, 1, 1], [1, 1, 0]]), targets)
    assert found[:2].tolist() == [1.0, 0.5]
    assert math.isnan(found[2].item())


def slow_f1(scores: Tensor, targets: Tensor) -> tuple[float, float]:
    said = [[False] * scores.shape[1] for _ in scores]
    for n, row in enumerate(scores.tolist()):
        best = sorted(range(len(row)), key=lambda k: -row[k])
        for k in best[: int(targets[n].sum())]:
            said[n][k] = True
    labels = []
    hits = predicted = present = 0
    for c in range(scores.shape[1]):
        pairs = [(said[n][c], bool(targets[n, c])) for n in range(len(scores))]
        tp = sum(a and b for a, b in pairs)
        p, y = sum(a for a, _ in pairs), sum(b for _, b in pairs)
        hits, predicted, present = hits + tp, predicted + p, present + y
        if y:
            labels.append(2 * tp / (p + y))
    return 2 * hits / (predicted + present), sum(labels) / len(labels)


def test_f1_against_loops() -> None:
    """Would catch a fixed threshold, another count than the item's own, or items without or with all labels."""
    scores, targets = case()
    targets[0], targets[1], targets[:, 3] = 0, 1, 0
    targets[1, 3] = 0
    micro, macro = f1_at_true_count(scores, targets)
    assert (micro.item(), macro.item()) == pytest.approx(slow_f1(scores, targets))
    perfect = f1_at_true_count(targets - 0.001 * scores, targets)
    assert [value.item() for value in perfect] == [1.0, 1.0]


def test_refusals() -> None:
    """Would catch NaN that sorts somewhere, and scores of other labels."""
    scores, targets = case()
    for metric in (average_precision, f1_at_true_count):
        with pytest.raises(ValueError, match="shapes"):
            metric(scores, targets[:, :2])
        with pytest.raises(ValueError, match="NaN"):
            metric(scores.masked_fill(scores > 1, torch.nan), targets)
