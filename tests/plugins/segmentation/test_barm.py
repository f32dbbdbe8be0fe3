"""Background adaptation with residual modelling: its losses, by hand and by their equations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from kdzoo_segmentation.methods import barm

IGNORE = 255


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def column(*values: float) -> Tensor:
    """One pixel's scores as (1, C, 1, 1)."""
    return torch.tensor(values).view(1, -1, 1, 1)


def test_pseudo_labels_replace_sure_background_only() -> None:
    """A label of this step, an ignored pixel, an unsure or a background answer must stay."""
    sure, unsure, ground = [0.0, 3.0, -1.0], [0.0, 0.5, -1.0], [5.0, 4.0, -1.0]
    previous = torch.tensor([sure, unsure, ground, sure, sure]).T.view(1, 3, 1, 5)
    labels = torch.tensor([[[0, 0, 0, 4, IGNORE]]])
    assert barm.pseudo_labels(labels, previous, 0.7).tolist() == [[[1, 0, 0, 4, IGNORE]]]


def test_pseudo_labels_take_the_threshold_itself() -> None:
    """The official code's >= ."""
    previous = column(-1.0, 0.0)  # sigmoid 0.5
    assert int(barm.pseudo_labels(torch.zeros(1, 1, 1, dtype=torch.long), previous, 0.5)) == 1
    assert int(barm.pseudo_labels(torch.zeros(1, 1, 1, dtype=torch.long), previous, 0.5001)) == 0


def test_old_classes_get_no_gradient_of_labels() -> None:
    """C4: background and new classes keep theirs, values stay."""
    logits = torch.randn(1, 6, 2, 2, requires_grad=True)
    kept = barm.without_old_gradient(logits, 2)
    assert torch.equal(kept, logits)
    kept.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, :, 0, 0].tolist() == [1, 0, 0, 0, 1, 1]


def test_residual_losses_by_hand() -> None:
    """P leaves out 0 and 255, N is 0 alone; each has a mean of its own."""
    residual = torch.tensor([[[0.0, 2.0, -1.0, 9.0]]])
    labels = torch.tensor([[[4, 0, 0, IGNORE]]])
    assert float(barm.residual_on_new(residual, labels, reduction="mean")) == pytest.approx(math.log(2))
    expected = (0 + 1 - 2 * sigmoid(-1.0)) / 2
    assert float(barm.residual_on_background(residual, labels, reduction="mean")) == pytest.approx(expected)


def test_residual_on_background_is_the_official_difference_of_squares() -> None:
    """max((s - 1)^2 - s^2, 0), which we write shorter."""
    residual, labels = torch.linspace(-4, 4, 17).view(1, 1, 17), torch.zeros(1, 1, 17, dtype=torch.long)
    values = barm.residual_on_background(residual, labels, reduction="none").flatten().tolist()
    squares = [max((sigmoid(z) - 1) ** 2 - sigmoid(z) ** 2, 0.0) for z in residual.flatten().tolist()]
    assert values == pytest.approx(squares, abs=1e-6)


def test_a_residual_that_raises_the_background_is_left_alone_there() -> None:
    """It is clamped later; pushing it on would be another method."""
    residual = torch.tensor([[[0.5, 3.0]]], requires_grad=True)
    barm.residual_on_background(residual, torch.zeros(1, 1, 2, dtype=torch.long), reduction="sum").backward()
    assert residual.grad is not None
    assert not residual.grad.any()


def test_no_position_of_a_kind_is_a_zero_sum() -> None:
    """A crop without background, or without new classes: the official mean would be NaN."""
    residual = torch.randn(1, 2, 2)
    for labels in (torch.full((1, 2, 2), IGNORE), torch.zeros(1, 2, 2, dtype=torch.long)):
        assert float(barm.residual_on_new(residual, labels, reduction="sum")) == 0
    assert float(barm.residual_on_background(residual, torch.ones(1, 2, 2), reduction="sum")) == 0


def test_branches_are_compared_on_background_only_and_averaged_over_all() -> None:
    """Masked elements count in the mean; a branch beyond the previous net's does not."""
    mine, theirs = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    ground = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [0, 1]]]).bool()
    values = barm.branch_distillation([mine, mine], [theirs], ground, reduction="none")
    for item in range(2):
        total = 0.0
        for d, y, x in itertools.product(range(3), range(2), range(2)):
            total += float(ground[item, y, x]) * float(mine[item, d, y, x] - theirs[item, d, y, x]) ** 2
        assert float(values[item]) == pytest.approx(total / 12, rel=1e-5)
    assert float(barm.branch_distillation([mine], [mine], ground, reduction="sum")) == 0


def test_heads_are_summed_over_channels() -> None:
    """A mean over channels would shrink it by their number."""
    mine, theirs = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    values = barm.group_distillation([mine, mine[:, :2]], [theirs, theirs[:, :2]], reduction="none")
    for item in range(2):
        total = 0.0
        for c, y, x in itertools.product(range(5), range(2), range(2)):
            p, q = (sigmoid(float(part[item, c % 3, y, x])) for part in (mine, theirs))
            total -= q * math.log(p) + (1 - q) * math.log(1 - p)
        assert float(values[item]) == pytest.approx(total / 4, rel=1e-5)


def test_heads_that_agree_have_no_gradient() -> None:
    """A cross-entropy is not 0 there, but it must be least."""
    mine = torch.randn(1, 3, 2, 2, requires_grad=True)
    barm.group_distillation([mine], [mine.detach()], reduction="sum").backward()
    assert mine.grad is not None
    assert float(mine.grad.abs().max()) < 1e-6


def test_no_gradient_reaches_the_previous_net() -> None:
    """A teacher that is drawn to its student forgets with it."""
    mine, theirs = torch.randn(1, 3, 2, 2, requires_grad=True), torch.randn(1, 3, 2, 2, requires_grad=True)
    ground = torch.ones(1, 2, 2).bool()
    total = barm.branch_distillation([mine], [theirs], ground, reduction="sum")
    total = total + barm.group_distillation([mine], [theirs], reduction="sum")
    total = total + barm.unbiased_distillation(torch.cat([mine, mine], 1), theirs, reduction="sum")
    total.backward()
    assert theirs.grad is None


def test_a_net_with_fewer_heads_than_its_teacher_is_refused() -> None:
    """zip would leave out what is to be kept."""
    part = torch.randn(1, 2, 1, 1)
    with pytest.raises(ValueError, match="forgotten"):
        barm.group_distillation([part], [part, part], reduction="sum")
    with pytest.raises(ValueError, match="forgotten"):
        barm.branch_distillation([part], [part, part], torch.ones(1, 1, 1).bool(), reduction="sum")


def unbiased_reference(z: list[float], label: int, old: int) -> float:
    """The two cases of the docstring, with probabilities."""
    none = math.prod(1 - sigmoid(score) for score in z[: old + 1])
    new = sum(-math.log(sigmoid(z[c]) if c == label else 1 - sigmoid(z[c])) for c in range(old + 1, len(z)))
    return new - math.log(none if label else 1 - none)


@pytest.mark.parametrize("label", [0, 3, 4])
def test_unbiased_labels_are_their_equation(label: int) -> None:
    """On background the probability of "background or an old class" counts, not that of background."""
    z = [0.3, -1.2, 0.8, 1.5, -0.4]
    value = barm.unbiased_label_bce(column(*z), torch.tensor([[[label]]]), 2, reduction="sum")
    assert float(value) == pytest.approx(unbiased_reference(z, label, 2), rel=1e-5)


def test_unbiased_labels_leave_a_sure_old_class_on_background_alone() -> None:
    """This is what "unbiased" means: the plain loss would push the old class down."""
    z = column(-4.0, 6.0, -4.0).requires_grad_()
    barm.unbiased_label_bce(z, torch.zeros(1, 1, 1, dtype=torch.long), 1, reduction="sum").backward()
    assert z.grad is not None
    assert abs(float(z.grad[0, 1])) < 0.01


def test_unbiased_labels_of_ignored_pixels_are_nothing() -> None:
    """255 must not be taken for a class."""
    z = torch.randn(1, 4, 2, 2)
    assert float(barm.unbiased_label_bce(z, torch.full((1, 2, 2), IGNORE), 2, reduction="sum")) == 0


def test_unbiased_distillation_is_its_equation() -> None:
    """The old background may be a new class now."""
    z, t = [0.3, -1.2, 0.8, 1.5], [1.0, -0.5]
    any_ = 1 - math.prod(1 - sigmoid(z[c]) for c in (0, 2, 3))
    p, q = sigmoid(t[0]), sigmoid(t[1])
    expected = -(p * math.log(any_) + (1 - p) * math.log(1 - any_))
    expected -= q * math.log(sigmoid(z[1])) + (1 - q) * math.log(1 - sigmoid(z[1]))
    value = barm.unbiased_distillation(column(*z), column(*t), reduction="sum")
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_unbiased_losses_are_finite_where_nothing_is_on() -> None:
    """The logarithm of the probability that any is on runs to minus infinity."""
    for scale in (-200.0, 200.0):
        z = torch.full((1, 4, 1, 1), scale, requires_grad=True)
        loss = barm.unbiased_label_bce(z, torch.zeros(1, 1, 1, dtype=torch.long), 2, reduction="sum")
        loss = loss + barm.unbiased_distillation(z, column(2.0, -2.0), reduction="sum")
        loss.backward()
        assert math.isfinite(float(loss.detach()))
        assert z.grad is not None
        assert bool(torch.isfinite(z.grad).all())


def test_losses_are_taken_in_float32() -> None:
    """In bfloat16 1 - 2 s is 0 long before it should be."""
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 4, 4).bfloat16() for _ in range(2)]
    labels, ground = torch.randint(0, 2, (2, 4, 4)), torch.ones(2, 4, 4).bool()

    def all_of(mine: Tensor, theirs: Tensor) -> list[float]:
        return [
            float(value)
            for value in (
                barm.residual_on_new(mine[:, 0], labels, reduction="sum"),
                barm.residual_on_background(mine[:, 0], labels, reduction="sum"),
                barm.branch_distillation([mine], [theirs], ground, reduction="sum"),
                barm.group_distillation([mine], [theirs], reduction="sum"),
                barm.unbiased_distillation(mine, theirs[:, :2], reduction="sum"),
            )
        ]

    assert all_of(*maps) == pytest.approx(all_of(*(part.double() for part in maps)), rel=1e-4)
