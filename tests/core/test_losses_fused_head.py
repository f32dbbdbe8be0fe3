"""The losses fused with the output head: against whole logits, in every chunking, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdzoo.losses import fused_head
from kdzoo.losses.bounded import skew_kl
from kdzoo.losses.chunk_forms import KL, Form, JensenShannon, ReverseKL, SkewKL
from kdzoo.losses.divergences import js_divergence, kl_divergence, reverse_kl
from kdzoo.losses.fused_head import Head, HeadLoss, head_loss
from kdzoo.losses.masks import valid_labels

V, WIDTH, TEACHER_WIDTH = 7, 4, 6
SETTINGS = {"divergence_weight": 0.7, "label_weight": 1.3, "reduction": "sum", "temperature": (2.0, 1.5)}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def student(dtype: torch.dtype = torch.float64, bias: bool = True) -> Head:
    parts = draw(3, 5, WIDTH, dtype=dtype), draw(V, WIDTH, seed=1, dtype=dtype), draw(V, seed=2, dtype=dtype)
    for part in parts:
        part.requires_grad_()
    return Head(*parts) if bias else Head(*parts[:2])


def teacher(dtype: torch.dtype = torch.float64) -> Head:
    return Head(draw(3, 5, TEACHER_WIDTH, seed=3, dtype=dtype), draw(V, TEACHER_WIDTH, seed=4, dtype=dtype))


def labels() -> tuple[Tensor, Tensor]:
    found = torch.randint(-3, V, (3, 5), generator=torch.Generator().manual_seed(5)).clamp(min=-1)
    found = found.masked_fill(found < 0, -100)
    return found, valid_labels(found, ignore_index=-100)


def logits(head: Head) -> Tensor:
    return head.hidden @ head.weight.t() + (0.0 if head.bias is None else head.bias)


def whole(z: Tensor, y: Tensor, form: Form, at: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(total, divergence, cross-entropy) from logits that exist."""
    settings = {"temperature": SETTINGS["temperature"], "axis": -1, "reduction": "none", "mask": mask}
    match form:
        case KL():
            apart = kl_divergence(z, y, **settings)
        case ReverseKL():
            apart = reverse_kl(z, y, **settings)
        case JensenShannon():
            apart = js_divergence(z, y, beta=form.beta, **settings)
        case _:
            apart = skew_kl(z, y, alpha=0.1, **settings)
    chosen = z.gather(-1, at.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    ce = (z.logsumexp(-1) - chosen) * mask
    return 0.7 * apart.sum() + 1.3 * ce.sum(), apart, ce


def leaves(head: Head) -> list[Tensor]:
    return [part for part in head if part is not None]


@pytest.mark.parametrize("form", [KL(), ReverseKL(), JensenShannon(0.3), SkewKL(0.1)])
@pytest.mark.parametrize("rows", [1, 4, 100, None])
@pytest.mark.parametrize("as_logits", [False, True])
def test_agrees_with_whole_logits(form: Form, rows: int | None, as_logits: bool) -> None:
    """A row lost between chunks, a term without its weight, a teacher's temperature on the labels."""
    ours, theirs = student(bias=rows != 4), teacher()
    at, mask = labels()
    want, apart, ce = whole(logits(ours), logits(theirs), form, at, mask)
    given = logits(theirs) if as_logits else theirs
    got = head_loss(ours, given, divergence=form, labels=at, mask=mask, rows=rows, **SETTINGS)
    torch.testing.assert_close(got, HeadLoss(want, apart.detach(), ce.detach()))
    assert not got.divergence.requires_grad
    gradients = torch.autograd.grad(3 * want, leaves(ours))
    for found, gradient in zip(torch.autograd.grad(3 * got.total, leaves(ours)), gradients, strict=True):
        torch.testing.assert_close(found, gradient)
    mean = head_loss(
        ours, given, divergence=form, labels=at, mask=mask, rows=rows, **{**SETTINGS, "reduction": "mean"}
    )
    torch.testing.assert_close(mean.total, want / mask.sum())
    (found,) = torch.autograd.grad(mean.total, ours.weight)
    torch.testing.assert_close(found, gradients[1] / (3 * mask.sum()))


def test_each_term_alone() -> None:
    """A term that needs the other one, or counts although it was not asked for."""
    ours, theirs = student(), teacher()
    at, mask = labels()
    z = logits(ours)
    total, apart, ce = whole(z, logits(theirs), KL(), at, mask)
    only_kl = head_loss(ours, theirs, divergence=KL(), labels=None, mask=mask, **SETTINGS)
    only_ce = head_loss(ours, None, divergence=None, labels=at, mask=mask, **SETTINGS)
    for got, want, empty in (
        (only_kl, 0.7 * apart.sum(), only_kl.cross_entropy),
        (only_ce, 1.3 * ce.sum(), only_ce.divergence),
    ):
        torch.testing.assert_close(got.total, want)
        assert not bool(empty.any())
        gradients = torch.autograd.grad(want, leaves(ours), retain_graph=True)
        for found, gradient in zip(torch.autograd.grad(got.total, leaves(ours)), gradients, strict=True):
            torch.testing.assert_close(found, gradient)
    torch.testing.assert_close(only_kl.total + only_ce.total, total)


def test_by_hand() -> None:
    """One token, two classes: KL((3/4, 1/4) || (1/2, 1/2)) and log 2, and their gradient."""
    weight = torch.zeros(2, 1, requires_grad=True)
    said = torch.tensor([[3.0, 1.0]]).log()
    got = head_loss(
        Head(torch.tensor([[2.0]]), weight),
        said,
        divergence=KL(),
        labels=torch.tensor([1]),
        temperature=1.0,
        divergence_weight=1.0,
        label_weight=10.0,
        reduction="sum",
    )
    assert got.divergence.item() == pytest.approx(
        math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25), 1e-5
    )
    assert got.cross_entropy.item() == pytest.approx(math.log(2), rel=1e-6)
    got.total.backward()
    # dz = (1/2 - 3/4 + 10/2, 1/2 - 1/4 + 10 (1/2 - 1)); times the hidden state 2
    assert weight.grad.flatten().tolist() == pytest.approx([9.5, -9.5])


def test_gradcheck() -> None:
    """A wrong derivative by hidden states, weight or bias."""
    at, mask = labels()

    def total(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        head = Head(hidden, weight, bias)
        return head_loss(
            head, teacher(), divergence=JensenShannon(0.5), labels=at, mask=mask, rows=4, **SETTINGS
        ).total

    # gradcheck goes backward twice over one graph to see whether it repeats; this one gives its gradients away.
    for number in range(3):
        ours = student()
        analytic = torch.autograd.grad(total(*ours), ours[number])[0]
        for place in range(0, analytic.numel(), 5):
            step = torch.zeros(analytic.numel(), dtype=torch.float64)
            step[place] = 1e-6
            step = step.view(analytic.shape)
            with torch.no_grad():
                up, down = (
                    total(*(part + sign * step if i == number else part for i, part in enumerate(ours)))
                    for sign in (1, -1)
                )
            assert analytic.flatten()[place].item() == pytest.approx(((up - down) / 2e-6).item(), abs=1e-7)


def test_only_what_wants_a_gradient_gets_one() -> None:
    """A frozen head that is given a V x D gradient, a teacher that learns, a graph in evaluation."""
    ours, theirs = student(), teacher()
    at, mask = labels()
    theirs.hidden.requires_grad_()
    theirs.weight.requires_grad_()
    frozen = Head(ours.hidden, ours.weight.detach(), ours.bias.detach())
    head_loss(frozen, theirs, divergence=KL(), labels=at, mask=mask, **SETTINGS).total.backward()
    assert ours.hidden.grad is not None
    assert theirs.hidden.grad is None
    assert theirs.weight.grad is None
    full = student()
    head_loss(full, theirs, divergence=KL(), labels=at, mask=mask, **SETTINGS).total.backward()
    torch.testing.assert_close(ours.hidden.grad, full.hidden.grad)
    with torch.no_grad():
        quiet = head_loss(ours, theirs, divergence=KL(), labels=at, mask=mask, **SETTINGS)
    assert not quiet.total.requires_grad


def test_identity_and_hidden_tokens() -> None:
    """A student equal to its teacher that moves; NaN in a hidden token that reaches the weight."""
    ours = student(torch.float32)
    same = Head(*(part.detach().clone() for part in ours))
    settings = {**SETTINGS, "temperature": 2.0}
    got = head_loss(ours, same, divergence=KL(), labels=None, **settings)
    got.total.backward()
    assert got.divergence.flatten().tolist() == [0.0] * 15
    assert not any(bool(part.grad.any()) for part in leaves(ours))
    hidden = torch.zeros(3, 5, dtype=torch.bool)
    dirty = Head(
        torch.full((3, 5, WIDTH), math.nan, requires_grad=True), ours.weight.detach().requires_grad_()
    )
    nothing = head_loss(dirty, same, divergence=KL(), labels=None, mask=hidden, **settings)
    nothing.total.backward()
    assert nothing.total.item() == 0.0
    assert not any(bool(part.grad.any()) for part in leaves(dirty))


def test_forbidden_classes_of_the_teacher() -> None:
    """0 * -inf in the weight's gradient, where the teacher's logits close classes."""
    ours, said = student(), logits(teacher())
    said[..., :2] = -math.inf
    mask = torch.ones(3, 5, dtype=torch.bool)
    at = torch.zeros(3, 5, dtype=torch.int64)
    want, _, _ = whole(logits(ours), said, KL(), at, mask)
    got = head_loss(ours, said, divergence=KL(), labels=at, **SETTINGS)
    torch.testing.assert_close(got.total, want)
    gradients = torch.autograd.grad(want, leaves(ours))
    for found, gradient in zip(torch.autograd.grad(got.total, leaves(ours)), gradients, strict=True):
        torch.testing.assert_close(found, gradient)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(monkeypatch: pytest.MonkeyPatch, autocast: bool) -> None:
    """Sums in bfloat16, a gradient of another dtype than its parameter, or autocast that is not heard."""
    monkeypatch.setattr(fused_head, "WEIGHT_BLOCK", 3)  # the weight's gradient in uneven blocks
    dtype = torch.float32 if autocast else torch.bfloat16
    ours, theirs = student(dtype), teacher(dtype)
    at, mask = labels()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = head_loss(ours, theirs, divergence=KL(), labels=at, mask=mask, rows=2, **SETTINGS)
        want, apart, _ = whole(logits(ours).float(), logits(theirs).float(), KL(), at, mask)
    assert got.total.dtype == torch.float32
    torch.testing.assert_close(got.divergence, apart.detach(), rtol=0.03, atol=0.03)
    gradients = torch.autograd.grad(want, leaves(ours))
    for found, gradient, part in zip(
        torch.autograd.grad(got.total, leaves(ours)), gradients, leaves(ours), strict=True
    ):
        assert found.dtype == part.dtype
        torch.testing.assert_close(found, gradient, rtol=0.05, atol=0.05)


def test_views_of_hidden_states() -> None:
    """`hidden[:, :-1]` read as if it were contiguous."""
    ours, theirs = student(), teacher()
    at, _ = labels()
    at = at.clamp(min=0)[:, 1:]
    want, _, _ = whole(
        logits(ours)[:, :-1], logits(theirs)[:, :-1], KL(), at, torch.ones(3, 4, dtype=torch.bool)
    )
    cut = ours._replace(hidden=ours.hidden[:, :-1])
    got = head_loss(cut, logits(theirs)[:, :-1], divergence=KL(), labels=at, rows=3, **SETTINGS)
    torch.testing.assert_close(got.total, want)
    torch.testing.assert_close(
        torch.autograd.grad(got.total, ours.hidden)[0], torch.autograd.grad(want, ours.hidden)[0]
    )


def test_backward_once() -> None:
    """A second pass that silently returns gradients scaled twice, and a second derivative that is 0."""
    ours, theirs = student(), teacher()
    got = head_loss(ours, theirs, divergence=KL(), labels=None, **SETTINGS)
    got.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="got a second backward pass, expected one"):
        got.total.backward()
    again = head_loss(ours, theirs, divergence=KL(), labels=None, **SETTINGS)
    with pytest.raises(RuntimeError, match="got create_graph=True, expected a plain backward pass"):
        torch.autograd.grad(again.total, ours.weight, create_graph=True)


def test_bad_arguments_are_named() -> None:
    """Vocabularies padded in silence, labels of hidden tokens taken for classes, a mean of nothing."""
    ours, theirs = student(), teacher()
    at, mask = labels()
    good = {"divergence": KL(), "labels": None, **SETTINGS}
    with pytest.raises(ValueError, match=r"got a head of 6 classes beside the student's 7"):
        head_loss(ours, theirs._replace(weight=theirs.weight[:-1]), **good)
    with pytest.raises(ValueError, match=r"got a logits of 6 classes|logits of 6 classes"):
        head_loss(ours, logits(theirs)[..., :-1], **good)
    with pytest.raises(ValueError, match=r"teacher: got item axes \(2, 5\), expected the student's \(3, 5\)"):
        head_loss(ours, logits(theirs)[:2], **good)
    with pytest.raises(ValueError, match=r"labels: got -100 to \d where the mask counts, expected 0 to 6"):
        head_loss(ours, theirs, **{**good, "labels": at})
    with pytest.raises(TypeError, match=r"labels: got dtype torch.int32"):
        head_loss(ours, theirs, **{**good, "labels": at.int()}, mask=mask)
    with pytest.raises(ValueError, match="reduction: got 'none', expected 'sum' or 'mean'"):
        head_loss(ours, theirs, **{**good, "reduction": "none"})
    with pytest.raises(ValueError, match="no item that counts"):
        head_loss(ours, theirs, **{**good, "reduction": "mean"}, mask=torch.zeros(3, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="neither a divergence nor labels"):
        head_loss(ours, None, **{**good, "divergence": None})
    with pytest.raises(ValueError, match="teacher: got None beside a divergence"):
        head_loss(ours, None, **good)
    with pytest.raises(ValueError, match=r"student: got hidden \(3, 5, 4\) and weight \(4, 7\)"):
        head_loss(ours._replace(weight=ours.weight.t()), theirs, **good)
    with pytest.raises(ValueError, match="label_weight: got nan"):
        head_loss(ours, theirs, **{**good, "label_weight": math.nan})
    with pytest.raises(ValueError, match="temperature: got 0"):
        head_loss(ours, theirs, **{**good, "temperature": 0.0})
