"""Metrics: against plain loops and hand-sized numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdzoo.metrics import (
    accuracy,
    agreement,
    expected_calibration_error,
    negative_log_likelihood,
    predictive_kl,
    recall_at_k,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def labels_for(logits: Tensor, seed: int = 1) -> Tensor:
    return torch.randint(0, logits.shape[1], logits.shape[:1], generator=torch.Generator().manual_seed(seed))


def test_accuracy_and_agreement() -> None:
    """Percent for a fraction, a wrong class axis, or NaN logits counted as a hit of the class argmax returns."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 2.0], [math.nan, 0.0, 0.0]])
    labels = torch.tensor([0, 2, 2, 0])
    assert accuracy(logits, labels, axis=1, reduction="none").tolist() == [1.0, 0.0, 1.0, 0.0]
    assert accuracy(logits, labels, axis=1, reduction="mean").item() == 0.5
    assert accuracy(logits.T, labels, axis=0, reduction="sum").item() == 2.0
    mask = torch.tensor([True, True, False, False])
    assert accuracy(logits, labels, axis=1, reduction="mean", mask=mask).item() == 0.5
    assert agreement(logits, logits * 5, axis=1, reduction="none").tolist() == [1.0, 1.0, 1.0, 0.0]
    assert agreement(logits, -logits, axis=-1, reduction="mean").item() == 0.0


def test_nll_and_kl() -> None:
    """Another logarithm, another direction, or the training temperature in an evaluation."""
    student, teacher = draw(5, 4), draw(5, 4, seed=2)
    labels = labels_for(student)
    want_nll, want_kl = [], []
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        q = [math.exp(x) / sum(map(math.exp, s)) for x in s]
        p = [math.exp(x) / sum(map(math.exp, t)) for x in t]
        want_nll.append(-math.log(q[y]))
        want_kl.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    assert negative_log_likelihood(student, labels, axis=1, reduction="none").tolist() == pytest.approx(
        want_nll
    )
    assert predictive_kl(student, teacher, axis=1, reduction="none").tolist() == pytest.approx(want_kl)
    labels[2] = -1
    got = negative_log_likelihood(student, labels, axis=1, reduction="none", mask=labels >= 0)
    assert got[2].item() == 0.0


def test_calibration_agrees_with_loops() -> None:
    """Items in the wrong bin, squared gaps, or gaps not weighted by the bin's share."""
    logits = draw(200, 3)
    labels = labels_for(logits)
    for bins in (1, 10, 15):
        members: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
        for row, y in zip(logits.tolist(), labels.tolist(), strict=True):
            p = [math.exp(x) / sum(map(math.exp, row)) for x in row]
            b = next(i for i in range(bins) if i / bins < max(p) <= (i + 1) / bins)
            members[b].append((max(p), float(p.index(max(p)) == y)))
        want = sum(
            abs(sum(hit for _, hit in bin_) / len(bin_) - sum(c for c, _ in bin_) / len(bin_))
            * len(bin_)
            / 200
            for bin_ in members
            if bin_
        )
        got = expected_calibration_error(logits, labels, axis=1, bins=bins)
        assert got.item() == pytest.approx(want, rel=1e-9)


def test_calibration_edges() -> None:
    """An edge put into the bin above, 1 beyond the last bin; a masked item counted; NaN turned into a fine value."""
    edge = torch.tensor([[0.0, 0.0], [50.0, 0.0]])  # 0.5 belongs to (0, 0.5]: gaps +0.5 and -1 do not cancel
    assert expected_calibration_error(edge, torch.tensor([0, 1]), axis=1, bins=2).item() == pytest.approx(
        0.75
    )
    sure = torch.tensor([[50.0, 0.0], [50.0, 0.0]])
    assert expected_calibration_error(sure, torch.tensor([0, 0]), axis=1, bins=15).item() < 1e-12
    assert expected_calibration_error(sure, torch.tensor([0, 1]), axis=1, bins=15).item() == pytest.approx(
        0.5
    )
    mask = torch.tensor([True, False])
    assert expected_calibration_error(sure, torch.tensor([0, 1]), axis=1, bins=15, mask=mask).item() < 1e-12
    nan = torch.tensor([[math.nan, 0.0], [50.0, 0.0]])
    assert math.isnan(expected_calibration_error(nan, torch.tensor([0, 0]), axis=1, bins=15).item())
    with pytest.raises(ValueError, match="bins: got 0"):
        expected_calibration_error(sure, torch.tensor([0, 0]), axis=1, bins=0)
    with pytest.raises(ValueError, match="no item that counts"):
        expected_calibration_error(
            sure, torch.tensor([0, 0]), axis=1, bins=5, mask=torch.zeros(2, dtype=torch.bool)
        )


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_recall_agrees_with_loops(chunk: int) -> None:
    """A sample found as its own neighbor, more so in later chunks; cosine for Euclidean; k off by one."""
    points = draw(40, 3)
    labels = torch.randint(0, 6, (40,), generator=torch.Generator().manual_seed(3))
    ks = [4, 1, 2]
    rows, names = points.tolist(), labels.tolist()
    want: list[list[float]] = [[] for _ in ks]
    for i, a in enumerate(rows):
        order = sorted((j for j in range(40) if j != i), key=lambda j: math.dist(a, rows[j]))
        for place, k in enumerate(ks):
            want[place].append(float(any(names[j] == names[i] for j in order[:k])))
    assert recall_at_k(points, labels, ks=ks, reduction="none", chunk=chunk).tolist() == want
    means = recall_at_k(points, labels, ks=ks, reduction="mean", chunk=chunk).tolist()
    assert means == pytest.approx([sum(x) / 40 for x in want])


def test_recall_sees_small_differences_far_from_the_origin() -> None:
    """Distances from |a|^2 - 2ab + |b|^2 that drown in a common offset."""
    points = torch.tensor([[0.0], [1.0], [2.1], [3.0]]) * 1e-3 + 1000.0
    labels = torch.tensor([0, 0, 1, 1])
    assert recall_at_k(points, labels, ks=[1], reduction="none").tolist() == [[1.0, 1.0, 1.0, 1.0]]


def test_recall_refuses_what_has_no_answer() -> None:
    """k = N returns the query itself; NaN embeddings give an arbitrary order; a lonely label is just a miss."""
    points, labels = draw(4, 2), torch.tensor([0, 0, 0, 1])
    assert recall_at_k(points, labels, ks=[3], reduction="none").tolist() == [[1.0, 1.0, 1.0, 0.0]]
    for ks in ([4], [0], []):
        with pytest.raises(ValueError, match="ks: got"):
            recall_at_k(points, labels, ks=ks, reduction="mean")
    with pytest.raises(ValueError, match="got NaN or inf"):
        recall_at_k(points / 0, labels, ks=[1], reduction="mean")
    with pytest.raises(ValueError, match="got shapes"):
        recall_at_k(points, labels[:3], ks=[1], reduction="mean")


def test_bad_labels_are_named() -> None:
    """Labels (B, 1) broadcast against predictions (B,): B x B comparisons and a wrong accuracy."""
    logits = draw(4, 3)
    with pytest.raises(ValueError, match=r"labels: got shape \(4, 1\), expected the item axes \(4,\)"):
        accuracy(logits, torch.zeros(4, 1, dtype=torch.long), axis=1, reduction="mean")
    with pytest.raises(TypeError, match=r"labels: got dtype torch\.float64"):
        negative_log_likelihood(logits, logits[:, 0], axis=1, reduction="mean")
    with pytest.raises(ValueError, match="equal shapes"):
        agreement(logits, logits[:1], axis=1, reduction="mean")


def test_metrics_leave_no_graph() -> None:
    """Evaluation that keeps a training graph alive."""
    logits = draw(4, 3).requires_grad_()
    labels = labels_for(logits)
    assert not negative_log_likelihood(logits, labels, axis=1, reduction="mean").requires_grad
    assert not predictive_kl(logits, logits, axis=1, reduction="mean").requires_grad
