"""Triples and their loss against plain loops written from the definitions, and at their edges."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdzoo.losses.contrastive import (
    Triples,
    all_triples,
    distance_weighted_triples,
    distance_weights,
    semi_hard_triples,
    triplet_loss,
)

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])


def batch(n: int, size: int, seed: int) -> Tensor:
    rows = torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=1)


def as_lists(triples: Triples) -> list[tuple[int, int, int]]:
    return list(zip(*(index.tolist() for index in triples), strict=True))


def slow_triples(labels: list[int]) -> list[tuple[int, int, int]]:
    return [
        (a, p, n)
        for a, p, n in product(range(len(labels)), repeat=3)
        if a != p and labels[a] == labels[p] and labels[a] != labels[n]
    ]


def slow_pairs(labels: list[int]) -> list[tuple[int, int]]:
    different = len(set(labels)) > 1
    n = range(len(labels))
    return [(a, p) for a in n for p in n if a != p and labels[a] == labels[p] and different]


def test_all_triples() -> None:
    """Catches a sample that is its own positive, a missing or double triple, another order."""
    assert as_lists(all_triples(LABELS)) == slow_triples(LABELS.tolist())


def test_loss_by_hand() -> None:
    """Catches squared distances, a margin of the wrong sign, a mean over the triples with loss only."""
    line = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
    triples = Triples(torch.tensor([0, 1, 0]), torch.tensor([1, 0, 1]), torch.tensor([2, 2, 3]))
    assert triplet_loss(line, triples, margin=1.0, reduction="none").tolist() == [0.5, 1.5, 0.0]
    assert triplet_loss(line, triples, margin=1.0, reduction="sum").item() == 2.0
    assert triplet_loss(line, triples, margin=1.0, reduction="mean").item() == pytest.approx(2.0 / 3)


def test_loss_in_plain_loops() -> None:
    """Catches a mix-up of positives and negatives."""
    rows = batch(7, 4, 1)
    values = rows.tolist()
    expected = [
        max(0.0, math.dist(values[a], values[p]) - math.dist(values[a], values[n]) + 0.2)
        for a, p, n in slow_triples(LABELS.tolist())
    ]
    loss = triplet_loss(rows, all_triples(LABELS), margin=0.2, reduction="none")
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


def test_loss_gradient() -> None:
    """Catches a distance table whose rows and columns do not both carry gradient."""
    rows = batch(7, 4, 2).requires_grad_()
    triples = all_triples(LABELS)
    assert torch.autograd.gradcheck(lambda e: triplet_loss(e, triples, margin=0.3, reduction="none"), (rows,))


def test_loss_of_equal_rows() -> None:
    """Catches NaN gradients of a root at 0: a collapsed student loses exactly the margin."""
    rows = torch.ones(7, 4, requires_grad=True)
    loss = triplet_loss(rows, all_triples(LABELS), margin=0.2, reduction="mean")
    loss.backward()
    assert loss.item() == pytest.approx(0.2)
    assert rows.grad is not None
    assert torch.equal(rows.grad, torch.zeros_like(rows))


def test_loss_shows_nan() -> None:
    """Catches a clamp that turns NaN into 0."""
    rows = batch(7, 4, 3)
    rows[0, 0] = torch.nan
    assert triplet_loss(rows, all_triples(LABELS), margin=0.2, reduction="mean").isnan()


def test_loss_in_bfloat16() -> None:
    """Catches distances computed with 3 digits: the loss must be that of the same numbers in float32."""
    rows = batch(7, 4, 4).to(torch.bfloat16)
    loss = triplet_loss(rows, all_triples(LABELS), margin=0.2, reduction="none")
    assert loss.dtype == torch.float32
    expected = triplet_loss(rows.float(), all_triples(LABELS), margin=0.2, reduction="none")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("labels", [[5], [5, 5, 5], [1, 2, 3], [5, 5]])
def test_batches_without_triples(labels: list[int]) -> None:
    """Catches a crash, or an invented negative, where a batch has one class only or no two samples of one."""
    rows = batch(len(labels), 3, 5).requires_grad_()
    classes = torch.tensor(labels)
    draws = torch.Generator().manual_seed(0)
    for triples in (
        all_triples(classes),
        semi_hard_triples(rows, classes),
        distance_weighted_triples(rows, classes, generator=draws),
    ):
        assert [index.shape for index in triples] == [(0,)] * 3
        assert [index.dtype for index in triples] == [torch.int64] * 3
        total = triplet_loss(rows, triples, margin=0.2, reduction="sum")
        (grad,) = torch.autograd.grad(total, rows)
        assert total.item() == 0.0
        assert torch.equal(grad, torch.zeros_like(grad))
        with pytest.raises(ValueError, match="no item"):
            triplet_loss(rows, triples, margin=0.2, reduction="mean")


def test_semi_hard_in_plain_loops() -> None:
    """Catches the nearest instead of the nearest that is farther, and a wrong fallback."""
    fallbacks = 0
    for seed in range(20):
        rows = batch(7, 3, seed)
        values, labels = rows.tolist(), LABELS.tolist()
        expected = []
        for a, p in slow_pairs(labels):
            negatives = [n for n in range(7) if labels[n] != labels[a]]
            distance = {n: math.dist(values[a], values[n]) for n in negatives}
            farther = [n for n in negatives if distance[n] > math.dist(values[a], values[p])]
            fallbacks += not farther
            chosen = (
                min(farther, key=lambda n: distance[n])
                if farther
                else max(negatives, key=lambda n: distance[n])
            )
            expected.append((a, p, chosen))
        assert as_lists(semi_hard_triples(rows, LABELS)) == expected
    assert fallbacks > 0  # else the second branch was not tried


@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_distance_weights_in_plain_loops(size: int) -> None:
    """Catches a wrong density, a cutoff on the wrong side, weights on positives."""
    rows = batch(7, size, 6)
    rows[3] = -rows[0]  # opposite: beyond the cutoff
    rows[4] = F.normalize(rows[0] + 0.05 * rows[1], dim=0)  # nearer than 0.5
    weights = distance_weights(5.0 * rows, LABELS)
    values, labels = rows.tolist(), LABELS.tolist()
    for a in range(7):
        raw = []
        for n in range(7):
            d = max(math.dist(values[a], values[n]), 0.5)
            allowed = labels[n] != labels[a] and d < 1.4
            density = d ** (size - 2) * (1 - d * d / 4) ** ((size - 3) / 2) if allowed else 1.0
            raw.append(1 / density if allowed else 0.0)
        if sum(raw) == 0:
            raw = [float(labels[n] != labels[a]) for n in range(7)]
        expected = torch.tensor([x / sum(raw) for x in raw], dtype=torch.float64)
        torch.testing.assert_close(weights[a], expected)


def test_distance_weights_do_not_underflow() -> None:
    """Catches weights relative to the nearest positive: in 512 dimensions all would become 0, hence even."""
    far = torch.zeros(4, 512)
    far[0, 0] = far[1, 0] = 1.0  # anchor and a positive at distance 0
    for row, d in ((2, 1.2), (3, 1.35)):
        cosine = 1 - d * d / 2
        far[row, 0], far[row, row] = cosine, math.sqrt(1 - cosine * cosine)
    weights = distance_weights(far, torch.tensor([0, 0, 1, 2]))
    q = [d**510 * (1 - d * d / 4) ** 254.5 for d in (1.2, 1.35)]
    assert weights[0, 2].item() == pytest.approx(q[1] / (q[0] + q[1]), rel=1e-3)


def test_distance_weights_of_opposite_points() -> None:
    """Catches log 0 of opposite points: where they are admitted they weigh much, not NaN."""
    rows = torch.tensor([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    weights = distance_weights(rows, torch.tensor([0, 1, 2]), nonzero_loss_cutoff=3.0)
    assert weights[0].tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-3)


def test_distance_weighted_draws_follow_the_weights() -> None:
    """Catches draws from another row, or with other frequencies than the weights."""
    # 60 equal anchors of class 0: 3540 pairs that all draw with the same weights, in one call.
    rows = torch.cat([batch(1, 4, 7).expand(60, 4), batch(8, 4, 8)])
    labels = torch.cat([torch.zeros(60, dtype=torch.long), torch.arange(1, 9)])
    weights = distance_weights(rows, labels)[0]
    assert weights.unique().numel() > 3  # else even draws would do as well
    anchor, positive, negative = distance_weighted_triples(
        rows, labels, generator=torch.Generator().manual_seed(1)
    )
    assert list(zip(anchor.tolist(), positive.tolist(), strict=True)) == slow_pairs(labels.tolist())
    frequencies = negative.bincount(minlength=68) / len(negative)
    # Five standard deviations of the frequency of each.
    spread = (weights * (1 - weights) / len(negative)).sqrt()
    assert ((frequencies - weights).abs() <= 5 * spread + 1e-12).all()


def test_draws_come_from_the_generator_alone() -> None:
    """Catches a draw from the global state: it would move every later random number of a run."""
    rows = batch(7, 4, 8)
    state = torch.get_rng_state()
    first = distance_weighted_triples(rows, LABELS, generator=torch.Generator().manual_seed(3))
    again = distance_weighted_triples(rows, LABELS, generator=torch.Generator().manual_seed(3))
    assert as_lists(first) == as_lists(again)
    others = {
        tuple(as_lists(distance_weighted_triples(rows, LABELS, generator=torch.Generator().manual_seed(s))))
        for s in range(10)
    }
    assert len(others) > 1
    assert torch.equal(state, torch.get_rng_state())


def test_choosing_carries_no_gradient() -> None:
    """Catches a sampler that keeps the graph of the embeddings alive."""
    rows = batch(7, 4, 9).requires_grad_()
    assert not distance_weights(rows, LABELS).requires_grad


def test_wrong_arguments_are_refused() -> None:
    """Catches labels of another batch, one-hot labels, NaN, and settings that make every negative alike."""
    rows = batch(7, 4, 10)
    broken = rows.clone()
    broken[0, 0] = torch.nan
    draws = torch.Generator()
    with pytest.raises(TypeError, match=r"labels: got dtype torch\.float32"):
        all_triples(LABELS.float())
    with pytest.raises(ValueError, match=r"labels: got shape \(7, 4\)"):
        all_triples(F.one_hot(LABELS))
    with pytest.raises(ValueError, match="got 7 for 6 embeddings"):
        semi_hard_triples(rows[:6], LABELS)
    with pytest.raises(ValueError, match="NaN or infinite"):
        semi_hard_triples(broken, LABELS)
    with pytest.raises(ValueError, match="NaN or infinite"):
        distance_weighted_triples(broken, LABELS, generator=draws)
    with pytest.raises(ValueError, match="got D = 1"):
        distance_weights(rows[:, :1], LABELS)
    with pytest.raises(ValueError, match=r"got 2\.5, 1\.4"):
        distance_weights(rows, LABELS, cutoff=2.5)
    with pytest.raises(ValueError, match=r"margin: got -0\.1"):
        triplet_loss(rows, all_triples(LABELS), margin=-0.1, reduction="sum")
    with pytest.raises(ValueError, match="they belong to another batch"):
        triplet_loss(rows[:5], all_triples(LABELS), margin=0.1, reduction="sum")
    with pytest.raises(ValueError, match="got 'avg'"):
        triplet_loss(rows, all_triples(LABELS), margin=0.1, reduction="avg")  # type: ignore[arg-type]
