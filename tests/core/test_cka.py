"""Centered kernel alignment: invariances, a slow reference, degenerate input."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdzoo.cka import kernel_cka, linear_cka

Measure = Callable[[Tensor, Tensor], Tensor]


def data(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(x: list[list[float]], y: list[list[float]], gaussian: bool) -> float:
    """From the definition, by Gram matrices and the centering matrix written out."""
    n = len(x)

    def gram(rows: list[list[float]]) -> list[list[float]]:
        if not gaussian:
            return [[sum(a * b for a, b in zip(r, s, strict=True)) for s in rows] for r in rows]
        d = [[sum((a - b) ** 2 for a, b in zip(r, s, strict=True)) for s in rows] for r in rows]
        positive = sorted(v for row in d for v in row if v > 0)
        median = (positive[(len(positive) - 1) // 2] + positive[len(positive) // 2]) / 2
        return [[math.exp(-v / (2 * median)) for v in row] for row in d]

    def centered(k: list[list[float]]) -> list[list[float]]:
        means = [sum(row) / n for row in k]
        mean = sum(means) / n
        return [[k[i][j] - means[i] - means[j] + mean for j in range(n)] for i in range(n)]

    def inner(a: list[list[float]], b: list[list[float]]) -> float:
        return sum(a[i][j] * b[i][j] for i in range(n) for j in range(n))

    k, m = centered(gram(x)), centered(gram(y))
    return inner(k, m) / math.sqrt(inner(k, k) * inner(m, m))


@pytest.mark.parametrize(("rows", "one", "other"), [(7, 3, 2), (4, 9, 6)])
def test_slow_reference(rows: int, one: int, other: int) -> None:
    """Both ways through the linear form (over samples, over widths), and the bandwidth of the Gaussian one."""
    x, y = data(rows, one, 0) + 5, data(rows, other, 1)
    assert linear_cka(x, y).item() == pytest.approx(slow(x.tolist(), y.tolist(), gaussian=False))
    assert kernel_cka(x, y).item() == pytest.approx(slow(x.tolist(), y.tolist(), gaussian=True))


@pytest.mark.parametrize("measure", [linear_cka, kernel_cka])
def test_blind_to_rotation_scale_and_shift(measure: Measure) -> None:
    """Two seeds of one net differ by a rotation of their layers at least."""
    x = data(12, 4, 0)
    turn = torch.linalg.qr(data(4, 4, 1))[0]
    assert measure(x, 3 * x @ turn + 7).item() == pytest.approx(1)
    assert measure(x, data(12, 4, 2)).item() < 0.7


def test_linear_is_symmetric_and_between_zero_and_one() -> None:
    """A wrong norm shows as values above 1."""
    x, y = data(9, 4, 0), data(9, 5, 1)
    assert linear_cka(x, y).item() == pytest.approx(linear_cka(y, x).item())
    assert 0 <= linear_cka(x, y).item() <= 1


@pytest.mark.parametrize("measure", [linear_cka, kernel_cka])
def test_a_side_that_does_not_vary_is_like_nothing(measure: Measure) -> None:
    """0/0 would be NaN in the mean over layers, for a single dead layer."""
    assert measure(torch.ones(5, 3), data(5, 2, 0).float()).item() == 0
    assert measure(torch.ones(5, 3), torch.ones(5, 3)).item() == 0


def test_gradient() -> None:
    """Used as a loss, too."""
    assert torch.autograd.gradcheck(linear_cka, (data(6, 3, 0).requires_grad_(), data(6, 2, 1)))


def test_half_precision() -> None:
    """Sums of squares in bf16 keep three digits."""
    x, y = data(40, 6, 0).bfloat16(), data(40, 5, 1).bfloat16()
    assert linear_cka(x, y).dtype == torch.float32
    assert linear_cka(x, y).item() == pytest.approx(linear_cka(x.double(), y.double()).item(), abs=1e-5)


@pytest.mark.parametrize("measure", [linear_cka, kernel_cka])
def test_other_samples_are_refused(measure: Measure) -> None:
    """Feature maps taken as matrices, or samples that do not belong together."""
    for x, y in [
        (data(4, 3, 0), data(5, 3, 0)),
        (data(1, 3, 0), data(1, 3, 0)),
        (torch.ones(2, 3, 4), data(2, 3, 0)),
    ]:
        with pytest.raises(ValueError, match="expected"):
            measure(x, y)
