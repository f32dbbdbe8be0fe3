"""Relation losses against plain loops written from the formulas, at their edges, and in their invariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdzoo.losses import angle as angle_module
from kdzoo.losses import distances as distances_module
from kdzoo.losses.relations import hard_darkrank, pairwise_distances, rkd_angle, rkd_distance

LOSSES = [rkd_distance, rkd_angle, hard_darkrank]
SCALE_FREE = [rkd_distance, rkd_angle]


def batch(n: int, size: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def smooth_l1(x: float, y: float) -> float:
    z = abs(x - y)
    return 0.5 * z * z if z < 1 else z - 0.5


def euclid(x: list[float], y: list[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))


def slow_distance(student: Tensor, teacher: Tensor) -> list[float]:
    tables = []
    for side in (student.tolist(), teacher.tolist()):
        table = [[euclid(a, b) for b in side] for a in side]
        positive = [d for row in table for d in row if d > 0]
        mean = sum(positive) / len(positive)
        tables.append([[d / mean for d in row] for row in table])
    n = len(tables[0])
    return [sum(smooth_l1(tables[0][i][j], tables[1][i][j]) for j in range(n)) / n for i in range(n)]


def slow_angle(student: Tensor, teacher: Tensor) -> list[float]:
    def cosine(rows: list[list[float]], i: int, j: int, k: int) -> float:
        to_i = [a - b for a, b in zip(rows[i], rows[j], strict=True)]
        to_k = [a - b for a, b in zip(rows[k], rows[j], strict=True)]
        lengths = math.hypot(*to_i) * math.hypot(*to_k)
        return sum(a * b for a, b in zip(to_i, to_k, strict=True)) / lengths if lengths > 0 else 0.0

    s, t = student.tolist(), teacher.tolist()
    n = len(s)
    return [
        sum(smooth_l1(cosine(s, i, j, k), cosine(t, i, j, k)) for i in range(n) for k in range(n)) / n**2
        for j in range(n)
    ]


def slow_darkrank(student: Tensor, teacher: Tensor, *, alpha: float, beta: float, length: int) -> list[float]:
    s, t = student.tolist(), teacher.tolist()
    losses = []
    for i in range(len(s)):
        others = sorted((j for j in range(len(s)) if j != i), key=lambda j: euclid(t[i], t[j]))[:length]
        scores = [-alpha * euclid(s[i], s[j]) ** beta for j in others]
        chosen = 1.0
        for m in range(len(scores)):
            chosen *= math.exp(scores[m]) / sum(math.exp(score) for score in scores[m:])
        losses.append(-math.log(chosen))
    return losses


def textbook_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Unit differences and their products as tensors, for gradients of autograd."""
    cosines = []
    for side in (student, teacher):
        unit = F.normalize(side.unsqueeze(0) - side.unsqueeze(1), dim=2)
        cosines.append(unit @ unit.transpose(1, 2))
    return F.smooth_l1_loss(cosines[0], cosines[1])


def gradient(loss: Callable[..., Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    leaf = student.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, teacher, reduction="mean"), leaf)[0]


def test_distances_by_hand() -> None:
    """Catches squared distances, a diagonal that is not zero, a missing floor."""
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 5.0, 1e-6], [5.0, 0.0, 5.0], [1e-6, 5.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(pairwise_distances(rows), expected, rtol=1e-12, atol=0)


def test_distance_loss_by_hand() -> None:
    """Catches another normalizer than the mean of positive entries, and a mean without the diagonal."""
    student = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3; mean 2
    teacher = torch.tensor([[0.0], [2.0], [3.0]])  # distances 2, 1, 3; mean 2
    loss = rkd_distance(student, teacher, reduction="none")
    torch.testing.assert_close(loss, torch.tensor([0.125, 0.25, 0.125]) / 3)


def test_distance_loss_by_hand_in_its_linear_part() -> None:
    """Catches a plain squared error, or another beta."""
    student = torch.tensor([[0.0], [1.0], [9.0]])  # distances 01: 1, 02: 9, 12: 8; mean 6
    teacher = torch.tensor([[0.0], [9.0], [1.0]])  # distances 01: 9, 02: 1, 12: 8; mean 6
    gap = 8 / 6 - 0.5  # |1 - 9| / 6 is over 1
    loss = rkd_distance(student, teacher, reduction="none")
    torch.testing.assert_close(loss, torch.tensor([2 * gap, gap, gap]) / 3)


def test_angle_loss_by_hand() -> None:
    """Catches a wrong vertex, and a mean over other than all N^3 entries."""
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # right angle at row 0, 45 degrees elsewhere
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])  # 60 degrees everywhere
    half = math.sqrt(0.5)
    expected = torch.tensor([2 * 0.5 * 0.5**2, 2 * 0.5 * (half - 0.5) ** 2, 2 * 0.5 * (half - 0.5) ** 2]) / 9
    torch.testing.assert_close(rkd_angle(student, teacher, reduction="none"), expected)
    torch.testing.assert_close(rkd_angle(student, teacher, reduction="mean"), expected.mean())
    torch.testing.assert_close(rkd_angle(student, teacher, reduction="sum"), expected.sum())


def test_angle_loss_by_hand_in_its_linear_part() -> None:
    """Catches a derivative or a value that stays quadratic where opposite directions meet."""
    student = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)  # cosine at row 0: 1, at row 1: -1
    teacher = torch.tensor([[1.0], [0.0], [2.0]], dtype=torch.float64)  # cosine at row 0: -1, at row 1: 1
    loss = rkd_angle(student, teacher, reduction="none")
    torch.testing.assert_close(loss, torch.tensor([2 * 1.5, 2 * 1.5, 0.0], dtype=torch.float64) / 9)


def test_darkrank_by_hand() -> None:
    """Catches a list that begins with the sample itself, or scores of the wrong sign."""
    student = torch.tensor([[0.0], [1.0], [3.0]])
    teacher = torch.tensor([[0.0], [2.0], [1.0]])  # row 0 ranks 2 before 1: scores -3, -1
    loss = hard_darkrank(student, teacher, reduction="none", alpha=1.0, beta=1.0, list_length=2)
    assert loss[0].item() == pytest.approx(math.log(1 + math.exp(2)), rel=1e-6)


@pytest.mark.parametrize("n", [3, 7])
def test_plain_loops(n: int) -> None:
    """Catches any mistake of the vectorized forms, per item and in every reduction."""
    student, teacher = batch(n, 4, 1), batch(n, 6, 2)
    pairs: list[tuple[Callable[..., Tensor], list[float]]] = [
        (rkd_distance, slow_distance(student, teacher)),
        (rkd_angle, slow_angle(student, teacher)),
        (
            lambda s, t, reduction: hard_darkrank(
                s, t, reduction=reduction, alpha=0.7, beta=2.0, list_length=4
            ),
            slow_darkrank(student, teacher, alpha=0.7, beta=2.0, length=4),
        ),
    ]
    for loss, items in pairs:
        expected = torch.tensor(items, dtype=torch.float64)
        torch.testing.assert_close(loss(student, teacher, reduction="none"), expected)
        torch.testing.assert_close(loss(student, teacher, reduction="sum"), expected.sum())
        torch.testing.assert_close(loss(student, teacher, reduction="mean"), expected.mean())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_gradients(loss: Callable[..., Tensor], reduction: str) -> None:
    """Catches an own backward pass that is not the derivative, with equal or unequal upstream factors."""
    student, teacher = batch(6, 3, 3).requires_grad_(), batch(6, 4, 4)
    extra = {"alpha": 0.5, "beta": 2.0} if loss is hard_darkrank else {}
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, reduction=reduction, **extra), (student,))


@pytest.mark.parametrize("loss", SCALE_FREE)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradients_into_the_teacher(loss: Callable[..., Tensor], reduction: str) -> None:
    """Catches a teacher side that was derived as if it were the student's, where teacher_grad asks for it."""
    student, teacher = batch(5, 3, 3).requires_grad_(), batch(5, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, t: loss(s, t, reduction=reduction, teacher_grad=True), (student, teacher)
    )


def test_second_derivatives() -> None:
    """Catches a gradient that meta-learning would silently take for a constant."""
    student, teacher = batch(4, 3, 5).requires_grad_(), batch(4, 3, 6)
    assert torch.autograd.gradgradcheck(lambda s: rkd_distance(s, teacher, reduction="mean"), (student,))
    for reduction in ("mean", "none"):
        loss = rkd_angle(student, teacher, reduction=reduction).sum()
        (first,) = torch.autograd.grad(loss, student, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative"):
            first.square().sum().backward()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_teacher_gets_no_gradient(loss: Callable[..., Tensor]) -> None:
    """Catches a teacher that is trained towards the student."""
    student, teacher = batch(6, 3, 7).requires_grad_(), batch(6, 3, 8).requires_grad_()
    loss(student, teacher, reduction="mean").backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("loss", SCALE_FREE)
def test_shift_rotation_and_scale_change_nothing(loss: Callable[..., Tensor]) -> None:
    """Catches an absolute quantity in a loss that is to see shape only, and a gradient at the optimum."""
    teacher = batch(9, 5, 9)
    rotation, _ = torch.linalg.qr(batch(5, 5, 10))
    student = 37.0 * teacher @ rotation + 4.0
    assert loss(student, teacher, reduction="mean").item() < 1e-20
    assert gradient(loss, student, teacher).abs().max() < 1e-12
    other = batch(9, 3, 11)
    torch.testing.assert_close(loss(student, other, reduction="none"), loss(teacher, other, reduction="none"))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_the_batch_does_not_matter(loss: Callable[..., Tensor]) -> None:
    """Catches items that are filed under the wrong sample."""
    student, teacher = batch(8, 4, 12), batch(8, 4, 13)
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    torch.testing.assert_close(
        loss(student[order], teacher[order], reduction="none"),
        loss(student, teacher, reduction="none")[order],
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [1, 2])
def test_tiny_batches(loss: Callable[..., Tensor], n: int) -> None:
    """Catches 0/0 in the last, partial batch of an epoch, where there is nothing to compare."""
    student, teacher = batch(n, 3, 14).requires_grad_(), batch(n, 3, 15)
    value = loss(student, teacher, reduction="mean")
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max().item() < 1e-12


@pytest.mark.parametrize("loss", SCALE_FREE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_collapsed_student_gets_finite_numbers(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Catches NaN, or gradients divided by 1e-12, when all rows are equal."""
    student = torch.ones(5, 3, dtype=dtype, requires_grad=True)
    value = loss(student, batch(5, 3, 16, dtype), reduction="mean")
    value.backward()
    assert value.isfinite()
    assert value > 0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("loss", LOSSES)
def test_nan_is_not_hidden(loss: Callable[..., Tensor]) -> None:
    """Catches a mask or a clamp that turns a broken student into a harmless loss."""
    for n in (1, 5):
        student = batch(n, 3, 17)
        student[-1, 0] = torch.nan
        if loss is hard_darkrank and n == 1:
            continue  # an empty list has no term that could carry it
        assert loss(student, batch(n, 3, 18), reduction="mean").isnan()
    with pytest.raises(ValueError, match="NaN") if loss is hard_darkrank else nullcontext():
        assert loss(batch(5, 3, 18), student, reduction="mean").isnan()


def near_duplicates(relative: float) -> tuple[Tensor, Tensor]:
    """(student, teacher), float32, norm about 8, far from the origin, with near pairs on both sides."""
    student, teacher = batch(12, 16, 19, torch.float32) + 2.0, batch(12, 16, 20, torch.float32) + 2.0
    for side, pairs in ((student, [(0, 5), (1, 7)]), (teacher, [(2, 9), (0, 5)])):
        for i, k in pairs:
            step = F.normalize(batch(1, 16, i * 20 + k, torch.float32), dim=1)[0]
            side[k] = side[i] + relative * side[i].norm() * step
    return student, teacher


@pytest.mark.parametrize("relative", [1e-2, 1e-4, 1e-6])
def test_near_duplicates_are_exact(relative: float) -> None:
    """Catches cancellation in the Gram form: the result must be that of float64 on the same numbers."""
    student, teacher = near_duplicates(relative)
    wide_student, wide_teacher = student.double(), teacher.double()

    exact = torch.cdist(wide_student, wide_student, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(pairwise_distances(student).double(), exact, rtol=3e-7, atol=1e-9)

    leaf = wide_student.clone().requires_grad_()
    reference = textbook_angle(leaf, wide_teacher)
    (exact_gradient,) = torch.autograd.grad(reference, leaf)
    assert rkd_angle(student, teacher, reduction="mean").item() == pytest.approx(reference.item(), rel=2e-6)
    got = gradient(rkd_angle, student, teacher).double()
    # Per row: the rows of a near pair have gradients 1 / relative times as large as the others.
    assert ((got - exact_gradient).norm(dim=1) / exact_gradient.norm(dim=1)).max() < 1e-5
    items = rkd_angle(student, teacher, reduction="none").double()
    torch.testing.assert_close(
        items, torch.tensor(slow_angle(wide_student, wide_teacher)).double(), rtol=1e-5, atol=1e-9
    )


def test_float32_alone_would_not_be_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a test of near-duplicates that would pass without the care taken for them."""
    student, teacher = near_duplicates(1e-4)
    monkeypatch.setattr(angle_module, "SPREAD_FLOAT32", 1e9)
    wrong = gradient(rkd_angle, student, teacher)
    monkeypatch.undo()
    right = gradient(rkd_angle, student, teacher)
    assert ((wrong - right).norm(dim=1) / right.norm(dim=1)).max() > 1e-4


def test_exact_duplicates_have_no_direction() -> None:
    """Catches gradients of 1e12 (the official code's) or NaN from equal rows, and their zeros uncounted."""
    student, teacher = batch(7, 4, 21, torch.float32), batch(7, 4, 22, torch.float32)
    student[4] = student[2]
    expected = torch.tensor(slow_angle(student.double(), teacher.double()))
    torch.testing.assert_close(rkd_angle(student, teacher, reduction="none"), expected)
    grad = gradient(rkd_angle, student, teacher)
    # Moving both together is a smooth change: there finite differences hold.
    step = torch.zeros(7, 4, dtype=torch.float64)
    step[[2, 4]] = batch(1, 4, 23)
    ahead, behind = (
        rkd_angle(student.double() + sign * 1e-5 * step, teacher.double(), reduction="mean")
        for sign in (1, -1)
    )
    assert (grad.double() * step).sum().item() == pytest.approx((ahead - behind).item() / 2e-5, rel=1e-4)
    assert gradient(rkd_distance, student, teacher).abs().max() < 1


def test_rows_closer_than_a_direction_can_be_told_coincide() -> None:
    """Catches 1 / d of rows that differ by rounding: their direction is noise, its gradient 1e13 times too large."""
    student, teacher = batch(6, 3, 38), batch(6, 3, 39)
    student[1], student[2] = 0.0, 0.0
    expected = rkd_angle(student, teacher, reduction="none")
    student[2, 0] = 1e-13
    torch.testing.assert_close(rkd_angle(student, teacher, reduction="none"), expected)
    assert gradient(rkd_angle, student, teacher).abs().max() < 1


@pytest.mark.parametrize("block", [1, 30, 10_000])
@pytest.mark.parametrize("spread", [0.0, 3.0, 1e9])
def test_blocks_and_dtypes_meet(monkeypatch: pytest.MonkeyPatch, block: int, spread: float) -> None:
    """Catches anchors lost or counted twice between blocks, or between float32 and float64 passes."""
    student, teacher = batch(11, 4, 24, torch.float32), batch(11, 4, 25, torch.float32)
    student[3] = student[8] + 0.01
    leaf = student.double().requires_grad_()
    (expected,) = torch.autograd.grad(textbook_angle(leaf, teacher.double()), leaf)
    items = torch.tensor(slow_angle(student.double(), teacher.double()))
    monkeypatch.setattr(angle_module, "BLOCK_CPU", block * 11)
    monkeypatch.setattr(angle_module, "SPREAD_FLOAT32", spread)
    torch.testing.assert_close(rkd_angle(student, teacher, reduction="none"), items, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradient(rkd_angle, student, teacher), expected.float(), rtol=1e-2, atol=1e-5)


def test_pairs_are_recomputed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches near pairs lost at the border of two parts."""
    rows = 1000.0 + 1e-3 * batch(6, 3, 26)
    rows[:, 0] -= rows[:, 0].mean() - 1000.0
    rows = torch.cat([rows, -rows])  # centering does not help: two far clusters of near rows
    exact = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    monkeypatch.setattr(distances_module, "PAIRS_AT_A_TIME", 4)
    torch.testing.assert_close(pairwise_distances(rows), exact, rtol=1e-9, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_but_not_computed_in(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Catches sums in bfloat16 (3 digits): the loss must be that of the same numbers in float32."""
    student, teacher = batch(40, 8, 27).to(dtype), batch(40, 8, 28).to(dtype)
    value = loss(student, teacher, reduction="none")
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float(), reduction="none"))
    grad = gradient(loss, student, teacher)
    assert grad.dtype == dtype
    exact = gradient(loss, student.float(), teacher.float())
    torch.testing.assert_close(grad.float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("wide", [torch.float64, torch.float32])
def test_autocast_does_not_lower_the_precision(
    monkeypatch: pytest.MonkeyPatch, loss: Callable[..., Tensor], wide: torch.dtype
) -> None:
    """Catches a matrix product that mixed precision moves to bfloat16, also on a device without float64."""
    student, teacher = batch(20, 8, 29, torch.float32), batch(20, 8, 30, torch.float32)
    items, grad = loss(student, teacher, reduction="none"), gradient(loss, student, teacher)
    for module in (angle_module, distances_module):
        monkeypatch.setattr(module, "wide_dtype", lambda device: wide)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(student, teacher, reduction="none"), items, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(gradient(loss, student, teacher), grad, rtol=1e-4, atol=1e-6)


def test_only_mps_does_without_float64() -> None:
    """Catches an operation that a Mac's GPU does not have, or the lesser precision everywhere else."""
    assert distances_module.wide_dtype(torch.device("mps")) == torch.float32
    assert distances_module.wide_dtype(torch.device("cuda")) == torch.float64


def test_angle_without_gradient_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches evaluation that pays for a gradient nobody asked for."""
    asked: list[bool] = []
    original = angle_module.angle_pass

    def spy(student: Tensor, teacher: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        asked.append(weights is not None)
        return original(student, teacher, weights)

    monkeypatch.setattr(angle_module, "angle_pass", spy)
    student, teacher = batch(5, 3, 31).requires_grad_(), batch(5, 3, 32)
    with torch.no_grad():
        rkd_angle(student, teacher, reduction="mean")
    rkd_angle(student.detach(), teacher, reduction="mean")
    assert asked == [False, False]
    rkd_angle(student, teacher, reduction="mean").backward()
    assert asked == [False, False, True]


def test_angle_allocates_no_cube() -> None:
    """Catches an N x N x D or N^3 tensor: at N = 96, D = 512 they would hold 4.7 and 0.9 million numbers."""
    student, teacher = batch(96, 512, 33, torch.float32), batch(96, 512, 34, torch.float32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                if isinstance(value, Tensor):
                    largest = max(largest, value.untyped_storage().nbytes() // value.element_size())
            return out

    with Watch():
        gradient(rkd_angle, student, teacher)
    assert 96 * 96 <= largest <= angle_module.BLOCK_CPU


def test_darkrank_survives_large_scores() -> None:
    """Catches exp(-3 * 8^3) = 0 and log 0: unnormalized students have such distances."""
    student, teacher = (10.0 * batch(8, 6, 35, torch.float32)).requires_grad_(), batch(8, 6, 36)
    loss = hard_darkrank(student, teacher, reduction="mean")
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_darkrank_leaves_out_the_sample_itself() -> None:
    """Catches "the nearest is oneself": with coinciding teacher rows it may be another one."""
    teacher = torch.zeros(3, 2)
    loss = hard_darkrank(torch.tensor([[0.0], [1.0], [3.0]]), teacher, reduction="none", alpha=1.0, beta=1.0)
    # Row 2 ranks rows 0 and 1 (distances 3 and 2), never itself.
    assert loss[2].item() == pytest.approx(math.log(1 + math.exp(1)), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("student", "teacher", "extra", "error", "message"),
    [
        (torch.ones(3, 2), torch.ones(4, 2), {}, ValueError, "3 student rows and 4 teacher rows"),
        (torch.ones(3, 2, 1), torch.ones(3, 2), {}, ValueError, r"student_embeddings: got shape \(3, 2, 1\)"),
        (torch.ones(0, 2), torch.ones(0, 2), {}, ValueError, r"got shape \(0, 2\)"),
        (
            torch.ones(3, 2),
            torch.ones(3, 2, dtype=torch.long),
            {},
            TypeError,
            "teacher_embeddings: got dtype",
        ),
        (torch.ones(3, 2), torch.ones(3, 2), {"reduction": "batchmean"}, ValueError, "got 'batchmean'"),
    ],
)
def test_wrong_arguments_are_refused(
    loss: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    extra: dict[str, str],
    error: type[Exception],
    message: str,
) -> None:
    """Catches broadcasting of unlike batches, integer embeddings, an unknown reduction."""
    with pytest.raises(error, match=message):
        loss(student, teacher, **{"reduction": "mean", **extra})


def test_darkrank_refuses_settings_without_meaning() -> None:
    """Catches scores that prefer the far, lists of length 0, and a gradient through an order."""
    rows = batch(4, 3, 37)
    for wrong in ({"alpha": -1.0}, {"beta": 0.0}, {"list_length": 0}, {"alpha": math.nan}):
        with pytest.raises(ValueError, match="expected > 0, > 0 and >= 1"):
            hard_darkrank(rows, rows, reduction="mean", **wrong)
    with pytest.raises(ValueError, match="teacher_grad"):
        hard_darkrank(rows, rows, reduction="mean", teacher_grad=True)
