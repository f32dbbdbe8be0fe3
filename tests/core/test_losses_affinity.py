"""Likeness of positions: against slow references, by hand, and where nothing can be compared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.losses.affinity import (
    class_likeness,
    cosine_affinity,
    intra_class_variation_loss,
    pairwise_affinity_loss,
)


def maps(channels: int, seed: int) -> Tensor:
    return torch.randn(2, channels, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([[[0, 0, 1, 1], [0, 2, 2, 1], [255, 255, 2, 1]], [[1] * 4, [1] * 4, [1] * 4]])


def test_pair_of_positions_by_hand() -> None:
    """Two positions at right angles on one side, alike on the other: a difference of 1 for two pairs of four."""
    student = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])
    teacher = torch.tensor([[[[3.0, 5.0]]]])
    assert cosine_affinity(student)[0].tolist() == [[1, 0], [0, 1]]
    assert pairwise_affinity_loss(student, teacher, reduction="none").tolist() == [0.5]


def test_affinity_is_the_formula() -> None:
    """A transposed product, or a mean over another number of pairs."""
    student, teacher = maps(3, 0), maps(5, 1)
    expected = []
    for mine, true in zip(student.flatten(2), teacher.flatten(2), strict=True):
        total = torch.zeros((), dtype=torch.float64)
        for i in range(12):
            for j in range(12):
                alike = [F.cosine_similarity(x[:, i], x[:, j], dim=0) for x in (mine, true)]
                total = total + (alike[0] - alike[1]) ** 2
        expected.append(total / 144)
    found = pairwise_affinity_loss(student, teacher, reduction="none")
    torch.testing.assert_close(found, torch.stack(expected))
    torch.testing.assert_close(
        pairwise_affinity_loss(student, teacher, reduction="sum"), torch.stack(expected).sum()
    )


def test_likeness_is_the_formula() -> None:
    """Means over the batch, or over pixels that are no class, would be other prototypes."""
    features = maps(3, 2)
    found = class_likeness(features, LABELS, classes=4)
    for image in range(2):
        for y in range(3):
            for x in range(4):
                label = int(LABELS[image, y, x])
                if label == 255:
                    assert found[image, y, x] == 1
                    continue
                mean = features[image][:, LABELS[image] == label].mean(1)
                expected = F.cosine_similarity(features[image, :, y, x], mean, dim=0)
                torch.testing.assert_close(found[image, y, x], expected)


def test_a_class_of_one_position_is_its_own_mean() -> None:
    """Division by the number of positions of an absent class."""
    labels = torch.zeros(2, 3, 4, dtype=torch.int64)
    labels[:, 0, 0] = 1
    found = class_likeness(maps(3, 3), labels, classes=5)
    torch.testing.assert_close(found[:, 0, 0], torch.ones(2, dtype=torch.float64))
    assert found.isfinite().all()


def test_same_relations_cost_nothing_whatever_the_scale() -> None:
    features = maps(3, 4)
    scaled = torch.cat([2 * features, torch.zeros_like(features)], dim=1)
    assert float(pairwise_affinity_loss(features, scaled, reduction="mean")) < 1e-20
    assert float(intra_class_variation_loss(features, scaled, LABELS, classes=3, reduction="mean")) < 1e-20


def test_nothing_counts() -> None:
    """All pixels ignored: no loss and no gradient, not NaN."""
    student = maps(3, 5).requires_grad_()
    labels = torch.full((2, 3, 4), 255)
    loss = intra_class_variation_loss(student, maps(3, 6), labels, classes=3, reduction="mean")
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("grad", [False, True])
def test_teacher_learns_only_where_asked(grad: bool) -> None:
    student, teacher = maps(3, 7).requires_grad_(), maps(5, 8).requires_grad_()
    loss = pairwise_affinity_loss(student, teacher, reduction="mean", teacher_grad=grad)
    loss = loss + intra_class_variation_loss(
        student, teacher, LABELS, classes=3, reduction="mean", teacher_grad=grad
    )
    loss.backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert (teacher.grad is not None) == grad


def test_low_precision_is_computed_wide() -> None:
    """Cosines in bf16 differ from one by a percent."""
    student, teacher = maps(3, 9).bfloat16(), maps(5, 10).bfloat16()
    found = pairwise_affinity_loss(student, teacher, reduction="mean")
    assert found.dtype == torch.float32
    wide = pairwise_affinity_loss(student.double(), teacher.double(), reduction="mean")
    torch.testing.assert_close(found.double(), wide, rtol=1e-5, atol=1e-7)


def test_a_dead_position_gives_a_finite_gradient() -> None:
    student = maps(3, 11)
    student[:, :, 0, 0] = 0
    student.requires_grad_()
    pairwise_affinity_loss(student, maps(3, 12), reduction="sum").backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_grids_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"student is \(2, 3, 3, 4\).*pool or resize"):
        pairwise_affinity_loss(maps(3, 0), torch.zeros(2, 3, 4, 4), reduction="mean")
    with pytest.raises(ValueError, match="a label for every position"):
        class_likeness(maps(3, 0), LABELS[:, :2], classes=3)
    with pytest.raises(ValueError, match=r"expected \(B, C, h, w\)"):
        cosine_affinity(torch.zeros(2, 3))
