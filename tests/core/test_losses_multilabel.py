"""Losses on independent labels: hand-sized numbers, slow references from the formulas, edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdzoo.losses.multilabel import binary_cross_entropy, binary_kl, label_mse, partial_softmax_kl

PAIR_LOSSES = [
    lambda s, t, **kw: binary_kl(s, t, **kw),
    lambda s, t, **kw: label_mse(s, t, of="logits", **kw),
    lambda s, t, **kw: label_mse(s, t, of="probabilities", **kw),
    lambda s, t, **kw: partial_softmax_kl(s, t, torch.tensor([[1, 0, 1, 0, 0]]).expand_as(s), **kw),
]
ALL = pytest.mark.parametrize("loss", PAIR_LOSSES, ids=["mld", "mse", "mse-p", "partial"])


def logits(seed: int = 0, shape: tuple[int, int] = (6, 5), scale: float = 2.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_binary_kl_by_hand() -> None:
    """Would catch a mean over labels, the other direction of the divergence, or one side of the coin forgotten."""
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), -math.log(3)]])
    one = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert binary_kl(student, teacher, reduction="none").tolist() == pytest.approx([2 * one])
    other = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert binary_kl(teacher, student, reduction="sum").item() == pytest.approx(2 * other)


def test_binary_kl_of_very_sure_logits_is_finite_and_right() -> None:
    """Would catch the official clamp, which is infinite above a logit of 17, and a NaN gradient."""
    student = torch.tensor([[100.0, -100.0, 60.0]], requires_grad=True)
    loss = binary_kl(student, torch.tensor([[-100.0, -100.0, 60.0]]), reduction="sum")
    loss.backward()
    assert loss.item() == pytest.approx(100.0)
    assert student.grad is not None
    assert student.grad.tolist() == [[pytest.approx(1.0), pytest.approx(0.0), pytest.approx(0.0)]]


def test_binary_kl_gradient_is_the_difference_of_probabilities() -> None:
    """Would catch a term that is detached or left out and does not show in the value."""
    student = logits().requires_grad_()
    binary_kl(student, logits(1), reduction="sum").backward()
    torch.testing.assert_close(student.grad, student.detach().sigmoid() - logits(1).sigmoid())
    assert torch.autograd.gradcheck(lambda s: binary_kl(s, logits(1), reduction="none"), student)


def slow_partial_softmax(student: Tensor, teacher: Tensor, targets: Tensor) -> list[float]:
    """One softmax a true label, from the definition."""
    values = []
    for s, t, y in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        total = 0.0
        for c in (k for k, true in enumerate(y) if true):
            kept = [c, *(k for k, true in enumerate(y) if not true)]
            p, q = ([math.exp(side[k]) for k in kept] for side in (t, s))
            p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        values.append(total)
    return values


def test_partial_softmax_against_one_softmax_a_label() -> None:
    """Would catch a mistake in the algebra that lets all softmaxes of an item share their absent labels."""
    targets = torch.rand(6, 5, generator=torch.Generator().manual_seed(2)) < 0.4
    targets[0], targets[1] = False, True
    found = partial_softmax_kl(logits(), logits(1), targets, reduction="none")
    assert found.tolist() == pytest.approx(slow_partial_softmax(logits(), logits(1), targets))
    assert found[:2].tolist() == [0.0, 0.0]


def test_partial_softmax_gradient_where_no_label_is_absent() -> None:
    """Would catch the NaN that a logsumexp over nothing leaves in the gradient."""
    student = logits().requires_grad_()
    targets = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 1]]).repeat(2, 1)
    partial_softmax_kl(student, logits(1), targets, reduction="sum").backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert not student.grad[:2].any()
    assert student.grad[2].abs().min() > 0
    assert torch.autograd.gradcheck(
        lambda s: partial_softmax_kl(s, logits(1), targets, reduction="none"), student
    )


def test_cross_entropy_by_hand_and_its_relation_to_mld() -> None:
    """Would catch a mean over labels; and MLD towards certain labels must be the cross-entropy."""
    found = binary_cross_entropy(torch.zeros(2, 3), torch.tensor([[1.0, 0, 0], [1, 1, 1]]), reduction="none")
    assert found.tolist() == pytest.approx([3 * math.log(2)] * 2)
    targets = (torch.rand(6, 5, generator=torch.Generator().manual_seed(3)) < 0.5).double()
    sure = (2 * targets - 1) * 200
    torch.testing.assert_close(
        binary_cross_entropy(logits(), targets, reduction="none"),
        binary_kl(logits(), sure, reduction="none"),
    )


@ALL
def test_zero_at_equality(loss) -> None:
    """Would catch a cross-entropy where a divergence is promised; its gradient must vanish, too."""
    student = logits().requires_grad_()
    value = loss(student, logits(), reduction="sum")
    value.backward()
    assert abs(value.item()) < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


@ALL
def test_reductions_and_the_teacher(loss) -> None:
    """Would catch a mean that is over labels too, and a gradient into the teacher."""
    student, teacher = logits().requires_grad_(), logits(1).requires_grad_()
    each = loss(student, teacher, reduction="none")
    assert each.shape == (6,)
    assert (each > 0).all()
    torch.testing.assert_close(loss(student, teacher, reduction="sum"), each.sum())
    torch.testing.assert_close(loss(student, teacher, reduction="mean"), each.sum() / 6)
    each.sum().backward()
    assert teacher.grad is None
    loss(student, teacher, reduction="sum", teacher_grad=True).backward()
    assert teacher.grad is not None
    assert teacher.grad.abs().max() > 0


@ALL
def test_half_precision(loss) -> None:
    """Would catch sums in bfloat16, which keep two digits."""
    student, teacher = logits().bfloat16(), logits(1).bfloat16()
    found = loss(student, teacher, reduction="none")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(student.float(), teacher.float(), reduction="none"))


@ALL
def test_refusals(loss) -> None:
    """Would catch broadcasting one teacher row over all items, and integer labels given for logits."""
    with pytest.raises(ValueError, match="equal shapes"):
        loss(logits(), logits(1)[:1], reduction="sum")
    with pytest.raises(TypeError, match="floating point"):
        loss(logits(), torch.ones(6, 5, dtype=torch.int64), reduction="sum")
    with pytest.raises(ValueError, match="reduction"):
        loss(logits(), logits(1), reduction="batchmean")


def test_more_refusals() -> None:
    """Would catch labels of another shape, and an unknown name that falls through to one of two forms."""
    with pytest.raises(ValueError, match="targets"):
        partial_softmax_kl(logits(), logits(1), torch.ones(1, 5), reduction="sum")
    with pytest.raises(ValueError, match="'logits' or 'probabilities'"):
        label_mse(logits(), logits(1), of="scores", reduction="sum")  # type: ignore[arg-type]
