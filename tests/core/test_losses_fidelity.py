"""Losses of the fidelity study: ensembles, symmetrised KL, Brier, reverse and hard cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kdzoo.losses.divergences import kl_divergence, reverse_kl
from kdzoo.losses.fidelity import (
    averaged_symmetric_kl,
    brier,
    ensemble_log_probabilities,
    falling_share,
    hard_cross_entropy,
    reverse_cross_entropy,
    symmetric_kl,
    teacher_labels,
)

Loss = Callable[..., Tensor]
PAIRED: list[Loss] = [symmetric_kl, brier, reverse_cross_entropy]


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(row: list[float], temperature: float) -> list[float]:
    weights = [math.exp(z / temperature) for z in row]
    return [weight / sum(weights) for weight in weights]


def test_ensemble_is_the_mean_of_probabilities() -> None:
    """A mean of logits, or of log-probabilities, is the geometric mean: another ensemble."""
    members = logits(3, 4, 5)
    expected = torch.tensor(
        [
            [math.log(sum(probabilities(member, 1.0)[c] for member in item.tolist()) / 4) for c in range(5)]
            for item in members
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(ensemble_log_probabilities(members, member_axis=1, axis=2), expected)


def test_ensemble_of_one_and_of_copies_is_the_member() -> None:
    """A missing log M would shift nothing that softmax sees, but be no log-probability."""
    one = logits(3, 1, 5)
    for members in (one, one.expand(3, 4, 5)):
        got = ensemble_log_probabilities(members, member_axis=1, axis=-1)
        torch.testing.assert_close(got, one[:, 0].log_softmax(1))


def test_ensemble_refuses_no_member_and_one_axis_for_both() -> None:
    """logsumexp over nothing is -inf, over the classes a constant."""
    with pytest.raises(ValueError, match="two different axes"):
        ensemble_log_probabilities(logits(3, 0, 5), member_axis=1, axis=2)
    with pytest.raises(ValueError, match="two different axes"):
        ensemble_log_probabilities(logits(3, 2, 5), member_axis=2, axis=-1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_slow_reference(temperature: float) -> None:
    """Sides swapped, a mean over classes too many, or a temperature on one side only."""
    student, teacher = logits(4, 3), logits(4, 3, seed=1)
    sym, square, reverse = [], [], []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = probabilities(s, temperature), probabilities(t, temperature)
        sym.append(sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True)))
        square.append(sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / 3)
        reverse.append(-sum(b * math.log(a) for a, b in zip(p, q, strict=True)))
    for loss, expected in ((symmetric_kl, sym), (brier, square), (reverse_cross_entropy, reverse)):
        got = loss(student, teacher, temperature=temperature, axis=1, reduction="none")
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_symmetric_kl_is_both_ways() -> None:
    """Half of it, or one way twice."""
    student, teacher = logits(4, 3), logits(4, 3, seed=1)
    options: dict[str, Any] = {"temperature": 2.0, "axis": 1, "reduction": "sum"}
    both = kl_divergence(student, teacher, **options) + reverse_kl(student, teacher, **options)
    torch.testing.assert_close(symmetric_kl(student, teacher, **options), both)
    torch.testing.assert_close(symmetric_kl(teacher, student, **options), both)


def test_averaged_symmetric_kl_is_the_mean_over_members() -> None:
    """A KL to the combined teacher is smaller: members that contradict each other would cost nothing."""
    student, members = logits(4, 3), logits(4, 5, 3, seed=1)
    each = [symmetric_kl(student, members[:, m], temperature=2.0, axis=1, reduction="none") for m in range(5)]
    got = averaged_symmetric_kl(student, members, temperature=2.0, reduction="none")
    torch.testing.assert_close(got, torch.stack(each).mean(0))
    with pytest.raises(ValueError, match="expected"):
        averaged_symmetric_kl(student, members.transpose(0, 1), temperature=2.0, reduction="none")


@pytest.mark.parametrize("loss", [symmetric_kl, brier])
def test_zero_at_the_teacher(loss: Loss) -> None:
    """A divergence that is not 0 at equality pulls a perfect student away."""
    student = logits(4, 3).requires_grad_()
    value = loss(student, student.detach() + 7.0, temperature=3.0, axis=1, reduction="sum")
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_reverse_cross_entropy_is_least_at_the_teachers_first_choice() -> None:
    """Unlike a divergence it rewards certainty: the entropy of the student must not be added to it."""
    teacher = torch.tensor([[2.0, 1.0, 0.0]])
    same, certain = (
        reverse_cross_entropy(s, teacher, temperature=1.0, axis=1, reduction="mean").item()
        for s in (teacher, torch.tensor([[50.0, 0.0, 0.0]]))
    )
    assert certain < same
    assert certain == pytest.approx(-teacher.log_softmax(1)[0, 0].item(), abs=1e-6)


@pytest.mark.parametrize("loss", PAIRED)
def test_gradient_reaches_the_student_alone(loss: Loss) -> None:
    """Swapping the sides of a cross-entropy must not swap which one is detached."""
    student, teacher = logits(3, 4).requires_grad_(), logits(3, 4, seed=1).requires_grad_()
    loss(student, teacher, temperature=2.0, axis=1, reduction="sum").backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().min() > 0

    def of_student(s: Tensor) -> Tensor:
        return loss(s, teacher, temperature=2.0, axis=1, reduction="none")

    assert torch.autograd.gradcheck(of_student, student.detach().requires_grad_())


@pytest.mark.parametrize("loss", PAIRED)
def test_half_precision_and_mask(loss: Loss) -> None:
    """bf16 sums over classes lose the small terms; NaN in a hidden item must not reach value or gradient."""
    student, teacher = logits(3, 4).float(), logits(3, 4, seed=1).float()
    options: dict[str, Any] = {"temperature": 2.0, "axis": 1, "reduction": "none"}
    exact = loss(student, teacher, **options)
    coarse = loss(student.bfloat16(), teacher.bfloat16(), **options)
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, exact, rtol=0.05, atol=0.01)
    mask = torch.tensor([True, False, True])
    broken = teacher.masked_fill(~mask.unsqueeze(1), torch.nan)
    hidden = student.clone().requires_grad_()
    values = loss(hidden, broken, mask=mask, **options)
    torch.testing.assert_close(values, exact * mask)
    values.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[1].tolist() == [0.0] * 4


@pytest.mark.parametrize("loss", PAIRED)
def test_shapes_that_would_broadcast_are_refused(loss: Loss) -> None:
    """One teacher for all students, in silence."""
    with pytest.raises(ValueError, match="expected equal shapes"):
        loss(logits(3, 4), logits(1, 4), temperature=1.0, axis=1, reduction="sum")


def test_labels_are_the_teachers_first_choice_or_draws_from_it() -> None:
    """Draws at temperature 1 would not be an unbiased form of the soft loss at temperature T."""
    teacher = torch.tensor([[4.0, 0.0]]).expand(20_000, 2)
    first = teacher_labels(teacher, choice="argmax", temperature=4.0, corruption=0.0)
    assert first.sum() == 0
    generator = torch.Generator().manual_seed(0)
    drawn = teacher_labels(teacher, choice="sampled", temperature=4.0, corruption=0.0, generator=generator)
    share = 1 / (1 + math.exp(1.0))
    assert drawn.double().mean().item() == pytest.approx(share, abs=0.01)


def test_corruption_touches_exactly_the_share() -> None:
    """Places drawn with repetition would corrupt fewer labels than the setting says."""
    teacher = torch.zeros(1000, 50)
    teacher[:, 7] = 9.0
    generator = torch.Generator().manual_seed(0)
    labels = teacher_labels(teacher, choice="argmax", temperature=1.0, corruption=0.3, generator=generator)
    assert 275 <= int((labels != 7).sum()) <= 300  # a random class is the old one in one case of 50
    whole = teacher_labels(teacher, choice="argmax", temperature=1.0, corruption=1.0, generator=generator)
    assert whole.bincount(minlength=50).min() > 5
    with pytest.raises(ValueError, match="repeatable"):
        teacher_labels(teacher, choice="sampled", temperature=1.0, corruption=0.0)
    with pytest.raises(ValueError, match="argmax"):
        teacher_labels(teacher, choice="hard", temperature=1.0, corruption=0.0)


def test_hard_cross_entropy_is_torchs_at_a_temperature() -> None:
    """A temperature left out of the log-softmax."""
    student, labels = logits(5, 4), torch.tensor([0, 3, 1, 1, 2])
    got = hard_cross_entropy(student, labels, temperature=4.0, reduction="mean")
    torch.testing.assert_close(got, torch.nn.functional.cross_entropy(student / 4, labels))
    with pytest.raises(ValueError, match="one class per item"):
        hard_cross_entropy(student, labels[:1], temperature=4.0, reduction="mean")
    with pytest.raises(ValueError, match="> 0"):
        hard_cross_entropy(student, labels, temperature=0.0, reduction="mean")


def test_falling_share_ends_at_zero() -> None:
    """A share below 0 would reward disagreement with the hard labels."""
    assert falling_share(0.8, step=3, steps=4) == pytest.approx(0.2)
    assert falling_share(0.8, step=9, steps=4) == 0.0
