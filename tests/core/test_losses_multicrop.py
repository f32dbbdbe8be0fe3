"""DINO's cross-entropy over crops: against its definition in plain loops, its centre, and mistakes in shapes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdzoo.losses.multicrop import dino_loss, moved_center

SETTINGS: dict[str, Any] = {"student_temperature": 0.5, "teacher_temperature": 0.25}


def given(crops: int = 4, images: int = 3, outputs: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(crops * images, outputs, generator=generator, dtype=torch.float64)
    teacher = torch.randn(2 * images, outputs, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher, torch.randn(outputs, generator=generator, dtype=torch.float64)


def softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def in_loops(student: Tensor, teacher: Tensor, center: Tensor, crops: int, image: int, images: int) -> float:
    """The definition: for each teacher's crop every other student's crop, mean of the cross-entropies."""
    losses = []
    for q in range(2):
        p = softmax(
            [a - c for a, c in zip(teacher[q * images + image].tolist(), center.tolist(), strict=True)], 0.25
        )
        for v in range(crops):
            if v != q:
                s = softmax(student[v * images + image].tolist(), 0.5)
                losses.append(-sum(a * math.log(b) for a, b in zip(p, s, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("crops", [2, 3, 6])
def test_against_the_definition(crops: int) -> None:
    """Would catch crops paired with another image's, the same crop paired with itself, or a wrong count of pairs."""
    student, teacher, center = given(crops)
    values = dino_loss(student, teacher, center, crops=crops, reduction="none", **SETTINGS)
    for image in range(3):
        assert values[image].item() == pytest.approx(
            in_loops(student, teacher, center, crops, image, 3), rel=1e-9
        )
    total = dino_loss(student, teacher, center, crops=crops, reduction="sum", **SETTINGS)
    assert total.item() == pytest.approx(values.sum().item())


def test_no_gradient_into_teacher_or_centre() -> None:
    """A teacher that moves towards its student makes both collapse."""
    student, teacher, center = given()
    teacher.requires_grad_()
    center.requires_grad_()
    dino_loss(student, teacher, center, crops=4, reduction="mean", **SETTINGS).backward()
    assert teacher.grad is None
    assert center.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_gradient_is_right() -> None:
    """The sum over crops before the product must have the derivative of the plain double sum."""
    student, teacher, center = given(3, 2, 4)
    assert torch.autograd.gradcheck(
        lambda s: dino_loss(s, teacher, center, crops=3, reduction="sum", **SETTINGS), (student,)
    )


def test_a_teacher_equal_to_its_centre_knows_nothing() -> None:
    """Centring that adds instead of subtracting would make this teacher certain."""
    center = torch.tensor([3.0, -1.0, 0.5])
    teacher = center.expand(4, 3)
    student = torch.zeros(6, 3)
    loss = dino_loss(student, teacher, center, crops=3, reduction="mean", **SETTINGS)
    assert loss.item() == pytest.approx(math.log(3))


def test_half_precision_is_summed_in_full() -> None:
    """In bf16 the sum over 65,536 outputs loses whole digits."""
    student, teacher, center = (x.detach().float() for x in given(outputs=64))
    full = dino_loss(student.bfloat16(), teacher.bfloat16(), center, crops=4, reduction="mean", **SETTINGS)
    assert full.dtype == torch.float32
    exact = dino_loss(student, teacher, center, crops=4, reduction="mean", **SETTINGS)
    assert full.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crops": 5}, r"for 5 crops, expected \(5 B, K\)"),
        ({"crops": 1}, "at least 2"),
        ({"teacher_temperature": 0.0}, "teacher_temperature: got 0.0"),
        ({"student_temperature": -1.0}, "student_temperature: got -1.0"),
        ({"reduction": "batchmean"}, "reduction"),
    ],
)
def test_mistakes_are_refused(change: dict[str, Any], message: str) -> None:
    """Rows that are crops of other images would broadcast or pair in silence."""
    student, teacher, center = given()
    with pytest.raises(ValueError, match=message):
        dino_loss(student, teacher, center, **{"crops": 4, "reduction": "mean", **SETTINGS, **change})
    with pytest.raises(ValueError, match="center"):
        dino_loss(student, teacher, center[:1], crops=4, reduction="mean", **SETTINGS)


def test_the_centre_moves_by_the_mean_of_all_rows() -> None:
    """A mean of means over micro-batches of different sizes would be another centre."""
    center, rows = torch.tensor([1.0, 0.0]), torch.tensor([[2.0, 4.0], [4.0, 0.0], [0.0, 2.0]])
    moved = moved_center(center, rows.sum(0), 3, 0.9)
    assert moved.tolist() == pytest.approx([0.9 + 0.1 * 2.0, 0.1 * 2.0])
    assert torch.equal(moved_center(center, rows.sum(0), 3, 1.0), center)
    with pytest.raises(ValueError, match="momentum"):
        moved_center(center, rows.sum(0), 3, 1.5)
    with pytest.raises(ValueError, match="at least one row"):
        moved_center(center, rows.sum(0), 0, 0.5)
