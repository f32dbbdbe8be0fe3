"""token-kd, gkd, uld and llm-neo: against formulas in plain loops, at the edges, and without a word to the teacher."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdzoo.errors import KdzooError
from kdzoo.method import Batch, Output
from kdzoo.weights import Weights
from kdzoo_llm.divergence import DIVERGENCES, token_divergence
from kdzoo_llm.language import TEACHER, token_cross_entropy
from kdzoo_llm.methods import gkd, llm_neo, token_kd
from kdzoo_llm.methods.llm_neo import neo_kl
from kdzoo_llm.methods.uld import uld
from kdzoo_llm.models import build
from kdzoo_llm.sequences import TEXT, Encoded, view_of
from kdzoo_llm.vocabularies import word_level

B, A, V = 3, 4, 5
MASK = torch.tensor([[True, True, False, False], [True, True, True, True], [True, False, False, False]])


def logits(seed: int, size: int = V, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, A, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def softmax(row: Tensor, temperature: float = 1.0) -> list[float]:
    weights = [math.exp(float(x) / temperature) for x in row]
    return [w / sum(weights) for w in weights]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mix(p: list[float], q: list[float], share: float) -> list[float]:
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


SLOW: dict[str, Callable[[list[float], list[float]], float]] = {  # p teacher, q student, share 0.1
    "forward-kl": lambda p, q: kl(p, q),
    "reverse-kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q: 0.1 * kl(p, mix(p, q, 0.1)) + 0.9 * kl(q, mix(p, q, 0.1)),
    "skew-kl": lambda p, q: kl(p, mix(p, q, 0.1)),
    "skew-reverse-kl": lambda p, q: kl(q, mix(q, p, 0.1)),
    "total-variation": lambda p, q: 0.5 * sum(abs(a - b) for a, b in zip(p, q, strict=True)),
}


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_each_name_is_its_formula_over_the_tokens_that_count(name: str, temperature: float) -> None:
    """A swapped direction, or padding that counts, would train something else under the same name."""
    student, teacher = logits(0), logits(1)
    cfg = {"divergence": name, "share": 0.1, "temperature": temperature}
    expected = sum(
        SLOW[name](softmax(teacher[b, a], temperature), softmax(student[b, a], temperature))
        for b in range(B)
        for a in range(A)
        if MASK[b, a]
    )
    assert float(token_divergence(cfg, student, teacher, MASK)) == pytest.approx(expected, rel=1e-6)


def test_an_unknown_divergence_is_named() -> None:
    """The message lists those there are."""
    with pytest.raises(KdzooError, match="forward-kl"):
        token_divergence({"divergence": "forward"}, logits(0), logits(1), MASK)


def test_cross_entropy_leaves_padding_out() -> None:
    """-1 marks it; a mean over it would depend on the longest answer of the batch."""
    labels = torch.tensor([[1, 2, -1, -1], [0, 1, 2, 3], [4, -1, -1, -1]])
    student = logits(0)
    found = token_cross_entropy(student, labels)
    for b in range(B):
        for a in range(A):
            label = int(labels[b, a])
            slow = -math.log(softmax(student[b, a])[label]) if label >= 0 else 0.0
            assert float(found[b, a]) == pytest.approx(slow, abs=1e-6)


def run_of(student: Tensor, teacher: Tensor, **cfg: Any) -> Any:
    """A run that knows what two models say."""
    said = {"student": Output(logits=student, mask=MASK), "teacher": Output(logits=teacher, mask=MASK)}
    labels = torch.zeros(B, A, dtype=torch.long).masked_fill(~MASK, -1)
    batch = Batch(ids=["1", "2", "3"], views={TEXT: {}}, labels=labels)
    settings: Any = type("Cfg", (dict,), {"__getattr__": dict.__getitem__})(cfg)
    return SimpleNamespace(
        cfg=settings, batch=batch, out=lambda role: said[role], signal=lambda role, view: said[role]
    )


@pytest.mark.parametrize("method", [token_kd, gkd, llm_neo])
def test_the_student_alone_gets_a_gradient_and_none_where_it_is_the_teacher(method: Any) -> None:
    """A divergence is 0 with gradient 0 at equality; a teacher that is moved is not a teacher."""
    settings = {
        "divergence": "forward-kl",
        "share": 0.1,
        "temperature": 2.0,
        "kd_weight": 1.0,
        "kd_ratio": 0.5,
        "shift": "correct",
    }
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    (term,) = method.loss_terms(run_of(student, teacher, **settings), run_of(student, teacher).batch).values()
    assert term.per == "token"
    term.total.backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert not student.grad[~MASK].any()
    assert student.grad[MASK].abs().sum() > 0
    same = logits(0).requires_grad_()
    (term,) = method.loss_terms(run_of(same, same.detach(), **settings), run_of(same, same).batch).values()
    term.total.backward()
    assert term.total.item() == pytest.approx(0, abs=1e-9)
    assert same.grad is not None
    assert float(same.grad.abs().max()) < 1e-9


def test_hintons_factor_is_in_the_weight() -> None:
    """Without T^2 a larger temperature would lower the weight in silence."""
    settings = {"divergence": "forward-kl", "share": 0.1, "temperature": 3.0, "kd_weight": 0.5}
    run = run_of(logits(0), logits(1), **settings)
    assert token_kd.loss_terms(run, run.batch)["kd"].weight == 0.5 * 9


# --- uld ----------------------------------------------------------------------------------------------------------


def slow_uld(s: Tensor, t: Tensor, ns: int, nt: int, temperature: tuple[float, float]) -> float:
    """One row, in loops: C3 and C4 of the card."""
    total, m = 0.0, min(ns, nt)
    for j in range(m):
        p = sorted(softmax(s[j], temperature[0]), reverse=True)
        q = sorted(softmax(t[j], temperature[1]), reverse=True)
        size = max(len(p), len(q))
        p, q = p + [0.0] * (size - len(p)), q + [0.0] * (size - len(q))
        total += sum(abs(a - b) for a, b in zip(p, q, strict=True))
    return total / m if m else 0.0


@pytest.mark.parametrize("ends", [(False, False), (True, False), (True, True)])
def test_uld_is_its_formula_with_other_vocabularies_and_lengths(ends: tuple[bool, bool]) -> None:
    """Mean over tokens of each row, not over all tokens; the end tokens as they are asked for."""
    student, teacher = logits(0), logits(1, 8)[:, :3]
    t_mask = torch.tensor([[True, True, True], [True, True, False], [True, True, False]])
    found = uld(
        Output(logits=student, mask=MASK),
        Output(logits=teacher, mask=t_mask),
        temperature=(1.0, 2.0),
        skip_student_end=ends[0],
        skip_teacher_end=ends[1],
    )
    for b in range(B):
        ns, nt = int(MASK[b].sum()) - ends[0], int(t_mask[b].sum()) - ends[1]
        assert float(found[b]) == pytest.approx(
            slow_uld(student[b], teacher[b], ns, nt, (1.0, 2.0)), abs=1e-6
        )


def options() -> dict[str, Any]:
    return {"temperature": (1.0, 1.0), "skip_student_end": False, "skip_teacher_end": False}


def test_uld_does_not_see_which_token_is_which() -> None:
    """Claim of the card: permuting either vocabulary changes nothing; so it compares across tokenizers."""
    student, teacher = Output(logits=logits(0), mask=MASK), Output(logits=logits(1, 8), mask=MASK)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    permuted = Output(logits=logits(1, 8)[..., order], mask=MASK)
    torch.testing.assert_close(uld(student, teacher, **options()), uld(student, permuted, **options()))
    mirrored = Output(logits=logits(0).flip(2), mask=MASK)
    torch.testing.assert_close(
        uld(mirrored, student, **options()), torch.zeros(B, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_uld_of_rows_without_common_tokens_is_zero_and_can_be_trained_on() -> None:
    """An answer of one token, its end, has nothing left when ends are skipped: 0 / 0 must not reach the weights."""
    student = logits(0).requires_grad_()
    only_ends = torch.zeros(B, A, dtype=torch.bool)
    only_ends[:, 0] = True
    said = uld(
        Output(logits=student, mask=only_ends),
        Output(logits=logits(1), mask=only_ends),
        temperature=(1.0, 1.0),
        skip_student_end=True,
        skip_teacher_end=True,
    )
    assert said.tolist() == [0.0, 0.0, 0.0]
    said.sum().backward()
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    """A sort of half-precision probabilities would tie thousands of them."""
    low = [Output(logits=logits(seed, dtype=dtype), mask=MASK) for seed in (0, 1)]
    high = [Output(logits=one.logits.float(), mask=MASK) for one in low if one.logits is not None]
    found = uld(*low, **options())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, uld(*high, **options()), atol=1e-5, rtol=1e-4)


# --- llm-neo ------------------------------------------------------------------------------------------------------


def test_the_official_shift_leaves_the_first_token_out() -> None:
    """Its mask is that of unshifted labels."""
    correct = neo_kl(logits(0), logits(1), MASK)
    official = neo_kl(logits(0), logits(1), MASK, shift="official")
    assert not official[:, 0].any()
    torch.testing.assert_close(official[:, 1:], correct[:, 1:])
    assert MASK[:, 0].all()  # the caller's mask is left as it was


# --- gkd ----------------------------------------------------------------------------------------------------------


def on_policy_run(share: float) -> Any:
    words = word_level("words", list("abc"))
    torch.manual_seed(0)
    student = build("llama-xs", words, context=16).train()
    rows = [Encoded([1, 4], [5, 2]), Encoded([1, 4, 5, 6], [6, 6, 2])]
    views = {
        TEXT: view_of(rows, words),
        TEACHER: view_of([Encoded([1, 6, 6], row.answer) for row in rows], words),
    }
    labels = views[TEXT]["answer"].masked_fill(~views[TEXT]["answer_mask"], -1)
    batch = Batch(ids=["a", "b"], views=views, labels=labels, counts={"item": 2, "token": 5})
    cfg: Any = type("Cfg", (dict,), {"__getattr__": dict.__getitem__})(on_policy=share, answer_length=6)
    return SimpleNamespace(
        weights=Weights(),
        cfg=cfg, batch=batch, models={"student": student}, seed=0, step=3,
        to_device=lambda batch: batch,
    )  # fmt: skip


def test_on_policy_answers_are_the_students_in_every_view_and_counted() -> None:
    """The teacher must judge what the student wrote, after its own prompt; the loss divides by the new tokens."""
    run = on_policy_run(1.0)
    before = {name: view["prompt"].clone() for name, view in run.batch.views.items()}
    gkd.prepare_batch(run, run.batch)
    text, taught = run.batch.views[TEXT], run.batch.views[TEACHER]
    assert torch.equal(text["answer"], taught["answer"])
    assert all(torch.equal(run.batch.views[name]["prompt"], prompt) for name, prompt in before.items())
    assert run.batch.counts == {"item": 2, "token": int(text["answer_mask"].sum())}
    assert torch.equal(run.batch.labels >= 0, text["answer_mask"])
    assert run.models["student"].training
    again = on_policy_run(1.0)
    gkd.prepare_batch(again, again.batch)
    assert torch.equal(again.batch.labels, run.batch.labels)


def test_without_on_policy_the_batch_is_left_alone() -> None:
    """The switch must restore distillation on the references."""
    run = on_policy_run(0.0)
    labels = run.batch.labels
    gkd.prepare_batch(run, run.batch)
    assert run.batch.labels is labels
