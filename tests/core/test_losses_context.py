"""The hierarchical context loss of two maps: by hand, against the formula, and where levels are left out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdzoo.losses.maps import hierarchical_context_loss


def maps(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)


def cells(size: int, level: int) -> list[range]:
    """Adaptive pooling's bins: from floor(k n / l) to ceil((k + 1) n / l)."""
    return [range(k * size // level, math.ceil((k + 1) * size / level)) for k in range(level)]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5), (5, 9), (4, 6), (2, 2), (1, 3)])
def test_context_loss_is_the_formula(height: int, width: int) -> None:
    """Weights that do not restart, levels that are taken though the map is no larger, pooling of squares."""
    student, teacher = maps(height, width, 0), maps(height, width, 1)
    found = hierarchical_context_loss(student, teacher, reduction="none")
    for b in range(2):
        apart = (student[b] - teacher[b]).tolist()
        total = sum(v * v for channel in apart for row in channel for v in row) / (3 * height * width)
        weights, weight = 1.0, 1.0
        for level in (4, 2, 1):
            if level >= height:
                continue
            weight /= 2
            weights += weight
            for channel in apart:
                for rows in cells(height, level):
                    for columns in cells(width, level):
                        inside = [channel[y][x] for y in rows for x in columns]
                        total += weight * (sum(inside) / len(inside)) ** 2 / (3 * level * level)
        assert float(found[b]) == pytest.approx(total / weights, rel=1e-12)
    assert float(hierarchical_context_loss(student, teacher, reduction="sum")) == pytest.approx(
        float(found.sum())
    )


def test_context_loss_by_hand() -> None:
    """Ones everywhere cost 1 whatever the levels; one wrong position of four costs less where it is averaged."""
    same = hierarchical_context_loss(torch.ones(1, 2, 8, 8), torch.zeros(1, 2, 8, 8), reduction="mean")
    assert float(same) == pytest.approx(1.0)
    student = torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]]])
    found = hierarchical_context_loss(student, torch.zeros(1, 1, 2, 2), reduction="none")
    assert found.tolist() == pytest.approx([(1.0 + 0.5 * 0.25) / 1.5])
    one = hierarchical_context_loss(torch.full((1, 1, 1, 1), 3.0), torch.zeros(1, 1, 1, 1), reduction="mean")
    assert one.item() == 9.0


def test_context_loss_gradient() -> None:
    """A gradient into the teacher, or one at a student that is the teacher."""
    student, teacher = maps(6, 6, 0).requires_grad_(), maps(6, 6, 1).requires_grad_()
    hierarchical_context_loss(student, teacher, reduction="sum").backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(
        lambda s, t: hierarchical_context_loss(s, t, reduction="none", teacher_grad=True), (student, teacher)
    )
    student.grad = None
    hierarchical_context_loss(student, student.detach().clone(), reduction="sum").backward()
    assert student.grad is not None
    assert not student.grad.any()


def test_context_loss_in_half_width() -> None:
    """Squares summed in bfloat16 lose three digits."""
    student, teacher = maps(8, 8, 0).bfloat16(), maps(8, 8, 1).bfloat16()
    found = hierarchical_context_loss(student, teacher, reduction="none")
    assert found.dtype == torch.float32
    expected = hierarchical_context_loss(student.double(), teacher.double(), reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_context_loss_refuses_what_would_mislead() -> None:
    """Broadcast channels, vectors in place of maps, empty maps, a grid of no cells."""
    good = torch.zeros(2, 3, 4, 4)
    for student, teacher, said in (
        (good, good[:, :1], "same shape"),
        (good[0], good[0], "expected .B, C, h, w."),
        (good[:, :, :0], good[:, :, :0], "with entries"),
    ):
        with pytest.raises(ValueError, match=said):
            hierarchical_context_loss(student, teacher, reduction="sum")
    with pytest.raises(ValueError, match="1 or more"):
        hierarchical_context_loss(good, good, reduction="sum", levels=(2, 0))
