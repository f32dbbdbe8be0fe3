"""Similarity preservation and probabilistic transfer: against plain loops, invariances, degenerate batches."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdzoo.losses.similarity import EPSILON, probabilistic_transfer, similarity_preserving

Loss = Callable[..., Tensor]
LOSSES = [similarity_preserving, probabilistic_transfer]


def pair(rows: int = 5, student: int = 4, teacher: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(rows, student, generator=generator, dtype=torch.float64)
    t = torch.randn(rows, teacher, generator=generator, dtype=torch.float64)
    return s.requires_grad_(), t


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit_rows(rows: list[list[float]]) -> list[list[float]]:
    return [[x / math.sqrt(dot(row, row)) for x in row] for row in rows]


def test_similarity_agrees_with_loops() -> None:
    """A norm over the whole table, a mean over the wrong axis, or centring."""
    student, teacher = pair()
    tables = [
        unit_rows([[dot(a, b) for b in side.tolist()] for a in side.tolist()])
        for side in (student.detach(), teacher)
    ]
    want = [sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 5 for a, b in zip(*tables, strict=True)]
    assert similarity_preserving(student, teacher, reduction="none").tolist() == pytest.approx(want, rel=1e-9)


def test_transfer_agrees_with_loops() -> None:
    """Cosines that are not mapped to [0, 1], probabilities that do not sum to 1, a KL the wrong way round."""
    student, teacher = pair()
    tables = []
    for side in (student.detach(), teacher):
        rows = unit_rows(side.tolist())
        kernel = [[(1 + dot(a, b)) / 2 for b in rows] for a in rows]
        tables.append([[k / sum(row) for k in row] for row in kernel])
    want = [
        sum(p * math.log((p + EPSILON) / (q + EPSILON)) for q, p in zip(s, t, strict=True))
        for s, t in zip(*tables, strict=True)
    ]
    assert probabilistic_transfer(student, teacher, reduction="none").tolist() == pytest.approx(
        want, rel=1e-6
    )


def test_hand_sized_numbers() -> None:
    """The scale: two samples that the teacher holds for equal and the student for unlike."""
    alike, unlike = torch.ones(2, 1), torch.eye(2)
    # rows (1, 1) / sqrt 2 against (1, 0): ((1 - .7071)^2 + .7071^2) / 2
    assert similarity_preserving(unlike, alike, reduction="mean").item() == pytest.approx(
        ((1 - 0.5**0.5) ** 2 + 0.5) / 2, rel=1e-6
    )
    # probabilities (1/2, 1/2) against (2/3, 1/3)
    want = 0.5 * math.log(0.5 * 3 / 2) + 0.5 * math.log(0.5 * 3)
    assert probabilistic_transfer(unlike, alike, reduction="mean").item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_and_flat_where_the_tables_agree(loss: Loss) -> None:
    """A divergence that is not 0 at a rotated and scaled teacher pulls a perfect student away."""
    _, teacher = pair()
    rotation = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64)).Q
    student = (3.0 * teacher @ rotation).requires_grad_()
    value = loss(student, teacher, reduction="sum")
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients(loss: Loss) -> None:
    """Gradients by finite differences; none into the teacher unless it is asked for."""
    student, teacher = pair()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, reduction="sum"), (student,))
    teacher.requires_grad_()
    loss(student, teacher, reduction="sum").backward()
    assert teacher.grad is None
    loss(student, teacher, reduction="sum", teacher_grad=True).backward()
    assert teacher.grad is not None


@pytest.mark.parametrize("loss", LOSSES)
def test_degenerate_batches(loss: Loss) -> None:
    """A dead layer (all zero), equal rows and a batch of one must not give NaN, in value or gradient."""
    for student in (torch.zeros(3, 4), torch.ones(3, 4), torch.ones(1, 4)):
        leaf = student.requires_grad_()
        value = loss(leaf, torch.ones(len(leaf), 2), reduction="sum")
        value.backward()
        assert torch.isfinite(value)
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_maps_are_rows_and_halves_are_widened(loss: Loss) -> None:
    """Feature maps are flattened in the same order on both sides; bfloat16 tables are computed in float32."""
    maps = torch.randn(4, 3, 2, 2)
    teacher = torch.randn(4, 5)
    assert torch.equal(
        loss(maps, teacher, reduction="mean"), loss(maps.flatten(1), teacher, reduction="mean")
    )
    low = loss(maps.bfloat16(), teacher.bfloat16(), reduction="mean")
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(loss(maps, teacher, reduction="mean").item(), rel=0.05)


@pytest.mark.parametrize("loss", LOSSES)
def test_refuses(loss: Loss) -> None:
    """Other samples on the two sides would be compared in silence."""
    with pytest.raises(ValueError, match="3 student rows and 4 teacher rows"):
        loss(torch.ones(3, 2), torch.ones(4, 2), reduction="mean")
    with pytest.raises(TypeError, match="floating point"):
        loss(torch.ones(3, 2, dtype=torch.long), torch.ones(3, 2), reduction="mean")
    with pytest.raises(ValueError, match="reduction"):
        loss(torch.ones(3, 2), torch.ones(3, 2), reduction="average")
