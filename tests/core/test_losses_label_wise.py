"""Losses on label-wise embeddings against plain loops over labels, items and pairs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdzoo.losses.label_wise import class_wise_distance, instance_wise_distance, structure_gap
from kdzoo.losses.relations import rkd_distance

N, C, DS, DT = 7, 6, 4, 9
LOSSES = pytest.mark.parametrize("loss", [class_wise_distance, instance_wise_distance])


def made(seed: int, width: int) -> Tensor:
    return torch.randn(N, C, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def targets() -> Tensor:
    """Labels of 0, 1, 2, 3, ... items; an item without labels and one with all."""
    found = torch.zeros(N, C)
    for label, count in enumerate((0, 1, 2, 3, 4, 5)):
        found[1 : 1 + count, label] = 1
    found[6] = 1
    return found


def slow_relative(rows: list[list[float]]) -> list[list[float]]:
    """Distances over their mean, from the definition."""
    distances = [
        [math.sqrt(max(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)), 1e-12)) for b in rows]
        for a in rows
    ]
    for k in range(len(rows)):
        distances[k][k] = 0.0
    positive = [d for line in distances for d in line if d > 0]
    mean = sum(positive) / len(positive)
    return [[d / mean for d in line] for line in distances]


def slow_group(student: list[list[float]], teacher: list[list[float]]) -> float:
    """1/n sum of SmoothL1 over the full matrix."""
    if len(student) < 2:
        return 0.0
    total = 0.0
    for a, b in zip(slow_relative(student), slow_relative(teacher), strict=True):
        for x, y in zip(a, b, strict=True):
            gap = abs(x - y)
            total += gap * gap / 2 if gap < 1 else gap - 0.5
    return total / len(student)


def slow(student: Tensor, teacher: Tensor, targets: Tensor) -> list[float]:
    """Group by group: the first axis names the group."""
    values = []
    for s, t, y in zip(student, teacher, targets, strict=True):
        members = [k for k in range(len(y)) if y[k] > 0]
        values.append(slow_group([s[k].tolist() for k in members], [t[k].tolist() for k in members]))
    return values


def test_against_loops(targets: Tensor) -> None:
    """Would catch padding that is counted, a mean over the batch instead of the group, or swapped axes."""
    student, teacher = made(0, DS), made(1, DT)
    by_label = class_wise_distance(student, teacher, targets, reduction="none")
    assert by_label.tolist() == pytest.approx(
        slow(student.transpose(0, 1), teacher.transpose(0, 1), targets.T), abs=1e-12
    )
    by_item = instance_wise_distance(student, teacher, targets, reduction="none")
    assert by_item.tolist() == pytest.approx(slow(student, teacher, targets), abs=1e-12)
    assert (by_label > 0).tolist() == [False, False, True, True, True, True]
    assert not torch.equal(by_label.sum(), by_item.sum())


def test_one_group_is_the_distance_loss_of_rkd() -> None:
    """Would catch another normaliser than RKD's: with one label that all items have, both are the same number."""
    student, teacher = made(0, DS)[:, :1], made(1, DT)[:, :1]
    found = class_wise_distance(student, teacher, torch.ones(N, 1), reduction="sum")
    torch.testing.assert_close(found, rkd_distance(student[:, 0], teacher[:, 0], reduction="sum"))


@LOSSES
def test_gradients(loss, targets: Tensor) -> None:
    """Would catch a wrong derivative through the group's mean, or a vector outside every group that is moved."""
    student = made(0, DS).requires_grad_()
    teacher = made(1, DT).requires_grad_()
    loss(student, teacher, targets, reduction="sum").backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert not student.grad[targets == 0].any()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, targets, reduction="none"), student)
    loss(student, teacher, targets, reduction="sum", teacher_grad=True).backward()
    assert teacher.grad is not None


@LOSSES
def test_zero_up_to_scale_rotation_and_shift(loss, targets: Tensor) -> None:
    """Would catch raw vectors that are compared: teacher and student have other queries and other axes."""
    teacher = made(1, DT)
    turn = torch.linalg.qr(
        torch.randn(DT, DT, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    ).Q
    student = 7 * teacher @ turn + 3
    assert loss(student, teacher, targets, reduction="sum").item() < 1e-12


@LOSSES
def test_no_group_is_zero_with_a_gradient(loss) -> None:
    """Would catch a crash, or a loss without a graph, in a batch where nothing can be compared."""
    student = made(0, DS).requires_grad_()
    few = torch.zeros(N, C)
    few[:2, :2] = 1
    for targets in (few, torch.zeros(N, C)):
        loss(student, made(1, DT), targets, reduction="sum").backward()
        assert student.grad is not None
        assert not student.grad.any()


@LOSSES
def test_equal_embeddings_have_a_finite_gradient(loss, targets: Tensor) -> None:
    """Would catch the infinite derivative of the root at 0: all queries may give one vector at the start."""
    student = torch.ones(N, C, DS, requires_grad=True)
    value = loss(student, made(1, DT), targets, reduction="sum")
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@LOSSES
def test_half_precision(loss, targets: Tensor) -> None:
    """Would catch distances in bfloat16: near neighbours would coincide."""
    student, teacher = made(0, DS).bfloat16(), made(1, DT).bfloat16()
    found = loss(student, teacher, targets, reduction="sum")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(student.float(), teacher.float(), targets, reduction="sum"))


@LOSSES
def test_order_of_items_and_labels_does_not_matter(loss, targets: Tensor) -> None:
    """Would catch members that are mixed up when rows are packed."""
    rows, columns = torch.randperm(N), torch.randperm(C)
    student, teacher = made(0, DS), made(1, DT)
    plain = loss(student, teacher, targets, reduction="sum")
    moved = loss(
        student[rows][:, columns], teacher[rows][:, columns], targets[rows][:, columns], reduction="sum"
    )
    torch.testing.assert_close(plain, moved)


@LOSSES
def test_refusals(loss, targets: Tensor) -> None:
    """Would catch shared queries, whose embeddings belong to no single label, and a batch of other items."""
    with pytest.raises(ValueError, match="one query a label"):
        loss(made(0, DS)[:, :4], made(1, DT), targets, reduction="sum")
    with pytest.raises(ValueError, match="teacher_embeddings"):
        loss(made(0, DS), made(1, DT)[:3], targets, reduction="sum")
    with pytest.raises(TypeError, match="floating point"):
        loss(made(0, DS).long(), made(1, DT), targets, reduction="sum")
    with pytest.raises(ValueError, match="reduction"):
        loss(made(0, DS), made(1, DT), targets, reduction="batchmean")


def test_structure_gap_by_hand_and_by_loops(targets: Tensor) -> None:
    """Would catch a diagonal that is averaged in: it would make small groups look better than large ones."""
    line = torch.tensor([[[0.0], [1.0], [3.0]]])
    # distances 1, 2, 3 with mean 2 against 2, 1, 3: gaps 1/2, 1/2, 0
    assert structure_gap(line, line.flip(1), torch.ones(1, 3)).tolist() == pytest.approx([1 / 3])
    student, teacher = made(0, DS), made(1, DT)
    expected = []
    for s, t, y in zip(student, teacher, targets, strict=True):
        members = [k for k in range(C) if y[k] > 0]
        if len(members) < 3:
            continue
        a, b = (slow_relative([side[k].tolist() for k in members]) for side in (s, t))
        gaps = [abs(x - y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)]
        expected.append(sum(gaps) / (len(members) * (len(members) - 1)))
    assert structure_gap(student, teacher, targets).tolist() == pytest.approx(expected)
    assert structure_gap(student, teacher, torch.zeros(N, C)).tolist() == []
