"""Divergences: against hand-sized numbers, against plain loops written from the formula, and where they degenerate."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdzoo.losses import divergences
from kdzoo.losses.bounded import skew_kl, skew_reverse_kl, total_variation
from kdzoo.losses.divergences import entropy, js_divergence, kl_divergence, reverse_kl, soft_cross_entropy

INF = math.inf
Divergence = Callable[..., Tensor]


def js(student: Tensor, teacher: Tensor, **settings: object) -> Tensor:
    return js_divergence(student, teacher, beta=0.3, **settings)


def skew(student: Tensor, teacher: Tensor, **settings: object) -> Tensor:
    return skew_kl(student, teacher, alpha=0.2, **settings)


def skew_reverse(student: Tensor, teacher: Tensor, **settings: object) -> Tensor:
    return skew_reverse_kl(student, teacher, alpha=0.2, **settings)


DIVERGENCES = [kl_divergence, reverse_kl, js, skew, skew_reverse, total_variation]
ALL = [*DIVERGENCES, soft_cross_entropy]


def softmax(row: list[float], temperature: float) -> list[float]:
    top = max(row)
    powers = [math.exp((x - top) / temperature) for x in row]
    return [x / sum(powers) for x in powers]


def loop_kl(p: list[float], q: list[float]) -> float:
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0.0:
            total += INF if b == 0.0 else a * (math.log(a) - math.log(b))
    return total


def loop(name: Divergence, student: list[float], teacher: list[float], t_s: float, t_t: float) -> float:
    """The formula of one row, in Python floats."""
    q, p = softmax(student, t_s), softmax(teacher, t_t)
    if name is kl_divergence:
        return loop_kl(p, q)
    if name is reverse_kl:
        return loop_kl(q, p)
    if name is js:
        m = [0.3 * a + 0.7 * b for a, b in zip(p, q, strict=True)]
        return 0.3 * loop_kl(p, m) + 0.7 * loop_kl(q, m)
    if name is skew:
        return loop_kl(p, [0.2 * a + 0.8 * b for a, b in zip(p, q, strict=True)])
    if name is skew_reverse:
        return loop_kl(q, [0.8 * a + 0.2 * b for a, b in zip(p, q, strict=True)])
    if name is total_variation:
        return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True) if a > 0.0)


def pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * 3
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


@pytest.fixture(params=["plain", "chunked"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both forms of a divergence must pass every test: the size alone decides which one runs."""
    monkeypatch.setattr(divergences, "SMALL", -1 if request.param == "chunked" else 1 << 17)
    return request.param


def test_size_decides_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large vocabulary that quietly takes the plain form: right numbers, five times the memory."""

    def refuse(*args: object, **settings: object) -> Tensor:
        raise RuntimeError("chunked")

    monkeypatch.setattr(divergences, "chunked", refuse)
    settings = {"temperature": 1.0, "axis": -1, "reduction": "sum"}
    large, small = torch.zeros(3, 50_000), torch.zeros(64, 100)
    with pytest.raises(RuntimeError, match="chunked"):
        kl_divergence(large, large, **settings)
    assert kl_divergence(small, small, **settings).item() == 0.0
    assert kl_divergence(large, large, teacher_grad=True, **settings).item() == 0.0


def test_hand_sized_numbers(form: str) -> None:
    """A swapped direction, a log of base 2, or a forgotten temperature."""
    student = torch.tensor([[0.0, 0.0]])
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])  # at T = 2: p = (3/4, 1/4)
    settings = {"temperature": 2.0, "axis": -1, "reduction": "mean"}
    entropy_p = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert kl_divergence(student, teacher, **settings).item() == pytest.approx(
        math.log(2) - entropy_p, rel=1e-6
    )
    assert reverse_kl(student, teacher, **settings).item() == pytest.approx(
        math.log(2) - 0.5 * math.log(3), rel=1e-6
    )
    assert soft_cross_entropy(student, teacher, **settings).item() == pytest.approx(math.log(2), rel=1e-6)
    assert entropy(teacher, **settings).item() == pytest.approx(entropy_p, rel=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("temperature", [1.0, 4.0, (1.5, 3.0)])
def test_agrees_with_loops(form: str, name: Divergence, temperature: float | tuple[float, float]) -> None:
    """Any deviation from the formula, e.g. student and teacher temperatures exchanged."""
    student, teacher = pair(5, 7)
    t_s, t_t = temperature if isinstance(temperature, tuple) else (temperature, temperature)
    want = [
        loop(name, s, t, t_s, t_t) for s, t in zip(student.detach().tolist(), teacher.tolist(), strict=True)
    ]
    got = name(student, teacher, temperature=temperature, axis=-1, reduction="none")
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 4, 5), 1), ((2, 3, 4, 5), -2), ((4, 3), 0), ((6,), 0)])
def test_class_axis(form: str, name: Divergence, shape: tuple[int, ...], axis: int) -> None:
    """A softmax over the wrong axis, items returned in another order, or a gradient laid out wrongly."""
    student, teacher = pair(*shape)
    got = name(student, teacher, temperature=2.0, axis=axis, reduction="none")
    moved = student.detach().movedim(axis, -1).contiguous().requires_grad_()
    want = name(moved, teacher.movedim(axis, -1).contiguous(), temperature=2.0, axis=-1, reduction="none")
    torch.testing.assert_close(got, want)
    weights = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    torch.testing.assert_close(student.grad, moved.grad.movedim(-1, axis))


def test_channels_last_maps(form: str) -> None:
    """Memory format read as if it were the shape."""
    student, teacher = pair(2, 3, 4, 5)
    plain = kl_divergence(student, teacher, temperature=1.0, axis=1, reduction="none")
    other = student.detach().to(memory_format=torch.channels_last).requires_grad_()
    for t in (teacher, teacher.to(memory_format=torch.channels_last)):
        got = kl_divergence(other, t, temperature=1.0, axis=1, reduction="none")
        torch.testing.assert_close(got, plain)
        other.grad = None
        got.sum().backward()
        student.grad = None
        kl_divergence(student, teacher, temperature=1.0, axis=1, reduction="sum").backward()
        torch.testing.assert_close(other.grad, student.grad)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_identity(form: str, name: Divergence, temperature: float) -> None:
    """A cross-entropy called divergence: at student = teacher both loss and gradient must vanish."""
    _, teacher = pair(6, 11, dtype=torch.float32)
    student = teacher.clone().requires_grad_()
    loss = name(student, teacher, temperature=temperature, axis=-1, reduction="sum")
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert student.grad.abs().max() < 1e-6


def test_cross_entropy_at_equality_is_the_entropy() -> None:
    """Its documentation: the value at equality is H(teacher), not 0."""
    _, teacher = pair(6, 11)
    settings = {"temperature": 2.0, "axis": -1, "reduction": "none"}
    torch.testing.assert_close(soft_cross_entropy(teacher, teacher, **settings), entropy(teacher, **settings))


@pytest.mark.parametrize("name", ALL)
def test_shift_invariance(form: str, name: Divergence) -> None:
    """An overflow, or digits lost to a common offset: softmax does not see it, so no loss may."""
    student, teacher = pair(4, 9)
    settings = {"temperature": 1.0, "axis": -1, "reduction": "none"}
    want = name(student, teacher, **settings)
    got = name(student + 1000.0, teacher - 3000.0, **settings)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("temperature", [1.0, (2.0, 0.7)])
def test_gradcheck(form: str, name: Divergence, temperature: float | tuple[float, float]) -> None:
    """A wrong derivative, first or second."""
    student, teacher = pair(3, 5)

    def of_student(logits: Tensor) -> Tensor:
        return name(logits, teacher, temperature=temperature, axis=-1, reduction="none")

    assert torch.autograd.gradcheck(of_student, (student,))
    assert torch.autograd.gradgradcheck(of_student, (student,))


@pytest.mark.parametrize("name", ALL)
def test_teacher_gets_a_gradient_only_on_demand(form: str, name: Divergence) -> None:
    """A teacher trained through the loss by accident; or mutual learning that silently trains one side."""
    student, teacher = pair(3, 5)
    teacher.requires_grad_()
    settings = {"temperature": 2.0, "axis": -1, "reduction": "sum"}
    name(student, teacher, **settings).backward()
    assert teacher.grad is None
    assert student.grad is not None
    first = student.grad.clone()
    student.grad = None
    name(student, teacher, teacher_grad=True, **settings).backward()
    assert teacher.grad.abs().max() > 0
    torch.testing.assert_close(student.grad, first)
    assert torch.autograd.gradcheck(
        lambda s, t: name(s, t, teacher_grad=True, **settings), (student, teacher)
    )


@pytest.mark.parametrize("name", ALL)
def test_forbidden_classes(form: str, name: Divergence) -> None:
    """0 * log 0 = NaN, in the value or in the gradient, where both sides mask a class with -inf."""
    student, teacher = pair(3, 6)
    narrow = name(student[:, :4], teacher[:, :4], temperature=2.0, axis=-1, reduction="none")
    closed = torch.tensor([False] * 4 + [True] * 2)
    wide_student = student.detach().masked_fill(closed, -INF).requires_grad_()
    wide = name(wide_student, teacher.masked_fill(closed, -INF), temperature=2.0, axis=-1, reduction="none")
    torch.testing.assert_close(wide, narrow)
    wide.sum().backward()
    narrow.sum().backward()
    torch.testing.assert_close(wide_student.grad, student.grad)


def test_support_mismatch_is_infinite_only_where_it_should_be(form: str) -> None:
    """A clamp that hides a student without support, or an inf where the teacher needs none."""
    open_, shut = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, -INF]])
    settings = {"temperature": 1.0, "axis": -1, "reduction": "mean"}
    assert kl_divergence(shut, open_, **settings).item() == INF
    assert reverse_kl(open_, shut, **settings).item() == INF
    want = math.log(sum(math.exp(x) for x in (1.0, 2.0, 3.0)) / sum(math.exp(x) for x in (1.0, 2.0)))
    assert kl_divergence(open_, shut, **settings).item() == pytest.approx(want, rel=1e-6)
    assert reverse_kl(shut, open_, **settings).item() == pytest.approx(want, rel=1e-6)
    assert 0.0 < js_divergence(shut, open_, beta=0.5, **settings).item() < math.log(2)
    # the teacher's probability underflows to 0 although its logit is finite
    faint = torch.tensor([[1.0, 2.0, -500.0]])
    assert math.isfinite(kl_divergence(shut, faint, **settings).item())


@pytest.mark.parametrize("name", ALL)
def test_nan_stays_in_its_item(form: str, name: Divergence) -> None:
    """A NaN swallowed (a run trains on nonsense), or spread over the batch (nobody finds its sample)."""
    student, teacher = pair(4, 6)
    for spoiled in ("student", "teacher"):
        for bad in (math.nan, INF):
            s, t = student.detach().clone(), teacher.clone()
            (s if spoiled == "student" else t)[2, 3] = bad
            got = name(s, t, temperature=1.0, axis=-1, reduction="none")
            assert got.isnan().tolist() == [False, False, True, False]
    t = teacher.clone()
    t[1] = -INF
    got = name(student, t, temperature=1.0, axis=-1, reduction="none")
    assert got.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("axis", [1, 2])
def test_mask_equals_leaving_out(form: str, name: Divergence, axis: int) -> None:
    """A masked item that counts in the mean, or whose NaN reaches the gradient as 0 * NaN."""
    student, teacher = pair(3, 5, 5)
    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    dirty = student.detach().movedim(axis, -1).clone()
    dirty[~mask] = math.nan
    dirty = dirty.movedim(-1, axis).contiguous().requires_grad_()
    for reduction in ("sum", "mean"):
        student.grad, dirty.grad = None, None
        kept = student.movedim(axis, -1)[mask], teacher.movedim(axis, -1)[mask]
        want = name(*kept, temperature=2.0, axis=-1, reduction=reduction)
        got = name(dirty, teacher, temperature=2.0, axis=axis, reduction=reduction, mask=mask)
        torch.testing.assert_close(got, want)
        want.backward()
        got.backward()
        torch.testing.assert_close(dirty.grad, student.grad)
    rows = name(dirty, teacher, temperature=2.0, axis=axis, reduction="none", mask=mask)
    assert bool((rows[~mask] == 0).all())


@pytest.mark.parametrize("name", ALL)
def test_one_class_and_empty_batch(form: str, name: Divergence) -> None:
    """A crash on the last, empty batch; a loss where there is nothing to tell apart; a mean of nothing."""
    student, teacher = pair(3, 1)
    loss = name(student, teacher, temperature=1.0, axis=-1, reduction="sum")
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad.tolist() == [[0.0]] * 3
    student, teacher = pair(0, 4)
    loss = name(student, teacher, temperature=1.0, axis=-1, reduction="sum")
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad.shape == (0, 4)
    with pytest.raises(ValueError, match="no item that counts"):
        name(student, teacher, temperature=1.0, axis=-1, reduction="mean")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_only_read(form: str, name: Divergence, dtype: torch.dtype) -> None:
    """A sum accumulated in half precision: the result must be float32's on the same rounded logits."""
    student, teacher = pair(4, 3000, dtype=dtype)
    got = name(student, teacher, temperature=2.0, axis=-1, reduction="none")
    assert got.dtype == torch.float32
    exact = student.detach().double().requires_grad_()
    want = name(exact, teacher.double(), temperature=2.0, axis=-1, reduction="none")
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    got.sum().backward()
    want.sum().backward()
    assert student.grad.dtype == dtype
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_js_is_symmetric_and_bounded() -> None:
    """beta attached to the wrong side."""
    student, teacher = pair(8, 5)
    settings = {"temperature": 1.0, "axis": -1, "reduction": "none"}
    a = js_divergence(student, teacher, beta=0.3, **settings)
    b = js_divergence(teacher, student.detach(), beta=0.7, **settings)
    torch.testing.assert_close(a.detach(), b)
    half = js_divergence(student, teacher, beta=0.5, **settings)
    assert bool((half > 0).all())
    assert bool((half <= math.log(2)).all())
    near = js_divergence(student, teacher, beta=1e-6, **settings) / 1e-6
    torch.testing.assert_close(near, kl_divergence(student, teacher, **settings), rtol=1e-3, atol=1e-4)


def test_bad_arguments_are_named(form: str) -> None:
    """A silent broadcast, a division by T = 0, an integer tensor of labels taken for logits."""
    student, teacher = pair(3, 5)
    good = {"temperature": 1.0, "axis": -1, "reduction": "mean"}
    with pytest.raises(ValueError, match=r"got student \(3, 5\) and teacher \(1, 5\), expected equal shapes"):
        kl_divergence(student, teacher[:1], **good)
    with pytest.raises(TypeError, match=r"teacher_logits: got dtype torch\.int64"):
        kl_divergence(student, teacher.long(), **good)
    for temperature in (0.0, -1.0, math.nan, INF, (1.0, 0.0)):
        with pytest.raises(ValueError, match="temperature: got"):
            kl_divergence(student, teacher, **{**good, "temperature": temperature})
    with pytest.raises(ValueError, match="reduction: got 'batchmean'"):
        kl_divergence(student, teacher, **{**good, "reduction": "batchmean"})
    with pytest.raises(ValueError, match="axis: got 2"):
        kl_divergence(student, teacher, **{**good, "axis": 2})
    with pytest.raises(ValueError, match="got no class"):
        kl_divergence(student[:, :0], teacher[:, :0], **good)
    with pytest.raises(TypeError, match=r"mask: got dtype torch.float32, expected torch.bool"):
        kl_divergence(student, teacher, mask=torch.ones(3), **good)
    with pytest.raises(ValueError, match=r"mask: got shape \(3, 5\), expected the item axes \(3,\)"):
        kl_divergence(student, teacher, mask=torch.ones(3, 5, dtype=torch.bool), **good)
    with pytest.raises(ValueError, match="no item that counts"):
        kl_divergence(student, teacher, mask=torch.zeros(3, dtype=torch.bool), **good)
    for beta in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="beta: got"):
            js_divergence(student, teacher, beta=beta, **good)
