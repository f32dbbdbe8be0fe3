"""Sorted transport between vocabularies: against plain loops, its invariances, and both ways of sorting."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdzoo.losses import transport
from kdzoo.losses.transport import sorted_probabilities, sorted_transport, transport_to_recorded

SETTINGS = {"temperature": 1.0, "axis": -1, "reduction": "none"}


@pytest.fixture(params=["numpy", "torch"])
def sorter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of sorting must pass: device, dtype and threads decide which one runs."""
    threads = 1 << 30 if request.param == "numpy" else 0
    monkeypatch.setattr(transport, "THREADS_FOR_NUMPY", threads)
    return request.param


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3).to(
        dtype
    )


def loop(student: list[float], teacher: list[float], t_s: float, t_t: float) -> float:
    """The formula of one row, in Python floats."""

    def falling(row: list[float], temperature: float) -> list[float]:
        powers = [math.exp(x / temperature) for x in row]
        return sorted((x / sum(powers) for x in powers), reverse=True)

    q, p = falling(student, t_s), falling(teacher, t_t)
    length = max(len(q), len(p))
    q, p = (x + [0.0] * (length - len(x)) for x in (q, p))
    return sum(abs(a - b) for a, b in zip(q, p, strict=True))


@pytest.mark.parametrize("classes", [(7, 7), (7, 10), (10, 7), (1, 3)])
@pytest.mark.parametrize("temperature", [1.0, (1.5, 3.0)])
def test_agrees_with_loops(
    sorter: str, classes: tuple[int, int], temperature: float | tuple[float, float]
) -> None:
    """A rising sort, zeros at the wrong end, exchanged temperatures; a gradient put in another class's place."""
    student, teacher = draw(5, classes[0]).requires_grad_(), draw(5, classes[1], seed=1)
    t_s, t_t = temperature if isinstance(temperature, tuple) else (temperature, temperature)
    want = [loop(s, t, t_s, t_t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    got = sorted_transport(student, teacher, temperature=temperature, axis=-1, reduction="none")
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-5, atol=1e-6)
    recorded = sorted_probabilities(teacher, temperature=t_t, axis=-1)
    read = transport_to_recorded(student, recorded, temperature=t_s, axis=-1, reduction="none")
    torch.testing.assert_close(read, got)
    q = torch.softmax(student / t_s, -1).sort(descending=True).values
    p = torch.softmax(teacher / t_t, -1).sort(descending=True).values
    width = max(classes)
    q, p = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (q, p))
    weights = draw(5, seed=2)
    (want_gradient,) = torch.autograd.grad(((q - p).abs().sum(1) * weights).sum(), student)
    for value in (got, read):
        (gradient,) = torch.autograd.grad((value * weights).sum(), student)
        torch.testing.assert_close(gradient, want_gradient, rtol=1e-4, atol=1e-6)


def test_by_hand(sorter: str) -> None:
    """(1/2, 1/4, 1/4) against (2/3, 1/3): 1/6 + 1/12 + 1/4."""
    student, teacher = torch.tensor([[1.0, 1.0, 2.0]]).log(), torch.tensor([[1.0, 2.0]]).log()
    assert sorted_transport(student, teacher, **SETTINGS).item() == pytest.approx(0.5, rel=1e-6)
    far = torch.tensor([[0.0, -math.inf]])
    assert sorted_transport(far, torch.zeros(1, 4), **SETTINGS).item() == pytest.approx(1.5, rel=1e-6)


def test_permuting_either_vocabulary_changes_nothing(sorter: str) -> None:
    """A distance that looks at which class it is."""
    student, teacher = draw(4, 50).requires_grad_(), draw(4, 40, seed=1)
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    want = sorted_transport(student, teacher, **SETTINGS)
    (gradient,) = torch.autograd.grad(want.sum(), student)
    other = student.detach()[:, shuffled].requires_grad_()
    got = sorted_transport(other, teacher.flip(-1), **SETTINGS)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), other)[0], gradient[:, shuffled])


def test_a_permutation_of_the_teacher_has_no_loss_and_no_gradient(sorter: str) -> None:
    """Noise at equality."""
    teacher = draw(4, 300)
    student = teacher.flip(-1).clone().requires_grad_()
    value = sorted_transport(student, teacher, **SETTINGS)
    value.sum().backward()
    assert value.max() < 1e-6
    same = teacher.clone().requires_grad_()
    exact = sorted_transport(same, teacher, **SETTINGS)
    exact.sum().backward()
    assert exact.tolist() == [0.0] * 4
    assert not bool(same.grad.any())


def test_both_sorters_order_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties, zeros and NaN: keys of bits must fall as numbers do, and ties keep the order of their classes."""
    rows = torch.tensor([[0.25, 0.0, 0.25, 0.5, 0.0, 1e-40], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    found = []
    for threads in (1 << 30, 0):
        monkeypatch.setattr(transport, "THREADS_FOR_NUMPY", threads)
        found.append(transport._falling_with_order(rows.clone()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][1][0].tolist() == [3, 0, 2, 5, 1, 4]


def test_nan_stays_in_its_item(sorter: str) -> None:
    """A NaN sorted away, or spread over the batch."""
    for side in (0, 1):
        both = [draw(3, 6), draw(3, 8, seed=1)]
        both[side][1, 2] = math.nan
        values = sorted_transport(*both, **SETTINGS)
        assert values.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("size", [1, 25, 10_000])
def test_chunks_masks_and_layouts(sorter: str, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Rows lost between chunks, hidden NaN in the gradient, shifted tokens or an inner class axis misread."""
    monkeypatch.setattr(transport, "chunk_size", lambda logits: size)
    student, teacher = draw(3, 6, 9).requires_grad_(), draw(3, 6, 12, seed=1)
    mask = draw(3, 5, seed=2) > 0
    rows = [student[:, :-1].reshape(-1, 9), teacher[:, :-1].reshape(-1, 12)]
    want = sorted_transport(*rows, **SETTINGS).view(3, 5) * mask
    (gradient,) = torch.autograd.grad(want.sum(), student, retain_graph=True)
    dirty = student.detach().clone()
    dirty[:, :-1][~mask] = math.nan
    dirty.requires_grad_()
    got = sorted_transport(dirty[:, :-1], teacher[:, :-1], mask=mask, **SETTINGS)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), dirty)[0], gradient)
    inner = sorted_transport(
        student[:, :-1].movedim(-1, 1), teacher[:, :-1].movedim(-1, 1), **{**SETTINGS, "axis": 1}
    )
    torch.testing.assert_close(inner * mask, want)
    recorded = sorted_probabilities(teacher.movedim(-1, 1), temperature=1.0, axis=1)
    assert recorded.shape == (3, 12, 6)
    read = transport_to_recorded(student, recorded.movedim(1, -1), **SETTINGS)
    torch.testing.assert_close(read[:, :-1] * mask, want)
    hidden = torch.zeros(3, 6, dtype=torch.bool)
    lost = torch.full((3, 6, 9), math.nan, requires_grad=True)
    nothing = sorted_transport(lost, teacher, mask=hidden, **{**SETTINGS, "reduction": "sum"})
    nothing.backward()
    assert nothing.item() == 0.0
    assert not bool(lost.grad.any())


def test_gradcheck_first_and_second() -> None:
    """A wrong derivative, also where the gradient is differentiated."""
    student, teacher = (
        draw(3, 5, dtype=torch.float64).requires_grad_(),
        draw(3, 7, seed=1, dtype=torch.float64),
    )
    mask = torch.tensor([True, False, True])

    def loss(logits: Tensor) -> Tensor:
        return sorted_transport(logits, teacher, temperature=(2.0, 1.0), axis=-1, reduction="none", mask=mask)

    assert torch.autograd.gradcheck(loss, (student,))
    assert torch.autograd.gradgradcheck(loss, (student,))


def test_teacher_learns_nothing_and_no_gradient_costs_nothing() -> None:
    """A teacher trained through the loss; a gradient promised without one being wanted."""
    student, teacher = draw(2, 5).requires_grad_(), draw(2, 5, seed=1).requires_grad_()
    sorted_transport(student, teacher, **SETTINGS).sum().backward()
    assert teacher.grad is None
    with torch.no_grad():
        assert not sorted_transport(student, teacher, **SETTINGS).requires_grad
    assert not sorted_probabilities(teacher, temperature=1.0, axis=-1).requires_grad


def test_half_precision_is_only_read(sorter: str) -> None:
    """Probabilities sorted and summed in bfloat16: 3000 of them lose a third of the mass."""
    student, teacher = draw(4, 3000, dtype=torch.bfloat16).requires_grad_(), draw(4, 2000, seed=1)
    got = sorted_transport(student, teacher, **SETTINGS)
    want = sorted_transport(student.double(), teacher.double(), **SETTINGS)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    got.sum().backward()
    assert student.grad.dtype == torch.bfloat16
    kept = sorted_probabilities(teacher, temperature=1.0, axis=-1).bfloat16()
    torch.testing.assert_close(
        transport_to_recorded(student, kept, **SETTINGS), got.float(), rtol=5e-3, atol=5e-3
    )


def test_cut_teacher_is_off_by_its_tail_at_most() -> None:
    """The promise of `keep`."""
    student, teacher = draw(5, 40), draw(5, 50, seed=1)
    whole = sorted_transport(student, teacher, **SETTINGS)
    kept = sorted_probabilities(teacher, temperature=1.0, axis=-1, keep=6)
    cut = transport_to_recorded(student, kept, **SETTINGS)
    left_out = 1 - kept.sum(-1)
    assert kept.shape == (5, 6)
    assert bool(((cut - whole).abs() <= left_out + 1e-6).all())


def test_bad_arguments_are_named() -> None:
    """Unpaired tokens, logits in the place of probabilities, an unsorted recording."""
    student, teacher = draw(3, 5), draw(3, 7, seed=1)
    with pytest.raises(
        ValueError, match=r"teacher_logits: got shape \(2, 7\) beside student_logits \(3, 5\)"
    ):
        sorted_transport(student, teacher[:2], **SETTINGS)
    with pytest.raises(ValueError, match="got a row that rises"):
        transport_to_recorded(student, torch.softmax(teacher, -1), **SETTINGS)
    with pytest.raises(ValueError, match="got a row that sums to"):
        transport_to_recorded(student, teacher.abs().sort(-1, descending=True).values, **SETTINGS)
    with pytest.raises(ValueError, match="keep: got 8, expected 1 to 7"):
        sorted_probabilities(teacher, temperature=1.0, axis=-1, keep=8)
    with pytest.raises(ValueError, match="temperature: got 0"):
        sorted_transport(student, teacher, **{**SETTINGS, "temperature": 0.0})
    with pytest.raises(ValueError, match="axis: got 2"):
        sorted_transport(student, teacher, **{**SETTINGS, "axis": 2})
    with pytest.raises(TypeError, match=r"teacher_logits: got dtype torch.int64"):
        sorted_transport(student, teacher.long(), **SETTINGS)
    with pytest.raises(ValueError, match="no item that counts"):
        sorted_transport(
            student, teacher, mask=torch.zeros(3, dtype=torch.bool), **{**SETTINGS, "reduction": "mean"}
        )
