"""DKD: against the paper's definition in plain loops, its decomposition of KL, and confident teachers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdzoo.losses import decoupled
from kdzoo.losses.decoupled import dkd, dkd_parts
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.masks import valid_labels

PLAIN = {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "scale_by_temperature_squared": True, "axis": -1}


def pair(*shape: int, classes_at: int = -1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * 3
    items = student.movedim(classes_at, -1).shape[:-1]
    targets = torch.randint(0, shape[classes_at], items, generator=generator)
    return student.requires_grad_(), teacher, targets


def loop_parts(student: list[float], teacher: list[float], y: int, temperature: float) -> tuple[float, float]:
    """Definition of the paper: softmaxes over all and over the others, two sums p log(p/q)."""
    both = []
    for row in (student, teacher):
        powers = [math.exp(x / temperature) for x in row]
        others = [power for i, power in enumerate(powers) if i != y]
        p_y = powers[y] / sum(powers)
        both.append(((p_y, sum(others) / sum(powers)), [power / sum(others) for power in others]))
    (q_pair, q_rest), (p_pair, p_rest) = both
    target = sum(a * math.log(a / b) for a, b in zip(p_pair, q_pair, strict=True))
    nontarget = sum(a * math.log(a / b) for a, b in zip(p_rest, q_rest, strict=True))
    return target, nontarget


@pytest.fixture(params=["plain", "chunked"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(decoupled, "SMALL", -1 if request.param == "chunked" else 1 << 17)
    return request.param


def test_hand_sized_numbers(form: str) -> None:
    """Target and non-target exchanged, or a missing T^2: p_y = 1/2 against q_y = 1/3, others (1/4, 3/4) of the rest."""
    teacher = torch.tensor([[math.log(4.0), math.log(1.0), math.log(3.0)]]) * 2  # T = 2: p = (4, 1, 3) / 8
    student = torch.zeros(1, 3)
    target, nontarget = dkd_parts(student, teacher, torch.tensor([0]), temperature=2.0, axis=1)
    want_target = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    want_nontarget = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert target.item() == pytest.approx(want_target, rel=1e-6)
    assert nontarget.item() == pytest.approx(want_nontarget, rel=1e-6)
    settings = {**PLAIN, "temperature": 2.0}
    total = dkd(student, teacher, torch.tensor([0]), reduction="mean", **settings)
    assert total.item() == pytest.approx(4 * (want_target + 8 * want_nontarget), rel=1e-6)
    plain = dkd(
        student,
        teacher,
        torch.tensor([0]),
        reduction="mean",
        **{**settings, "scale_by_temperature_squared": False},
    )
    assert plain.item() == pytest.approx(want_target + 8 * want_nontarget, rel=1e-6)


def test_agrees_with_loops(form: str) -> None:
    """Any deviation from the definition, per item and in both parts."""
    student, teacher, targets = pair(6, 5)
    target, nontarget = dkd_parts(student, teacher, targets, temperature=3.0, axis=-1)
    rows = zip(student.detach().tolist(), teacher.tolist(), targets.tolist(), strict=True)
    want = torch.tensor([loop_parts(s, t, y, 3.0) for s, t, y in rows], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([target, nontarget], 1), want, rtol=1e-11, atol=1e-12)


def test_decomposes_kl(form: str) -> None:
    """The identity that gives DKD its name: KL(p || q) = TCKD + (1 - p_y) NCKD."""
    student, teacher, targets = pair(6, 5, 4, 3, classes_at=1)
    target, nontarget = dkd_parts(student, teacher, targets, temperature=2.0, axis=1)
    p_y = torch.softmax(teacher / 2.0, 1).gather(1, targets.unsqueeze(1)).squeeze(1)
    kl = kl_divergence(student, teacher, temperature=2.0, axis=1, reduction="none")
    torch.testing.assert_close(target + (1 - p_y) * nontarget, kl)


@pytest.mark.parametrize(("t_odds", "s_odds"), [(30.0, 20.0), (150.0, 120.0), (150.0, -5.0), (-12.0, -11.3)])
def test_exact_for_confident_sides(form: str, t_odds: float, s_odds: float) -> None:
    """1 - p_y rounded to 0, log 0, or large terms that cancel: float32 must agree with float64 to a few ulp."""
    base = torch.tensor([[0.0, 0.0, -1.0, 0.5]], dtype=torch.float64)
    teacher, student = base.clone(), base.flip(1)
    teacher[0, 1] += t_odds
    student[0, 1] += s_odds
    results = []
    for dtype in (torch.float32, torch.float64):
        s = student.to(dtype).requires_grad_()
        target, nontarget = dkd_parts(s, teacher.to(dtype), torch.tensor([1]), temperature=1.0, axis=1)
        (gradient,) = torch.autograd.grad((target + nontarget).sum(), s)
        results.append((target.double().item(), nontarget.double().item(), gradient.double()))
    (target, nontarget, gradient), (want_target, want_nontarget, want_gradient) = results
    # float32 itself rounds an odds of 150 to 1.5e-5, and e^-x turns that into a relative error
    assert target == pytest.approx(want_target, rel=1e-4, abs=1e-37)
    assert nontarget == pytest.approx(want_nontarget, rel=1e-5)
    assert math.isfinite(want_target)
    torch.testing.assert_close(gradient, want_gradient, rtol=1e-4, atol=1e-7)


def test_identity_and_shift(form: str) -> None:
    """A loss or a gradient at student = teacher; digits lost to a common offset."""
    _, teacher, targets = pair(6, 5)
    student = teacher.float().requires_grad_()
    loss = dkd(student, teacher.float(), targets, reduction="sum", **PLAIN)
    loss.backward()
    assert abs(loss.item()) < 1e-4
    assert student.grad.abs().max() < 1e-5
    other, teacher, targets = pair(6, 5, seed=1)
    want = dkd(other, teacher, targets, reduction="none", **PLAIN)
    got = dkd(other + 1000.0, teacher - 500.0, targets, reduction="none", **PLAIN)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_gradients(form: str) -> None:
    """A wrong derivative; a gradient into the teacher, or none when it is asked for."""
    student, teacher, targets = pair(3, 4)
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: dkd(s, teacher, targets, reduction="none", **PLAIN), (student,))
    dkd(student, teacher, targets, reduction="sum", **PLAIN).backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(
        lambda s, t: dkd(s, t, targets, reduction="none", teacher_grad=True, **PLAIN), (student, teacher)
    )


def test_mask_hides_items_without_a_label(form: str) -> None:
    """A label of -100 gathered as a class, or NaN padding that reaches the gradient."""
    student, teacher, targets = pair(4, 5)
    targets[1] = -100
    mask = valid_labels(targets, ignore_index=-100)
    dirty = student.detach().clone()
    dirty[1] = math.nan
    dirty.requires_grad_()
    got = dkd(dirty, teacher, targets, reduction="mean", mask=mask, **PLAIN)
    want = dkd(student[mask], teacher[mask], targets[mask], reduction="mean", **PLAIN)
    torch.testing.assert_close(got, want)
    got.backward()
    want.backward()
    torch.testing.assert_close(dirty.grad, student.grad)


def test_degenerate_and_bad_input(form: str) -> None:
    """One class, an empty batch, NaN, labels out of range: refused or passed on, never a plausible number."""
    student, teacher, targets = pair(3, 5)
    with pytest.raises(ValueError, match="got 1 class, expected at least 2"):
        dkd(student[:, :1], teacher[:, :1], targets * 0, reduction="mean", **PLAIN)
    with pytest.raises(ValueError, match="got values from -1 to"):
        dkd(student, teacher, torch.tensor([0, -1, 4]), reduction="mean", **PLAIN)
    with pytest.raises(ValueError, match="expected 0 to 4"):
        dkd(student, teacher, torch.tensor([0, 1, 5]), reduction="mean", **PLAIN)
    with pytest.raises(ValueError, match=r"targets: got shape \(2,\), expected the item axes \(3,\)"):
        dkd(student, teacher, targets[:2], reduction="mean", **PLAIN)
    with pytest.raises(TypeError, match=r"targets: got dtype torch\.float64"):
        dkd(student, teacher, teacher[:, 0], reduction="mean", **PLAIN)
    with pytest.raises(ValueError, match="temperature"):
        dkd(student, teacher, targets, reduction="mean", **{**PLAIN, "temperature": 0.0})
    assert dkd(student[:0], teacher[:0], targets[:0], reduction="sum", **PLAIN).item() == 0.0
    two = dkd_parts(student[:, :2], teacher[:, :2], targets % 2, temperature=1.0, axis=1)[1]
    assert two.tolist() == [0.0] * 3  # nothing to rank among one other class
    teacher[1, 2] = math.nan
    assert dkd(student, teacher, targets, reduction="none", **PLAIN).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_only_read(form: str, dtype: torch.dtype) -> None:
    """Log odds formed in half precision."""
    student, teacher, targets = pair(4, 300)
    s, t = student.detach().to(dtype), teacher.to(dtype)
    got = dkd(s, t, targets, reduction="none", **PLAIN)
    assert got.dtype == torch.float32
    want = dkd(s.double(), t.double(), targets, reduction="none", **PLAIN)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
