"""Relations between positions of different images: against loops, in blocks and at once, and where nothing is alike."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.losses.image_pairs import Pairs, cross_image_divergence, unit_rows

PAIRS: list[Pairs] = ["all", "same", "cross"]


def maps(channels: int, seed: int, images: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, channels, 2, 3, generator=generator, dtype=torch.float64)


def official(student: Tensor, teacher: Tensor, temperature: float, pairs: Pairs) -> Tensor:
    """Image pair by image pair and row by row, from the formula."""
    mine, taught = (F.normalize(side, dim=1).flatten(2) for side in (student, teacher))
    values = []
    for i in range(len(mine)):
        parts = []
        for j in range(len(mine)):
            if (pairs == "same" and i != j) or (pairs == "cross" and i == j):
                continue
            rows = [(side[i].T @ side[j] / temperature).softmax(1) for side in (mine, taught)]
            q, p = rows
            parts.append((p * (p / q).log()).sum(1).mean())
        values.append(torch.stack(parts).mean())
    return torch.stack(values)


def test_two_positions_by_hand() -> None:
    """A KL the other way round, or similarities that are not cosines."""
    right_angle, alike = torch.eye(2).reshape(1, 2, 1, 2) * 5, torch.ones(1, 3, 1, 2)
    p = math.e / (1 + math.e)
    want = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    found = cross_image_divergence(alike, right_angle, temperature=1.0, pairs="all", reduction="none")
    assert found.tolist() == pytest.approx([want], rel=1e-6)
    other_way = cross_image_divergence(right_angle, alike, temperature=1.0, pairs="all", reduction="mean")
    assert other_way.item() == pytest.approx(-math.log(2) - 0.5 * (math.log(p) + math.log(1 - p)), rel=1e-6)


@pytest.mark.parametrize(("pairs", "block"), list(itertools.product(PAIRS, [1, 40, 10_000])))
def test_value_and_gradient_are_the_formula(pairs: Pairs, block: int) -> None:
    """Blocks that lose rows, a gradient that forgets the second side of a similarity, pairs that are others."""
    student, teacher, weights = maps(4, 0).requires_grad_(), maps(5, 1), torch.tensor([1.0, -2.0, 0.5])
    expected = official(student, teacher, 0.3, pairs)
    (gradient,) = torch.autograd.grad(expected @ weights.double(), student)
    found = cross_image_divergence(
        student, teacher, temperature=0.3, pairs=pairs, reduction="none", block=block
    )
    torch.testing.assert_close(found, expected)
    (mine,) = torch.autograd.grad(found @ weights.double(), student)
    torch.testing.assert_close(mine, gradient)


def test_plain_form_teaches_the_teacher_too() -> None:
    """Another value where the teacher's gradient is asked for, or a gradient where it is not."""
    student, teacher = maps(4, 0).requires_grad_(), maps(4, 1).requires_grad_()
    options = {"temperature": 0.5, "pairs": "all", "reduction": "sum"}
    detached = cross_image_divergence(student, teacher, **options)
    assert torch.autograd.grad(detached, teacher, allow_unused=True) == (None,)
    plain = cross_image_divergence(student, teacher, teacher_grad=True, **options)
    torch.testing.assert_close(plain, detached)
    (gradient,) = torch.autograd.grad(plain, teacher)
    assert gradient.abs().sum() > 0


def test_equal_relations_cost_nothing() -> None:
    """A rotation of all channels, or another length of any position, is no difference of relations."""
    student = maps(4, 2).requires_grad_()
    turn = torch.linalg.qr(maps(4, 3)[0, :, :, :2].reshape(4, 4))[0]
    teacher = torch.einsum("de,behw->bdhw", turn, student.detach()) * maps(1, 4).abs().add(0.1)
    value = cross_image_divergence(student, teacher, temperature=0.1, pairs="all", reduction="sum")
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(value, student)[0].abs().max() < 1e-12


def test_dead_positions_are_left_alone() -> None:
    """A position of zeros divided by 1e-12 gets a gradient of 1e12."""
    student = maps(4, 5).clone()
    student[1, :, 0, 0] = 0
    student.requires_grad_()
    value = cross_image_divergence(student, maps(4, 6), temperature=1.0, pairs="all", reduction="sum")
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient.abs().max() < 10
    assert gradient[1, :, 0, 0].tolist() == [0, 0, 0, 0]
    assert unit_rows(torch.zeros(1, 2, 1, 1)).tolist() == [[[0, 0]]]


def test_half_precision_is_summed_in_single() -> None:
    """Under bf16 autocast cosines of 1/256 would all be alike."""
    student, teacher = maps(4, 7).bfloat16(), maps(4, 8).bfloat16()
    wanted = official(student.double(), teacher.double(), 0.05, "all")
    with torch.autocast("cpu", torch.bfloat16):
        found = cross_image_divergence(student, teacher, temperature=0.05, pairs="all", reduction="none")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


def test_one_position_and_one_image() -> None:
    """A softmax over one position is 1 on both sides; with no other image there is nothing to compare."""
    one = torch.ones(1, 2, 1, 1)
    value = cross_image_divergence(one, -one, temperature=1.0, pairs="all", reduction="mean")
    assert value.item() == 0
    with pytest.raises(ValueError, match="at least two"):
        cross_image_divergence(one, one, temperature=1.0, pairs="cross", reduction="mean")


def test_what_does_not_fit_is_refused() -> None:
    """Positions held against others' places, or a temperature that turns the order around."""
    for wrong in (maps(4, 0)[:2], maps(4, 0)[:, :, :1], maps(4, 0).flatten(2)):
        with pytest.raises(ValueError, match="same images and positions"):
            cross_image_divergence(maps(4, 0), wrong, temperature=1.0, pairs="all", reduction="sum")
    with pytest.raises(ValueError, match="temperature"):
        cross_image_divergence(maps(4, 0), maps(4, 0), temperature=-1.0, pairs="all", reduction="sum")
    with pytest.raises(ValueError, match="'all', 'same' or 'cross'"):
        cross_image_divergence(
            maps(4, 0),
            maps(4, 0),
            temperature=1.0,
            pairs="other",  # type: ignore[arg-type]
            reduction="sum",
        )
