"""Skew divergences and total variation: what sets them apart; the rest is tested with the other divergences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdzoo.losses import divergences
from kdzoo.losses.bounded import skew_kl, skew_reverse_kl, total_variation
from kdzoo.losses.divergences import kl_divergence, reverse_kl

SETTINGS = {"temperature": 1.0, "axis": -1, "reduction": "none"}


@pytest.fixture(params=[-1, 1 << 17], ids=["chunked", "plain"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergences, "SMALL", request.param)


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 9, generator=generator, dtype=torch.float64) * 3
    return student, teacher


def test_by_hand() -> None:
    """A share given to the wrong side: teacher (3/4, 1/4), student (1/2, 1/2), share 1/2 gives m = (5/8, 3/8)."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    to_mixture = 0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)
    assert skew_kl(student, teacher, alpha=0.5, **SETTINGS).item() == pytest.approx(to_mixture, rel=1e-5)
    to_mixture = 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    assert skew_reverse_kl(student, teacher, alpha=0.5, **SETTINGS).item() == pytest.approx(
        to_mixture, rel=1e-5
    )
    assert total_variation(student, teacher, **SETTINGS).item() == pytest.approx(0.25, rel=1e-6)


def test_ends_of_alpha() -> None:
    """For alpha -> 0 they are the plain KLs; towards 1 they vanish."""
    student, teacher = pair()
    for skewed, plain in ((skew_kl, kl_divergence), (skew_reverse_kl, reverse_kl)):
        near = skewed(student, teacher, alpha=1e-9, **SETTINGS)
        torch.testing.assert_close(near, plain(student, teacher, **SETTINGS), rtol=1e-3, atol=1e-5)
        assert bool((skewed(student, teacher, alpha=1 - 1e-9, **SETTINGS) < 1e-7).all())


def test_nothing_in_common_stays_finite() -> None:
    """An inf, or a NaN gradient, where each side forbids what the other allows: what these are there for."""
    student = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]], requires_grad=True)
    teacher = torch.tensor([[-torch.inf, 2.0, -torch.inf, -torch.inf]])
    for skewed in (skew_kl, skew_reverse_kl):
        value = skewed(student, teacher, alpha=0.1, **SETTINGS)
        assert value.item() == pytest.approx(-math.log(0.1), rel=1e-5)
        assert bool(torch.autograd.grad(value.sum(), student)[0].isfinite().all())
    assert total_variation(student, teacher, **SETTINGS).item() == pytest.approx(1.0, rel=1e-6)


def test_bad_arguments_are_named() -> None:
    """An alpha that makes no mixture, a teacher of another vocabulary."""
    student, teacher = pair()
    for alpha in (0.0, 1.0, -0.1, math.nan):
        for skewed in (skew_kl, skew_reverse_kl):
            with pytest.raises(ValueError, match=r"alpha: got .* expected 0 < alpha < 1"):
                skewed(student, teacher, alpha=alpha, **SETTINGS)
    with pytest.raises(ValueError, match=r"got student \(6, 9\) and teacher \(6, 8\), expected equal shapes"):
        total_variation(student, teacher[:, :8], **SETTINGS)
