"""Noise-contrastive estimation: against a plain loop, the optimum, masks."""

from __future__ import annotations

import math

import pytest
import torch

from kdzoo.losses.nce import EPSILON, noise_contrastive


def scores(anchors: int = 3, noise: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(anchors, 1 + noise, generator=generator, dtype=torch.float64) + 0.01
    return values[:, 0].clone().requires_grad_(), values[:, 1:].clone().requires_grad_()


def loop(true: float, noise: list[float], data_size: int) -> float:
    c = len(noise) / data_size
    loss = -math.log(true / (true + c + EPSILON))
    return loss - sum(math.log(c / (h + c + EPSILON)) for h in noise)


def test_agrees_with_a_loop() -> None:
    """A mean over the noise where the sum belongs, or c without the number of noise pairs."""
    positives, negatives = scores()
    want = [loop(p, row, 10) for p, row in zip(positives.tolist(), negatives.tolist(), strict=True)]
    found = noise_contrastive(positives, negatives, data_size=10, reduction="none")
    assert found.tolist() == pytest.approx(want, rel=1e-12)
    assert noise_contrastive(positives, negatives, data_size=10, reduction="mean").item() == pytest.approx(
        sum(want) / 3
    )


def test_masked_noise_is_as_good_as_absent() -> None:
    """Masked pairs that still count in c, or in the sum; an anchor without any noise."""
    positives, negatives = scores()
    mask = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])
    found = noise_contrastive(positives, negatives, data_size=10, mask=mask, reduction="none")
    rows = [
        [h for h, kept in zip(row, keep, strict=True) if kept]
        for row, keep in zip(negatives.tolist(), mask.tolist(), strict=True)
    ]
    want = [loop(p, row, 10) if row else 0.0 for p, row in zip(positives.tolist(), rows, strict=True)]
    assert found.tolist() == pytest.approx(want, rel=1e-9, abs=1e-5)
    found.sum().backward()
    assert negatives.grad is not None
    assert torch.isfinite(negatives.grad).all()
    assert not negatives.grad[~mask].any()


def test_gradients_push_the_true_pair_up_and_noise_down() -> None:
    """A sign error would pull the student away from the teacher and still run."""
    positives, negatives = scores()
    assert torch.autograd.gradcheck(
        lambda p, n: noise_contrastive(p, n, data_size=10, reduction="sum"), (positives, negatives)
    )
    noise_contrastive(positives, negatives, data_size=10, reduction="sum").backward()
    assert positives.grad is not None
    assert negatives.grad is not None
    assert (positives.grad < 0).all()
    assert (negatives.grad > 0).all()


def test_half_precision_is_widened() -> None:
    """exp(1 / 0.07) over Z in bfloat16 would lose the noise's share."""
    positives, negatives = (part.detach().bfloat16() for part in scores())
    assert noise_contrastive(positives, negatives, data_size=10, reduction="mean").dtype == torch.float32


@pytest.mark.parametrize(
    ("positives", "negatives", "mask", "size", "message"),
    [
        (torch.ones(2), torch.ones(3, 1), None, 5, r"\(2,\) and negatives \(3, 1\)"),
        (torch.ones(2), torch.ones(2, 1), torch.ones(2, 2, dtype=torch.bool), 5, "mask"),
        (torch.ones(2), torch.ones(2, 1), None, 0, "data_size"),
    ],
)
def test_refuses(positives, negatives, mask, size, message) -> None:  # type: ignore[no-untyped-def]
    """Shapes that broadcast would hold one anchor's noise against another's."""
    with pytest.raises(ValueError, match=message):
        noise_contrastive(positives, negatives, mask=mask, data_size=size, reduction="mean")
