"""Bins of confidence: what a reliability diagram is made of."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdzoo.method import EVALUATE, FIT
from kdzoo.metrics import calibration_bins, expected_calibration_error
from kdzoo.reliability import BINS, reliability
from kdzoo.runs import Predicted


def run(predicted: dict[Any, Any], call: str = EVALUATE, ships: tuple[str, ...] = ("student",)) -> Any:
    return SimpleNamespace(
        ships=ships, predicted=predicted, spec=SimpleNamespace(stage=SimpleNamespace(call=call))
    )


def said(logits: torch.Tensor | None, labels: Any) -> Predicted:
    return Predicted(logits, None, labels, [])


def test_bins_agree_with_loops() -> None:
    """Would catch an item in the bin beside its own, or a hit counted for another."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 3, generator=generator) * 2
    labels = torch.randint(0, 3, (200,), generator=generator)
    found = calibration_bins(logits, labels, axis=1, bins=7)
    count, hits, sure = [0] * 7, [0] * 7, [0.0] * 7
    for row, label in zip(logits.softmax(1).tolist(), labels.tolist(), strict=True):
        at = min(6, max(0, math.ceil(max(row) * 7) - 1))
        count[at] += 1
        hits[at] += row.index(max(row)) == label
        sure[at] += max(row)
    assert found.items.tolist() == count
    assert found.hits.tolist() == hits
    assert found.confidence.tolist() == pytest.approx(sure)


def test_bins_give_the_calibration_error() -> None:
    """Would catch a diagram whose gaps are not those that the number beside it sums."""
    generator = torch.Generator().manual_seed(1)
    logits, labels = (
        torch.randn(100, 4, generator=generator),
        torch.randint(0, 4, (100,), generator=generator),
    )
    bins = calibration_bins(logits, labels, axis=1, bins=15)
    error = float((bins.hits - bins.confidence).abs().sum() / 100)
    assert error == pytest.approx(float(expected_calibration_error(logits, labels, axis=1, bins=15)))


def test_refusals() -> None:
    """Would catch a NaN that ends up in the first bin."""
    logits = torch.tensor([[math.nan, 0.0]])
    with pytest.raises(ValueError, match="NaN"):
        calibration_bins(logits, torch.tensor([0]), axis=1, bins=3)
    with pytest.raises(ValueError, match="bins"):
        calibration_bins(torch.zeros(1, 2), torch.tensor([0]), axis=1, bins=0)


def test_what_an_evaluation_keeps() -> None:
    """Would catch bins of the validation split, of a teacher that is only compared with, or means over empty bins."""
    logits = torch.tensor([[0.2, 0.8], [0.2, 0.8], [0.95, 0.05]]).log()
    labels = torch.tensor([1, 0, 0])
    predicted = {
        ("student", "val", "image"): said(torch.zeros(1, 2), torch.tensor([0])),
        ("teacher", "test", "image"): said(torch.zeros(1, 2), torch.tensor([0])),
        ("student", "test", "image"): said(logits, labels),
    }
    found = reliability(run(predicted))
    assert list(found) == ["student"]
    bins = found["student"]
    assert len(bins["count"]) == BINS
    assert [n for n in bins["count"] if n] == [2, 1]
    assert [a for a in bins["accuracy"] if a is not None] == [0.5, 1.0]
    assert [c for c in bins["confidence"] if c is not None] == pytest.approx([0.8, 0.95])
    assert reliability(run(predicted, FIT)) == {}


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (None, torch.tensor([0])),
        (torch.zeros(1, 2, 4), torch.tensor([0])),
        (torch.zeros(1, 2), ["a word"]),
        (torch.zeros(1, 2), torch.tensor([[1, 0]])),
        (torch.zeros(1, 2), torch.tensor([0.5])),
        (torch.full((1, 2), math.nan), torch.tensor([0])),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)),
    ],
)
def test_what_has_no_bins(logits: torch.Tensor | None, labels: Any) -> None:
    """Would catch an evaluation that fails because its task has no classes."""
    assert reliability(run({("student", "test", "image"): said(logits, labels)})) == {}
