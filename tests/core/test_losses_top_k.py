"""Losses against the k largest logits: the same as against the dense teacher, without making it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdzoo.losses import top_k
from kdzoo.losses.divergences import kl_divergence, soft_cross_entropy
from kdzoo.losses.top_k import top_k_cross_entropy, top_k_kl
from kdzoo.signal_choice import POLICIES, Policy
from kdzoo.top_k import TopK, bucket, bucketed, compress, dense, from_bucket

K, V = 4, 11


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3).to(
        dtype
    )


def sides(student: Tensor, kept: TopK, policy: Policy) -> tuple[Tensor, Tensor]:
    if policy == "tail-bucket":
        return bucketed(student, kept.indices), bucket(kept)
    return student, dense(kept, student.shape[-1], policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("temperature", [1.0, (2.0, 3.0)])
@pytest.mark.parametrize("size", [1, 25, 10_000])
def test_equals_the_dense_teacher(
    monkeypatch: pytest.MonkeyPatch, policy: Policy, temperature: float | tuple[float, float], size: int
) -> None:
    """(B, T, V) tokens in chunks of one row, uneven ones and all: value and gradient, KL and cross-entropy."""
    monkeypatch.setattr(top_k, "chunk_size", lambda logits: size)
    student, kept = draw(3, 5, V).requires_grad_(), compress(draw(3, 5, V, seed=1), K)
    mask = draw(3, 5, seed=2) > 0
    weights = draw(3, 5, seed=3)
    for ours, plain in ((top_k_kl, kl_divergence), (top_k_cross_entropy, soft_cross_entropy)):
        s, t = sides(student, kept, policy)
        want = plain(s, t, temperature=temperature, axis=-1, reduction="none")
        (gradient,) = torch.autograd.grad((want * weights).sum(), student)
        for counts in (None, mask):
            got = ours(student, kept, policy=policy, temperature=temperature, reduction="none", mask=counts)
            hide = 1 if counts is None else counts
            torch.testing.assert_close(got, want * hide)
            (found,) = torch.autograd.grad((got * weights).sum(), student)
            torch.testing.assert_close(found, gradient * (hide if counts is None else counts.unsqueeze(-1)))


def test_by_hand() -> None:
    """Teacher (1/2; 1/2 for two others) against a uniform student of three: log 3 less log 2, less the tail's log 2."""
    kept = TopK(torch.tensor([[0.0]]), torch.tensor([[1]]), torch.tensor([0.0]))
    settings = {"temperature": 1.0, "reduction": "mean"}
    student = torch.zeros(1, 3)
    in_bucket = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    assert top_k_kl(student, kept, policy="tail-bucket", **settings).item() == pytest.approx(
        in_bucket, rel=1e-6
    )
    spread = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    assert top_k_kl(student, kept, policy="spread", **settings).item() == pytest.approx(spread, rel=1e-6)
    assert top_k_kl(student, kept, policy="drop", **settings).item() == pytest.approx(math.log(3), rel=1e-6)
    entropy = math.log(2) + 0.5 * math.log(2)
    ce = top_k_cross_entropy(student, kept, policy="spread", **settings).item()
    assert ce == pytest.approx(spread + entropy, rel=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_gradcheck_first_and_second(policy: Policy) -> None:
    """A wrong derivative; a hidden row that is differentiated."""
    student, kept = draw(3, 6).requires_grad_(), compress(draw(3, 6, seed=1), 2)
    for mask in (None, torch.tensor([True, False, True])):

        def loss(logits: Tensor, mask: Tensor | None = mask) -> Tensor:
            return top_k_kl(logits, kept, policy=policy, temperature=(1.5, 2.0), reduction="none", mask=mask)

        assert torch.autograd.gradcheck(loss, (student,))
        assert torch.autograd.gradgradcheck(loss, (student,))


@pytest.mark.parametrize("policy", POLICIES)
def test_extremes(policy: Policy) -> None:
    """A tail that underflows beside a sure class, a teacher without a tail, classes that the student forbids."""
    sure = torch.tensor([[200.0, 0.0, -1.0, 0.5]], requires_grad=True)
    kept = compress(torch.tensor([[1.0, 0.0, -1.0, 0.5]]), 2)
    settings = {"policy": policy, "temperature": 1.0, "reduction": "none"}
    s, t = sides(sure.double(), kept, policy)
    want = kl_divergence(s, t.double(), temperature=1.0, axis=-1, reduction="none")
    torch.testing.assert_close(top_k_kl(sure, kept, **settings).double(), want, rtol=1e-5, atol=1e-6)
    closed = compress(torch.tensor([[1.0, 0.0, -math.inf, -math.inf]]), 2)
    student = torch.tensor([[0.3, -0.2, -math.inf, -math.inf]], requires_grad=True)
    value = top_k_kl(student, closed, **settings)
    narrow = kl_divergence(student[:, :2], closed.values, temperature=1.0, axis=-1, reduction="none")
    torch.testing.assert_close(value, narrow)
    (found,) = torch.autograd.grad(value.sum(), student)
    torch.testing.assert_close(found, torch.autograd.grad(narrow.sum(), student)[0])
    if policy == "spread":
        assert top_k_kl(student, kept, **settings).item() == math.inf


def test_hidden_tokens_may_hold_anything() -> None:
    """NaN of a hidden token in the gradient; indices of padding that no student has; nothing that counts."""
    student = draw(3, V).requires_grad_()
    kept = compress(draw(3, V, seed=1), K)
    mask = torch.tensor([True, False, False])
    dirty = student.detach().clone()
    dirty[1:] = math.nan
    dirty.requires_grad_()
    spoiled = TopK(kept.values.clone(), kept.indices.clone(), kept.tail.clone())
    spoiled.values[1:], spoiled.indices[1:], spoiled.tail[1:] = math.nan, 999, math.nan
    for policy in POLICIES:
        settings = {"policy": policy, "temperature": 2.0, "reduction": "sum"}
        want = top_k_kl(student[:1], TopK(*(x[:1] for x in kept)), **settings)
        got = top_k_kl(dirty, spoiled, mask=mask, **settings)
        torch.testing.assert_close(got, want)
        (found,) = torch.autograd.grad(got, dirty)
        torch.testing.assert_close(found, torch.autograd.grad(want, student)[0])
        none = top_k_kl(dirty, spoiled, mask=torch.zeros(3, dtype=torch.bool), **settings)
        assert none.item() == 0.0
        assert not bool(torch.autograd.grad(none, dirty)[0].any())
    with pytest.raises(ValueError, match="no item that counts"):
        top_k_kl(
            student,
            kept,
            mask=torch.zeros(3, dtype=torch.bool),
            policy="drop",
            temperature=1.0,
            reduction="mean",
        )


def test_half_precision_and_views() -> None:
    """Sums in bfloat16; shifted tokens read as rows."""
    student = draw(2, 6, 3000, dtype=torch.bfloat16).requires_grad_()
    kept = compress(draw(2, 6, 3000, seed=1, dtype=torch.float32), 16)
    cut = TopK(*(x[:, :-1] for x in kept))
    settings = {"policy": "spread", "temperature": 1.0, "reduction": "none"}
    got = top_k_kl(student[:, :-1], cut, **settings)
    exact = student.detach().double().requires_grad_()
    want = top_k_kl(exact[:, :-1], TopK(cut.values.double(), cut.indices, cut.tail.double()), **settings)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    got.sum().backward()
    want.sum().backward()
    assert student.grad.dtype == torch.bfloat16
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-2, atol=1e-6)


def test_a_recorded_bucket_is_read_back() -> None:
    """Classes and tail exchanged on the way from a recorded answer to the loss; a teacher that learns."""
    student, kept = draw(2, 3, V).requires_grad_(), compress(draw(2, 3, V, seed=1).requires_grad_(), K)
    again = from_bucket(bucket(kept), kept.indices)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    loss = top_k_kl(student, kept, policy="spread", temperature=1.0, reduction="sum")
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(loss, kept.values)


def test_bad_arguments_are_named() -> None:
    """A teacher of another vocabulary, a tail that is empty, tokens of another batch."""
    student, kept = draw(3, V), compress(draw(3, V, seed=1), K)
    good = {"policy": "spread", "temperature": 1.0, "reduction": "sum"}
    with pytest.raises(ValueError, match=r"kept.indices: got classes from .* expected 0 to 4, the student's"):
        top_k_kl(student[:, :5], kept._replace(indices=kept.indices + 1), **good)
    with pytest.raises(ValueError, match="got K = 4, expected 1 to 3"):
        top_k_kl(student[:, :4], kept, **good)
    with pytest.raises(
        ValueError, match=r"kept: got values, indices and tail of shapes \(3, 4\), \(3, 4\), \(3,\)"
    ):
        top_k_kl(student[:2], kept, **good)
    with pytest.raises(ValueError, match="policy: got 'keep', expected one of 'tail-bucket'"):
        top_k_kl(student, kept, **{**good, "policy": "keep"})
    with pytest.raises(TypeError, match=r"kept.indices: got dtype torch.float64"):
        top_k_kl(student, kept._replace(indices=kept.values), **good)
    with pytest.raises(ValueError, match="temperature: got -1"):
        top_k_kl(student, kept, **{**good, "temperature": -1.0})
