"""The k largest logits and three policies for the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from kdzoo.losses.divergences import kl_divergence
from kdzoo.top_k import bucket, bucketed, compress, dense

LOGITS = torch.tensor([[2.0, 0.0, 1.0, -1.0], [0.0, 0.0, 3.0, 0.0]])


def softmax_by_hand(row: Sequence[float], temperature: float = 1.0) -> list[float]:
    weights = [math.exp(value / temperature) for value in row]
    return [weight / sum(weights) for weight in weights]


def test_top_k_by_hand() -> None:
    """Values, classes and the tail of four logits, written out."""
    kept = compress(LOGITS[:1], 2)
    assert kept.values.tolist() == [[2.0, 1.0]]
    assert kept.indices.tolist() == [[0, 2]]
    assert kept.tail.item() == pytest.approx(math.log(math.exp(0.0) + math.exp(-1.0)))
    share = math.log((math.exp(0.0) + math.exp(-1.0)) / 2)
    assert dense(kept, 4, "spread").tolist()[0] == pytest.approx([2.0, share, 1.0, share])
    assert dense(kept, 4, "drop").tolist()[0] == [2.0, -9998.0, 1.0, -9998.0]
    assert bucket(kept).tolist()[0] == pytest.approx([2.0, 1.0, kept.tail.item()])


@pytest.mark.parametrize("shape", [(64, 50), (8, 5, 50)])
def test_tolerance_of_the_policies(shape: tuple[int, ...]) -> None:
    """At temperature 1: bucket and spread keep the K probabilities and the tail's mass to 1e-6; drop keeps the K in
    proportion, off by the tail's mass."""
    logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    p, kept = logits.softmax(-1), compress(logits, 8)
    at = kept.indices.long()
    mass = 1 - p.gather(-1, at).sum(-1)
    spread = dense(kept, 50, "spread").softmax(-1)
    dropped = dense(kept, 50, "drop").softmax(-1)
    in_bucket = bucket(kept).softmax(-1)
    assert torch.allclose(spread.gather(-1, at), p.gather(-1, at), atol=1e-6)
    assert torch.allclose(in_bucket[..., :-1], p.gather(-1, at), atol=1e-6)
    assert torch.allclose(in_bucket[..., -1], mass, atol=1e-6)
    assert torch.allclose(dropped.gather(-1, at) * (1 - mass).unsqueeze(-1), p.gather(-1, at), atol=1e-6)
    # How far the whole distribution moves: by at most the tail's mass (total variation).
    for found in (spread, dropped):
        assert ((found - p).abs().sum(-1) / 2 <= mass + 1e-6).all()
    assert (dropped.scatter(-1, at, 0.0) == 0).all()


def test_all_but_one_class_lose_nothing() -> None:
    """With one class in the tail its log-sum-exp is that logit: spread gives the teacher back."""
    logits = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(dense(compress(logits, 4), 5, "spread"), logits, atol=1e-6)


def test_the_bucket_is_kl_with_a_tail_of_the_students_shape() -> None:
    """The identity that `bucketed` promises, in value and gradient, against a teacher written out over all classes."""
    generator = torch.Generator().manual_seed(2)
    student = torch.randn(6, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    kept = compress(torch.randn(6, 9, generator=generator, dtype=torch.float64), 3)
    q = student.detach().softmax(-1)
    at = kept.indices.long()
    tail = q.scatter(-1, at, 0.0)
    in_bucket = bucket(kept).softmax(-1)
    whole = (tail / tail.sum(-1, keepdim=True) * in_bucket[:, -1:]).scatter(-1, at, in_bucket[:, :-1])
    values = []
    for s, t in ((bucketed(student, kept.indices), bucket(kept)), (student, whole.log())):
        loss = kl_divergence(s, t, temperature=1.0, axis=-1, reduction="sum")
        values.append((loss.item(), torch.autograd.grad(loss, student, retain_graph=True)[0]))
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-9)
    assert torch.allclose(values[0][1], values[1][1], atol=1e-12)


def test_a_student_equal_to_the_teacher_has_no_loss_in_the_bucket() -> None:
    """A divergence is 0 where nothing is left to learn."""
    kept = compress(LOGITS, 2)
    loss = kl_divergence(
        bucketed(LOGITS, kept.indices), bucket(kept), temperature=1.0, axis=-1, reduction="none"
    )
    assert torch.allclose(loss, torch.zeros(2), atol=1e-7)


@pytest.mark.parametrize("policy", ["spread", "drop"])
def test_dropped_classes_do_not_break_losses(policy: Any) -> None:
    """-inf as a filler gives NaN where two logits are subtracted, as DKD does."""
    from kdzoo.losses.decoupled import dkd

    teacher = dense(
        compress(10 * torch.randn(32, 10, generator=torch.Generator().manual_seed(3)), 2), 10, policy
    )
    student = torch.randn(32, 10, requires_grad=True)
    targets = torch.arange(32) % 10
    for loss in (
        kl_divergence(student, teacher, temperature=4.0, axis=1, reduction="sum"),
        dkd(
            student,
            teacher,
            targets,
            alpha=1.0,
            beta=8.0,
            temperature=4.0,
            scale_by_temperature_squared=True,
            axis=1,
            reduction="sum",
        ),
    ):
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("k", [0, 4, 5])
def test_k_out_of_range(k: int) -> None:
    """Of four classes, K = 4 leaves no tail: its log-sum-exp would be -inf."""
    with pytest.raises(ValueError, match=f"k: got {k}, expected 1 to 3"):
        compress(LOGITS, k)
    with pytest.raises(ValueError, match="K \\+ 1 classes"):
        dense(compress(LOGITS, 2), 4, "tail-bucket")


def test_top_k_in_bfloat16() -> None:
    """The tail is summed in float32: in bfloat16 a thousand small classes would vanish beside a large one."""
    logits = torch.zeros(1, 1001, dtype=torch.bfloat16)
    logits[0, 0] = 1
    kept = compress(logits, 1)
    assert kept.values.dtype == torch.bfloat16
    assert kept.tail.item() == pytest.approx(math.log(1000), rel=1e-6)
