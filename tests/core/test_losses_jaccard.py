"""Jaccard losses: by hand, against slow references, as metrics, on soft targets, and where nothing counts."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.losses.jaccard import Form, Over, jaccard_distance, jaccard_loss, overlap

FORMS = get_args(Form)
METRICS = FORMS[:2]
IGNORE = 255


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(logits, labels, mask) of 3 images and 4 classes; the third class is absent, and the second from image 0."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, 4, 3, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 3])[torch.randint(0, 3, (3, 3, 5), generator=generator)]
    labels[0][labels[0] == 1] = 3
    labels[1, 0, :2] = IGNORE
    return logits, labels, labels != IGNORE


def loss(logits: Tensor, target: Tensor, **changes: Any) -> Tensor:
    settings: dict[str, Any] = {
        "axis": 1,
        "form": "jml-1",
        "over": "batch",
        "active": "present",
        "reduction": "mean",
    }
    return jaccard_loss(logits, target, **(settings | changes))


def slow(
    logits: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    form: str,
    over: Over,
    active: str,
    alpha: float = 1.0,
    beta: float = 1.0,
    smooth: float = 0.0,
) -> float:
    """The mean, from the formulas, pixel by pixel."""
    images, classes = logits.shape[:2]
    p = logits.softmax(1)
    y = (
        target
        if target.is_floating_point()
        else F.one_hot(target.clamp(max=classes), classes + 1).movedim(-1, 1)
    )
    cells: dict[tuple[int, int], list[tuple[float, float]]] = {
        (b, c): [
            (float(p[b, c, i, j]), float(y[b, c, i, j]))
            for i in range(p.shape[2])
            for j in range(p.shape[3])
            if mask[b, i, j]
        ]
        for b in range(images)
        for c in range(classes)
    }

    def distance(pairs: list[tuple[float, float]]) -> float:
        mine, true = sum(a for a, _ in pairs), sum(b for _, b in pairs)
        apart, product = sum(abs(a - b) for a, b in pairs), sum(a * b for a, b in pairs)
        if form == "soft-jaccard":
            tp = product
            fp, fn = mine - tp, true - tp
        else:
            tp = product if form == "jml-2" else (mine + true - apart) / 2
            fp, fn = (mine - true + apart) / 2, (true - mine + apart) / 2
        return 1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)

    def counts(pairs: list[tuple[float, float]]) -> bool:
        return active == "all" or max((b for _, b in pairs), default=0.0) > 0.01

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    if over == "batch":
        joined = [[pair for b in range(images) for pair in cells[b, c]] for c in range(classes)]
        return mean([distance(pairs) for pairs in joined if counts(pairs)])
    outer, inner = (range(images), range(classes)) if over == "image" else (range(classes), range(images))
    groups = []
    for k in outer:
        each = [cells[(k, m) if over == "image" else (m, k)] for m in inner]
        if values := [distance(pairs) for pairs in each if counts(pairs)]:
            groups.append(mean(values))
    return mean(groups)


def test_distances_by_hand() -> None:
    """A factor of two between intersection and union, or another form under a name."""
    p, y = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.5, 0.5, 0.5])
    # min: 0.5 + 0.5 + 0; |p - y|: 0.5 + 0 + 0.5; product: 0.5 + 0.25 + 0; |p| = |y| = 1.5
    expected = {"jml-1": 1 - 1 / 2, "jml-2": 1 - 0.75 / 1.75, "soft-jaccard": 1 - 0.75 / 2.25}
    for form, value in expected.items():
        assert jaccard_distance(p, y, form=form).item() == pytest.approx(value)
    assert jaccard_distance(p, y, form="jml-1", alpha=0.5, beta=0.5).item() == pytest.approx(1 - 1 / 1.5)
    assert jaccard_distance(p, y, form="jml-1", alpha=0.0, beta=1.0).item() == pytest.approx(1 - 1 / 1.5)
    assert jaccard_distance(p, y, form="jml-1", smooth=1.0).item() == pytest.approx(1 - 2 / 3)


@pytest.mark.parametrize("form", FORMS)
def test_hard_targets_make_all_forms_the_jaccard_index(form: Form) -> None:
    """A form that differs on hard labels would change every training without soft ones."""
    p, y = uniform(4, 30), uniform(4, 30, seed=1) > 0.6
    expected = jaccard_distance(p, y, form="jml-1")
    torch.testing.assert_close(jaccard_distance(p, y, form=form), expected)
    torch.testing.assert_close(jaccard_distance(p, y.double(), form=form), expected)
    sets = jaccard_distance((p > 0.5).double(), y, form=form)
    inter, union = ((p > 0.5) & y).sum(1), ((p > 0.5) | y).sum(1)
    torch.testing.assert_close(sets, 1 - inter / union, check_dtype=False)


@pytest.mark.parametrize("form", METRICS)
def test_it_is_zero_at_a_soft_target_and_symmetric(form: Form) -> None:
    """What makes it fit for soft labels; soft Jaccard has neither a zero nor a minimum there."""
    p, y = uniform(50, 9), uniform(50, 9, seed=1)
    assert jaccard_distance(y, y, form=form).abs().max() < 1e-15
    torch.testing.assert_close(jaccard_distance(p, y, form=form), jaccard_distance(y, p, form=form))
    assert (jaccard_distance(p, y, form=form) > 0).all()
    assert (jaccard_distance(y, y, form="soft-jaccard") > 0.1).all()


def test_triangle_inequality() -> None:
    """JML-1 is a metric: a detour is never shorter."""
    a, b, c = (uniform(400, 3, seed=seed) ** 3 for seed in range(3))
    ab, bc, ac = (jaccard_distance(x, y, form="jml-1") for x, y in ((a, b), (b, c), (a, c)))
    assert (ab + bc - ac).min() > -1e-12


@pytest.mark.parametrize("form", FORMS)
def test_descent_ends_at_the_target_or_at_a_vertex(form: Form) -> None:
    """The paper's first claim: from a random start p goes to soft y; under soft Jaccard it hardens instead."""
    torch.manual_seed(0)
    y = torch.randn(2, 16, dtype=torch.float64).softmax(0)
    z = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=0.1)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 400)
        optimizer.zero_grad()
        jaccard_distance(z.softmax(0), y, form=form).mean().backward()
        optimizer.step()
    p = z.detach().softmax(0)
    if form in METRICS:
        assert (p - y).abs().max() < 0.01
    else:
        assert (p - y).abs().mean() > 0.2
        assert torch.minimum(p, 1 - p).max() < 0.1
        rounded = (y > 0.5).double()
        best = jaccard_distance(rounded, y, form=form).mean()
        assert best < jaccard_distance(y, y, form=form).mean()


@pytest.mark.parametrize("over", get_args(Over))
@pytest.mark.parametrize("form", FORMS)
def test_loss_is_the_formula(form: Form, over: Over) -> None:
    """Sums and divisions in another order, absent classes that count, pixels that should not."""
    logits, labels, mask = example()
    found = loss(logits, labels, form=form, over=over, mask=mask, smooth=0.5)
    expected = slow(logits, labels, mask, form=form, over=over, active="present", smooth=0.5)
    assert found.item() == pytest.approx(expected)
    soft = (2 * logits.roll(1, 0)).softmax(1)
    for active in ("present", "all"):
        found = loss(logits, soft, form=form, over=over, active=active, mask=mask, alpha=0.3, beta=0.7)
        expected = slow(logits, soft, mask, form=form, over=over, active=active, alpha=0.3, beta=0.7)
        assert found.item() == pytest.approx(expected)


def test_absent_classes_count_only_where_all_are_asked() -> None:
    """An absent class contributes 1 whatever is predicted for it, and hides what is learned of the others."""
    logits, labels, mask = example()
    values = loss(logits, labels, mask=mask, reduction="none")
    assert values[2] == 0
    assert loss(logits, labels, mask=mask).item() == pytest.approx(values.sum().item() / 3)
    everything = loss(logits, labels, mask=mask, active="all", reduction="none")
    assert everything[2].item() == pytest.approx(1.0)
    torch.testing.assert_close(everything[[0, 1, 3]], values[[0, 1, 3]])
    # Image 0 lacks class 1: its mean is over two classes.
    each = loss(logits[:1], labels[:1], over="image", reduction="none")
    alone = [loss(logits[:1], labels[:1], reduction="none")[c] for c in (0, 3)]
    assert each.item() == pytest.approx((sum(alone) / 2).item())


def test_threshold_of_soft_classes() -> None:
    """A class at 0.005 everywhere is no class of the target."""
    y = torch.tensor([[[0.995, 0.5], [0.005, 0.5]], [[0.995, 0.995], [0.005, 0.005]]])
    values = loss(torch.zeros(2, 2, 2), y, over="image", reduction="none")
    only_first = jaccard_distance(torch.full((2,), 0.5), y[1, 0], form="jml-1")
    assert values[1].item() == pytest.approx(only_first.item())
    assert loss(torch.zeros(2, 2, 2), y, threshold=0.6, reduction="none")[1] == 0


@pytest.mark.parametrize("over", get_args(Over))
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_nothing_counts(over: Over, smooth: float) -> None:
    """0 / 0 in the loss, or NaN in the gradient of a batch without a label."""
    for target in (torch.full((2, 3, 3), IGNORE), uniform(2, 4, 3, 3)):
        for active in ("present", "all"):
            logits = uniform(2, 4, 3, 3, seed=3).requires_grad_()
            nothing = torch.zeros(2, 3, 3, dtype=torch.bool)
            value = loss(logits, target, over=over, mask=nothing, smooth=smooth, active=active)
            value.backward()
            assert value.item() == 0
            assert logits.grad is not None
            assert (logits.grad == 0).all()


def test_hidden_pixels_may_hold_anything() -> None:
    """NaN under the mask that reaches the loss or the gradient: 0 * NaN is NaN."""
    logits, labels, mask = example()
    soft = logits.roll(1, 0).softmax(1)
    broken = logits.masked_fill(~mask.unsqueeze(1), torch.nan).requires_grad_()
    for target in (labels, soft.masked_fill(~mask.unsqueeze(1), torch.nan)):
        value = loss(broken, target, mask=mask)
        (gradient,) = torch.autograd.grad(value, broken)
        assert value.item() == pytest.approx(
            loss(logits, labels if target is labels else soft, mask=mask).item()
        )
        assert gradient.isfinite().all()
        assert (gradient.movedim(1, -1)[~mask] == 0).all()


def test_one_pixel_and_no_pixel() -> None:
    """Items without positions are positions themselves: a mean over the wrong axis would pass on maps."""
    logits, labels = torch.tensor([[1.0, -1.0]]), torch.tensor([0])
    p = logits.softmax(1)[0, 0].item()
    assert loss(logits, labels).item() == pytest.approx(1 - p)
    assert loss(logits[:, :, None, None], labels[:, None, None]).item() == pytest.approx(1 - p)
    assert loss(torch.zeros(2, 3, 0), torch.zeros(2, 0, dtype=torch.int64)).item() == 0


def test_class_axis() -> None:
    """Tokens have their classes last; taken for positions they would be a loss of another thing."""
    logits, labels, mask = example()
    soft = logits.roll(1, 0).softmax(1)
    for target, moved in ((labels, labels), (soft, soft.movedim(1, -1))):
        found = loss(logits.movedim(1, -1), moved, axis=-1, mask=mask)
        assert found.item() == pytest.approx(loss(logits, target, mask=mask).item())


def test_teacher_gets_no_gradient_unless_asked() -> None:
    """A soft target that is trained along would come down to the student."""
    logits, _, _ = example()
    student, teacher = logits.clone().requires_grad_(), logits.roll(1, 0).softmax(1).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    loss(student, teacher, target_grad=True).backward()
    assert teacher.grad is not None


def test_gradient_is_the_derivative() -> None:
    """A custom or half-detached gradient."""
    logits, labels, mask = example()
    soft = logits.roll(1, 0).softmax(1)
    for target, over in itertools.product((labels, soft), get_args(Over)):
        assert torch.autograd.gradcheck(
            lambda z, target=target, over=over: loss(z, target, over=over, mask=mask, smooth=0.1),
            logits.clone().requires_grad_(),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    """A sum of 10,000 halves in bfloat16 stops at 256."""
    logits = torch.randn(2, 3, 100, 100, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.randint(0, 3, (2, 100, 100), generator=torch.Generator().manual_seed(1))
    for target in (labels, logits.float().flip(0).softmax(1), logits.roll(1, 0).softmax(1)):
        found, exact = (
            loss(logits, target),
            loss(logits.double(), target if target is labels else target.double()),
        )
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(exact.item(), rel=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    """Labels held against the wrong pixels, or a typo that becomes a default."""
    logits, labels, mask = example()
    with pytest.raises(ValueError, match="expected equal shapes"):
        overlap(logits, logits[:1], form="jml-1")
    with pytest.raises(ValueError, match="wrong places"):
        loss(logits, labels[:, :2])
    with pytest.raises(ValueError, match="wrong places"):
        loss(logits, logits[:1])
    with pytest.raises(TypeError, match="class numbers"):
        loss(logits, mask)
    with pytest.raises(TypeError, match=r"torch\.bool"):
        loss(logits, labels, mask=mask.long())
    with pytest.raises(ValueError, match="form: got 'jml'"):
        loss(logits, labels, form="jml")
    with pytest.raises(ValueError, match="over, active"):
        loss(logits, labels, over="images")
    with pytest.raises(ValueError, match="axis"):
        loss(logits, labels, axis=0)
    with pytest.raises(ValueError, match="reward mistakes"):
        loss(logits, labels, alpha=-1.0)
    with pytest.raises(ValueError, match="reduction"):
        loss(logits, labels, reduction="average")
