"""DIST: against Pearson in plain loops, its invariance, and samples or classes without variance."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from kdzoo.losses.correlation import dist, inter_class_loss, intra_class_loss

PLAIN = {"beta": 1.5, "gamma": 0.5, "temperature": 2.0, "scale_by_temperature_squared": False, "axis": 1}


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * 2
    return student.requires_grad_(), teacher


def softmax_rows(logits: Tensor, temperature: float) -> list[list[float]]:
    rows = []
    for row in logits.detach().tolist():
        powers = [math.exp(x / temperature) for x in row]
        rows.append([x / sum(powers) for x in powers])
    return rows


def columns(rows: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]


def loop(student: list[list[float]], teacher: list[list[float]]) -> list[float]:
    return [1 - statistics.correlation(a, b) for a, b in zip(student, teacher, strict=True)]


def test_agrees_with_loops() -> None:
    """Any deviation from 1 - Pearson per sample and per class, or in the weighted sum."""
    student, teacher = pair(6, 5)
    q, p = softmax_rows(student, 2.0), softmax_rows(teacher, 2.0)
    inter = inter_class_loss(student, teacher, temperature=2.0, axis=1, reduction="none")
    intra = intra_class_loss(student, teacher, temperature=2.0, axis=1, reduction="none")
    assert inter.tolist() == pytest.approx(loop(q, p), rel=1e-10)
    assert intra.tolist() == pytest.approx(loop(columns(q), columns(p)), rel=1e-10)
    want = 1.5 * statistics.mean(loop(q, p)) + 0.5 * statistics.mean(loop(columns(q), columns(p)))
    assert dist(student, teacher, **PLAIN).item() == pytest.approx(want, rel=1e-10)
    squared = dist(student, teacher, **{**PLAIN, "scale_by_temperature_squared": True})
    assert squared.item() == pytest.approx(4 * want, rel=1e-10)


def test_hand_sized_numbers() -> None:
    """The sign: opposite orders cost 2, the same order 0."""
    up, down = torch.tensor([[0.2, 0.3, 0.5]]).log(), torch.tensor([[0.4, 1 / 3, 4 / 15]]).log()
    settings = {"temperature": 1.0, "axis": 1, "reduction": "mean"}
    # deviations (-4, -1, 5) / 30 and (2, 0, -2) / 30: r = -18 / sqrt(42 * 8)
    want = 1 + 18 / math.sqrt(42 * 8)
    assert inter_class_loss(up, down, **settings).item() == pytest.approx(want, rel=1e-5)
    assert inter_class_loss(up, up, **settings).item() == pytest.approx(0.0, abs=1e-6)


def test_identity_and_shift() -> None:
    """A loss or gradient at student = teacher; an offset of the logits that is seen."""
    _, teacher = pair(6, 5)
    student = teacher.clone().requires_grad_()
    loss = dist(student, teacher, **PLAIN)
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert student.grad.abs().max() < 1e-8
    other, _ = pair(6, 5, seed=1)
    torch.testing.assert_close(dist(other + 100.0, teacher - 50.0, **PLAIN), dist(other, teacher, **PLAIN))


def test_only_linear_relation_counts() -> None:
    """The point of the paper: a student flatter than its teacher, in the same proportions, costs nothing."""
    _, teacher = pair(6, 5)
    p = torch.softmax(teacher, 1)
    flat = (0.3 * p + 0.7 / 5).log()
    loss = inter_class_loss(flat, teacher, temperature=1.0, axis=1, reduction="mean")
    assert abs(loss.item()) < 1e-12


def test_maps_are_rows() -> None:
    """Pixels mixed with classes: a map must equal the list of its pixels, in both parts."""
    student, teacher = pair(2, 5, 3, 4)
    flat = [x.movedim(1, -1).reshape(-1, 5) for x in (student, teacher)]
    torch.testing.assert_close(dist(student, teacher, **PLAIN), dist(*flat, **PLAIN))
    inter = inter_class_loss(student, teacher, temperature=1.0, axis=1, reduction="none")
    want = inter_class_loss(*flat, temperature=1.0, axis=1, reduction="none")
    torch.testing.assert_close(inter, want.reshape(2, 3, 4))


def test_mask_equals_leaving_out() -> None:
    """A masked item that shifts the class means, or whose NaN reaches the gradient."""
    student, teacher = pair(6, 5)
    mask = torch.tensor([True, True, False, True, False, True])
    dirty = student.detach().clone()
    dirty[~mask] = math.nan
    dirty.requires_grad_()
    got, want = dist(dirty, teacher, mask=mask, **PLAIN), dist(student[mask], teacher[mask], **PLAIN)
    torch.testing.assert_close(got, want)
    got.backward()
    want.backward()
    torch.testing.assert_close(dirty.grad, student.grad)
    settings = {"temperature": 1.0, "axis": 1}
    inter = inter_class_loss(dirty, teacher, reduction="none", mask=mask, **settings)
    assert inter[~mask].tolist() == [0.0, 0.0]
    torch.testing.assert_close(
        inter_class_loss(dirty, teacher, reduction="mean", mask=mask, **settings),
        inter_class_loss(student[mask], teacher[mask], reduction="mean", **settings),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_variance_is_uncorrelated_with_zero_gradient(dtype: torch.dtype) -> None:
    """0/0 = NaN, or rounding noise blown up to a gradient of 1e8, where a row is constant up to rounding."""
    noise = 1e-7 if dtype == torch.float32 else 1e-16
    student = torch.tensor([[0.1, 0.1, 0.1 + noise], [3.0, 0.0, 1.0]], dtype=dtype).requires_grad_()
    teacher = torch.tensor([[1.0, 2.0, 0.0], [0.3, 0.3, 0.3]], dtype=dtype)
    loss = inter_class_loss(student, teacher, temperature=1.0, axis=1, reduction="none")
    loss.sum().backward()
    assert loss.tolist() == [1.0, 1.0]
    assert not bool(student.grad.any())


def test_faint_variance_still_counts() -> None:
    """A floor so high that nearly uniform samples or rare classes are taken for constant; products that underflow."""
    nearly_uniform = 1e-3 * torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
    settings = {"temperature": 4.0, "axis": 1, "reduction": "none"}
    assert inter_class_loss(nearly_uniform, nearly_uniform, **settings).abs().max() < 1e-4
    generator = torch.Generator().manual_seed(0)
    common = torch.zeros(8, 1)
    for level in (-14.0, -40.0):
        rare = level + torch.randn(8, 2, generator=generator)
        logits = torch.cat([common, rare], 1)
        loss = intra_class_loss(logits, logits, temperature=1.0, axis=1, reduction="none")
        assert loss[1:].abs().max() < 1e-5


def test_gradients() -> None:
    """A wrong derivative; a gradient into the teacher, or none when it is asked for."""
    student, teacher = pair(4, 3)
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: dist(s, teacher, **PLAIN), (student,))
    dist(student, teacher, **PLAIN).backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda s, t: dist(s, t, teacher_grad=True, **PLAIN), (student, teacher))


def test_degenerate_and_bad_input() -> None:
    """A batch of one, one class, NaN: refused or passed on, never a plausible number."""
    student, teacher = pair(3, 5)
    with pytest.raises(ValueError, match="got 1 item, expected at least 2"):
        dist(student[:1], teacher[:1], **PLAIN)
    with pytest.raises(ValueError, match="got 1 item, expected at least 2"):
        dist(student, teacher, mask=torch.tensor([True, False, False]), **PLAIN)
    with pytest.raises(ValueError, match="got 1 class, expected at least 2"):
        dist(student[:, :1], teacher[:, :1], **PLAIN)
    with pytest.raises(ValueError, match="ambiguous"):
        dist(student, teacher, **{**PLAIN, "temperature": (1.0, 2.0), "scale_by_temperature_squared": True})
    with pytest.raises(ValueError, match="equal shapes"):
        dist(student, teacher[:2], **PLAIN)
    empty = inter_class_loss(student[:0], teacher[:0], temperature=1.0, axis=1, reduction="sum")
    assert empty.item() == 0.0
    teacher[1, 2] = math.nan
    assert math.isnan(dist(student, teacher, **PLAIN).item())
    inter = inter_class_loss(student, teacher, temperature=1.0, axis=1, reduction="none")
    assert inter.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_only_read(dtype: torch.dtype) -> None:
    """Means and variances formed in half precision."""
    student, teacher = pair(16, 20)
    s, t = student.detach().to(dtype), teacher.to(dtype)
    got = dist(s, t, **PLAIN)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), dist(s.double(), t.double(), **PLAIN), rtol=1e-5, atol=1e-6)
