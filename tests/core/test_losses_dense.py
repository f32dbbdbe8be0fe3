"""Dense logits and the losses on them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from kdzoo.losses.dense import dense_logits, hard_label_loss, pool_logits, soft_dense_loss


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_mean_of_dense_logits_is_the_classifiers_answer():
    """Would catch a bias that is left out, or added once instead of at every position."""
    features, head = rand(2, 5, 3, 4), nn.Linear(5, 7).double()
    dense = dense_logits(features, head.weight, head.bias)
    torch.testing.assert_close(dense.mean((2, 3)), head(features.mean((2, 3))))
    torch.testing.assert_close(dense[1, :, 2, 3], head(features[1, :, 2, 3]))
    torch.testing.assert_close(dense_logits(features, head.weight, None), dense - head.bias[:, None, None])


def test_dense_logits_of_another_width_are_refused():
    """Would catch a map that is not the one before the classifier."""
    with pytest.raises(ValueError, match="features: got"):
        dense_logits(rand(2, 4, 3, 3), rand(7, 5), None)
    with pytest.raises(ValueError, match="features: got"):
        dense_logits(rand(2, 5), rand(7, 5), None)


def test_pooling_blocks_and_shared_positions():
    """Would catch another order of positions, or windows that leave some out."""
    grid = torch.arange(16.0).view(1, 1, 4, 4)
    assert pool_logits(grid, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    row = torch.arange(7.0).view(1, 1, 1, 7)
    assert pool_logits(row, (1, 4)).flatten().tolist() == [0.5, 2.0, 4.0, 5.5]  # 0-1, 1-3, 3-5, 5-6
    assert pool_logits(grid, (4, 4)) is grid


@pytest.mark.parametrize("size", [(5, 4), (4, 5), (0, 1)])
def test_a_finer_grid_is_refused(size: tuple[int, int]):
    """Would catch a position that is copied into cells with different targets."""
    with pytest.raises(ValueError, match="expected at most that many cells"):
        pool_logits(torch.zeros(1, 2, 4, 4), size)
    with pytest.raises(ValueError, match="expected \\(B, C, h, w\\)"):
        pool_logits(torch.zeros(1, 2), (1, 1))


def slow_hard(student: Tensor, teacher: Tensor) -> list[float]:
    values = []
    for s_CHW, t_CHW in zip(student.tolist(), teacher.tolist(), strict=True):
        total, count = 0.0, 0
        for y in range(len(s_CHW[0])):
            for x in range(len(s_CHW[0][0])):
                s, t = [c[y][x] for c in s_CHW], [c[y][x] for c in t_CHW]
                total += math.log(sum(map(math.exp, s))) - s[t.index(max(t))]
                count += 1
        values.append(total / count)
    return values


def slow_soft(student: Tensor, teacher: Tensor, temperature: float) -> list[float]:
    values = []
    for s_CHW, t_CHW in zip(student.tolist(), teacher.tolist(), strict=True):
        total = 0.0
        for y in range(len(s_CHW[0])):
            for x in range(len(s_CHW[0][0])):
                s = [math.exp(c[y][x] / temperature) for c in s_CHW]
                t = [math.exp(c[y][x] / temperature) for c in t_CHW]
                total += sum(
                    b / sum(t) * math.log(b / sum(t) / (a / sum(s))) for a, b in zip(s, t, strict=True)
                )
        values.append(temperature**2 * total)
    return values


def test_against_plain_loops():
    """Would catch a softmax over positions, a mean over classes, or a T that is left out."""
    student, teacher = rand(2, 3, 2, 2), rand(2, 3, 2, 2, seed=1)
    found = hard_label_loss(student, teacher, reduction="none")
    assert found.tolist() == pytest.approx(slow_hard(student, teacher))
    found = soft_dense_loss(student, teacher, temperature=2.0, reduction="none")
    assert found.tolist() == pytest.approx(slow_soft(student, teacher, 2.0))
    flat = hard_label_loss(student[:, :, 0, 0], teacher[:, :, 0, 0], reduction="none")
    one = hard_label_loss(student[:, :, :1, :1], teacher[:, :, :1, :1], reduction="none")
    torch.testing.assert_close(flat, one)


def test_reductions_are_over_items():
    """Would catch a mean that divides by positions twice."""
    student, teacher = rand(4, 3, 2, 2), rand(4, 3, 2, 2, seed=1)
    for loss in (
        hard_label_loss,
        lambda s, t, reduction: soft_dense_loss(s, t, temperature=1.0, reduction=reduction),
    ):
        items = loss(student, teacher, reduction="none")
        assert items.shape == (4,)
        torch.testing.assert_close(loss(student, teacher, reduction="sum"), items.sum())
        torch.testing.assert_close(loss(student, teacher, reduction="mean"), items.mean())


def test_no_gradient_reaches_the_teacher_and_equality_is_the_soft_minimum():
    """Would catch a teacher that is pulled along, or a target on the wrong side of the divergence."""
    student, teacher = rand(2, 3, 2, 2).requires_grad_(), rand(2, 3, 2, 2, seed=1).requires_grad_()
    soft_dense_loss(student, teacher, temperature=3.0, reduction="sum").backward()
    hard_label_loss(student, teacher, reduction="sum").backward()
    assert teacher.grad is None
    assert student.grad is not None
    same = rand(2, 3, 2, 2).requires_grad_()
    loss = soft_dense_loss(same, same.detach(), temperature=3.0, reduction="sum")
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert same.grad is not None
    assert float(same.grad.abs().max()) < 1e-12


def test_bfloat16_is_close_and_shapes_must_agree():
    """Would catch a softmax that is summed in half precision, and a teacher that is broadcast over positions."""
    student, teacher = rand(2, 3, 2, 2).float(), rand(2, 3, 2, 2, seed=1).float()
    wide = soft_dense_loss(student, teacher, temperature=1.0, reduction="mean")
    half = soft_dense_loss(student.bfloat16(), teacher.bfloat16(), temperature=1.0, reduction="mean")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, wide, rtol=2e-2, atol=1e-2)
    with pytest.raises(ValueError, match="expected equal shapes"):
        hard_label_loss(student, teacher[:, :, :1, :1], reduction="mean")
    with pytest.raises(ValueError, match="expected \\(B, C, H, W\\)"):
        soft_dense_loss(student[:, :, 0, 0], teacher[:, :, 0, 0], temperature=1.0, reduction="mean")
