"""Feature losses against plain loops written from the formulas, at their edges, and in their invariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from kdzoo.losses.features import (
    attention_maps,
    attention_transfer,
    cosine_distance,
    hint_regression,
    normalized_mse,
)

Loss = Callable[..., Tensor]
LOSSES: dict[str, Loss] = {
    "attention": attention_transfer,
    "hint": hint_regression,
    "cosine": partial(cosine_distance, axis=1),
    "mse": partial(normalized_mse, axis=1),
}
EVERY = pytest.mark.parametrize("name", LOSSES)


def batch(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(name: str, student: Tensor, teacher: Tensor) -> list[float]:
    """One loss per sample in loops over (B, C, P) lists."""
    return [SLOW[name](s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]


def slow_attention(s: list[list[float]], t: list[list[float]]) -> float:
    maps = []
    for side in (s, t):
        strength = [sum(side[c][p] ** 2 for c in range(len(side))) / len(side) for p in range(len(side[0]))]
        maps.append([x / math.hypot(*strength) for x in strength])
    return sum((a - b) ** 2 for a, b in zip(*maps, strict=True)) / len(maps[0])


def slow_hint(s: list[list[float]], t: list[list[float]]) -> float:
    squares = [(a - b) ** 2 for x, y in zip(s, t, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(squares) / len(squares)


def columns(side: list[list[float]]) -> list[list[float]]:
    return [[row[p] / math.hypot(*(r[p] for r in side)) for row in side] for p in range(len(side[0]))]


def slow_cosine(s: list[list[float]], t: list[list[float]]) -> float:
    pairs = list(zip(columns(s), columns(t), strict=True))
    return sum(1 - sum(a * b for a, b in zip(x, y, strict=True)) for x, y in pairs) / len(pairs)


def slow_mse(s: list[list[float]], t: list[list[float]]) -> float:
    pairs = list(zip(columns(s), columns(t), strict=True))
    return sum((a - b) ** 2 for x, y in pairs for a, b in zip(x, y, strict=True)) / len(pairs)


SLOW = {"attention": slow_attention, "hint": slow_hint, "cosine": slow_cosine, "mse": slow_mse}


def test_by_hand() -> None:
    """Catches sums instead of means, and a wrong axis, on numbers that can be checked in the head."""
    student = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])  # one sample, two channels, two positions
    teacher = torch.tensor([[[0.0, 0.0], [2.0, 2.0]]])
    # Channel means of squares (4.5, 8) and (2, 2), normalized.
    a, b = 4.5 / math.hypot(4.5, 8), 8 / math.hypot(4.5, 8)
    assert attention_maps(student)[0].tolist() == pytest.approx([a, b])
    half = math.sqrt(0.5)
    expected = ((a - half) ** 2 + (b - half) ** 2) / 2
    assert attention_transfer(student, teacher, reduction="none").tolist() == pytest.approx([expected])
    assert hint_regression(student, teacher, reduction="none").tolist() == [(9 + 0 + 4 + 4) / 4]
    # Position 0: (3, 0) and (0, 2) are orthogonal; position 1: (0, 4) and (0, 2) agree.
    assert cosine_distance(student, teacher, axis=1, reduction="none").tolist() == [0.5]
    assert normalized_mse(student, teacher, axis=1, reduction="none").tolist() == [1.0]
    # Along positions instead: (3, 0) against nothing, (0, 4) against (1, 1).
    assert cosine_distance(student, teacher, axis=2, reduction="none").tolist() == pytest.approx(
        [1 - half / 2]
    )


@EVERY
def test_plain_loops(name: str) -> None:
    """Catches any mistake of the vectorized forms, per item and in every reduction."""
    student, teacher = batch(4, 3, 5, seed=1), batch(4, 3, 5, seed=2)
    expected = torch.tensor(slow(name, student, teacher), dtype=torch.float64)
    loss = LOSSES[name]
    torch.testing.assert_close(loss(student, teacher, reduction="none"), expected)
    torch.testing.assert_close(loss(student, teacher, reduction="sum"), expected.sum())
    torch.testing.assert_close(loss(student, teacher, reduction="mean"), expected.mean())


@EVERY
def test_maps_are_their_flattened_positions(name: str) -> None:
    """Catches a loss that treats height and width unlike one axis of positions."""
    student, teacher = batch(2, 3, 4, 6, seed=3), batch(2, 3, 4, 6, seed=4)
    flat = [side.flatten(2) for side in (student, teacher)]
    torch.testing.assert_close(
        LOSSES[name](student, teacher, reduction="none"), LOSSES[name](*flat, reduction="none")
    )


@pytest.mark.parametrize("name", ["hint", "cosine", "mse"])
def test_vectors_have_no_positions(name: str) -> None:
    """Catches a mean that runs over the batch where there is no position axis."""
    student, teacher = batch(4, 3, seed=5), batch(4, 3, seed=6)
    expected = LOSSES[name](student.unsqueeze(2), teacher.unsqueeze(2), reduction="none")
    value = LOSSES[name](student, teacher, reduction="none")
    assert value.shape == (4,)
    torch.testing.assert_close(value, expected)


def test_negative_axes_count_from_the_end() -> None:
    """Catches an axis check that lets the sample axis in by its other name, or refuses the last one."""
    student, teacher = batch(2, 5, 3, seed=7), batch(2, 5, 3, seed=8)
    for loss in (cosine_distance, normalized_mse):
        last = loss(student, teacher, axis=-1, reduction="none")
        torch.testing.assert_close(last, loss(student, teacher, axis=2, reduction="none"))
        for wrong in (0, -3, 3):
            with pytest.raises(ValueError, match=f"axis: got {wrong}"):
                loss(student, teacher, axis=wrong, reduction="none")


@EVERY
def test_gradients(name: str) -> None:
    """Catches a term that is cut off from the graph, and a teacher side that differs from the student's."""
    student, teacher = batch(2, 3, 4, seed=9).requires_grad_(), batch(2, 3, 4, seed=10).requires_grad_()
    loss = LOSSES[name]
    assert torch.autograd.gradcheck(
        lambda s, t: loss(s, t, reduction="none", teacher_grad=True), (student, teacher)
    )


@EVERY
def test_the_teacher_gets_no_gradient(name: str) -> None:
    """Catches a teacher that is trained towards the student."""
    student, teacher = batch(2, 3, 4, seed=11).requires_grad_(), batch(2, 3, 4, seed=12).requires_grad_()
    LOSSES[name](student, teacher, reduction="mean").backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() > 0


@EVERY
def test_identity(name: str) -> None:
    """Catches a loss or a gradient that is left over where student and teacher agree."""
    student = batch(3, 4, 5, seed=13).requires_grad_()
    loss = LOSSES[name](student, student.detach().clone(), reduction="mean")
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-15)
    assert student.grad is not None
    assert student.grad.abs().max().item() < 1e-15


@pytest.mark.parametrize("name", ["attention", "cosine", "mse"])
def test_scale_does_not_matter(name: str) -> None:
    """Catches a missing normalization of one of the sides."""
    student, teacher = batch(3, 4, 5, seed=14), batch(3, 4, 5, seed=15)
    torch.testing.assert_close(
        LOSSES[name](100.0 * student, 0.01 * teacher, reduction="none"),
        LOSSES[name](student, teacher, reduction="none"),
    )


def test_attention_needs_neither_equal_channels_nor_their_order() -> None:
    """Catches a map that depends on which channel is active."""
    student, teacher = batch(2, 6, 5, seed=16), batch(2, 3, 5, seed=17)
    value = attention_transfer(student, teacher, reduction="none")
    torch.testing.assert_close(attention_transfer(student.flip(1), teacher, reduction="none"), value)


def test_attention_power() -> None:
    """Catches a power that is ignored, or applied without the absolute value."""
    features = torch.tensor([[[-1.0, 2.0]]])
    assert attention_maps(features, power=1.0)[0].tolist() == pytest.approx([1 / 5**0.5, 2 / 5**0.5])
    assert attention_maps(features, power=3.0)[0].tolist() == pytest.approx([1 / 65**0.5, 8 / 65**0.5])


def test_normalized_mse_is_twice_the_cosine_distance_and_keeps_its_digits() -> None:
    """Catches 2 - 2 cos, which is 0 or negative in float32 where two directions nearly agree."""
    student, teacher = batch(3, 4, 5, seed=18), batch(3, 4, 5, seed=19)
    torch.testing.assert_close(
        normalized_mse(student, teacher, axis=1, reduction="none"),
        2 * cosine_distance(student, teacher, axis=1, reduction="none"),
    )
    near = torch.tensor([[1.0, 1e-5]]), torch.tensor([[1.0, 0.0]])
    assert normalized_mse(*near, axis=1, reduction="mean").item() == pytest.approx(1e-10, rel=1e-3)


@EVERY
def test_a_dead_layer_gives_finite_numbers(name: str) -> None:
    """Catches 0/0 of features that are all zero, as after a dead ReLU."""
    student = torch.zeros(2, 3, 4, requires_grad=True)
    loss = LOSSES[name](student, batch(2, 3, 4, seed=20).float(), reduction="mean")
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@EVERY
def test_nan_stays_with_its_sample(name: str) -> None:
    """Catches a broken feature that is hidden, or that spoils the other samples."""
    student, teacher = batch(3, 4, 5, seed=21), batch(3, 4, 5, seed=22)
    student[1, 0, 0] = torch.nan
    assert LOSSES[name](student, teacher, reduction="none").isnan().tolist() == [False, True, False]


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_but_not_computed_in(name: str, dtype: torch.dtype) -> None:
    """Catches sums in bfloat16 (3 digits) and squares that overflow float16 (from 256 on)."""
    student, teacher = (300 * batch(2, 16, 8, seed=s).to(dtype) for s in (23, 24))
    value = LOSSES[name](student, teacher, reduction="none")
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, LOSSES[name](student.float(), teacher.float(), reduction="none"))


@EVERY
@pytest.mark.parametrize(
    ("student", "teacher", "reduction", "error", "message"),
    [
        (
            torch.ones(2, 3, 4),
            torch.ones(1, 3, 4),
            "mean",
            ValueError,
            r"student_features \(2, 3, 4\) and teacher",
        ),
        (torch.ones(2, 3, 4), torch.ones(2, 3, 5), "mean", ValueError, r"teacher_features \(2, 3, 5\)"),
        (torch.ones(2), torch.ones(2), "mean", ValueError, r"student_features: got shape \(2,\)"),
        (torch.ones(2, 0, 4), torch.ones(2, 0, 4), "mean", ValueError, r"got shape \(2, 0, 4\)"),
        (
            torch.ones(2, 3, 4),
            torch.ones(2, 3, 4, dtype=torch.uint8),
            "mean",
            TypeError,
            "teacher_features: got",
        ),
        (torch.ones(2, 3, 4), torch.ones(2, 3, 4), "batchmean", ValueError, "got 'batchmean'"),
    ],
)
def test_wrong_arguments_are_refused(
    name: str, student: Tensor, teacher: Tensor, reduction: str, error: type[Exception], message: str
) -> None:
    """Catches broadcasting of unlike features, integers without gradient, a mean that is not per sample."""
    with pytest.raises(error, match=message):
        LOSSES[name](student, teacher, reduction=reduction)


def test_unlike_channels_are_refused_except_by_attention() -> None:
    """Catches a student that was not projected, compared by broadcasting its single channel."""
    student, teacher = torch.ones(2, 1, 4), torch.ones(2, 3, 4)
    for name in ("hint", "cosine", "mse"):
        with pytest.raises(ValueError, match="Project channels"):
            LOSSES[name](student, teacher, reduction="mean")
    assert attention_transfer(student, teacher, reduction="mean").item() == 0.0
    with pytest.raises(ValueError, match="power: got 0"):
        attention_maps(student, power=0)
