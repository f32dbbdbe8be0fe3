"""Boxes that are pasted, and which labelled pixels are hard."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdzoo_segmentation.cutmix import box_masks, pasted
from kdzoo_segmentation.hard_pixels import hard_cross_entropy, hard_pixels
from kdzoo_segmentation.measures import IGNORE


def masks_of(
    seed: int = 0, count: int = 5, size: tuple[int, int] = (20, 30), **changes: object
) -> torch.Tensor:
    given = {"boxes": 3, "low": 0.25, "high": 0.5, "random_aspect": True, "invert": True} | changes
    return box_masks(count, size, random=np.random.RandomState(seed), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("random_aspect", [True, False])
def test_masks_by_a_slow_reference(random_aspect: bool) -> None:
    """Axes exchanged, boxes that leave the image, or overlaps that do not cancel."""
    random, size, boxes, count = np.random.RandomState(3), (20, 30), 4, 6
    area = random.uniform(0.3, 0.6, (count, boxes))
    power = random.uniform(size=(count, boxes)) if random_aspect else np.full((count, boxes), 0.5)
    place = random.uniform(size=(count, boxes, 2))
    expected = np.zeros((count, 1, *size), dtype=bool)
    for k in range(count):
        for j in range(boxes):
            tall = area[k, j] ** power[k, j]
            shares = (tall / boxes**0.5, area[k, j] / tall / boxes**0.5)
            height, width = (int(np.round(share * side)) for share, side in zip(shares, size, strict=True))
            top = int(np.round((size[0] - height) * place[k, j, 0]))
            left = int(np.round((size[1] - width) * place[k, j, 1]))
            for y in range(top, top + height):
                for x in range(left, left + width):
                    expected[k, 0, y, x] = not expected[k, 0, y, x]
    found = masks_of(3, count, size, boxes=boxes, low=0.3, high=0.6, random_aspect=random_aspect)
    assert np.array_equal(found.numpy(), expected)


def test_one_box_has_its_area_and_the_inverse_is_the_rest() -> None:
    """Shares of the side taken for shares of the area."""
    found = masks_of(count=200, size=(100, 100), boxes=1, low=0.25, high=0.25)
    assert found.float().mean((1, 2, 3)) == pytest.approx(torch.full((200,), 0.25), abs=0.02)
    assert torch.equal(masks_of(invert=False), ~masks_of())
    assert torch.equal(masks_of(1), masks_of(1))
    assert not torch.equal(masks_of(1), masks_of(2))


def test_degenerate_boxes() -> None:
    """One pixel is either the one image's or the other's; the whole image is one box."""
    assert masks_of(count=3, size=(1, 1)).shape == (3, 1, 1, 1)
    assert bool(masks_of(boxes=1, low=1.0, high=1.0).all())
    assert masks_of(count=0).shape == (0, 1, 20, 30)
    for wrong in ({"boxes": 0}, {"low": 0.0}, {"low": 0.6}, {"high": 1.5}):
        with pytest.raises(ValueError, match="at least one box"):
            masks_of(**wrong)


def test_images_and_labels_are_pasted_alike() -> None:
    """A mask that is broadcast over the wrong axis mixes pictures and labels of different places."""
    masks = masks_of(count=2, size=(4, 6))
    first = torch.arange(48.0).view(2, 1, 4, 6)
    second = -first - 1
    image, labels = pasted(first, second, masks), pasted(first[:, 0], second[:, 0], masks)
    assert torch.equal(image[:, 0], labels)
    for b in range(2):
        for y in range(4):
            for x in range(6):
                source = second if masks[b, 0, y, x] else first
                assert labels[b, y, x] == source[b, 0, y, x]


def test_hard_pixels_by_hand() -> None:
    """A threshold on the largest probability in place of the label's, or on the wrong side."""
    p = torch.tensor([0.9, 0.8, 0.6, 0.3])  # of the label, class 0
    logits = torch.stack((p.log(), (1 - p).log())).view(1, 2, 1, 4)
    labels = torch.zeros(1, 1, 4).long()
    assert hard_pixels(logits, labels, threshold=0.7, at_least=0).flatten().tolist() == [
        False,
        False,
        True,
        True,
    ]
    assert hard_pixels(logits, labels, threshold=0.7, at_least=3).flatten().tolist() == [
        False,
        True,
        True,
        True,
    ]
    assert hard_pixels(logits, labels, threshold=0.1, at_least=1).flatten().tolist() == [
        False,
        False,
        False,
        True,
    ]
    assert hard_pixels(logits, labels, threshold=0.7, at_least=4).all()
    labels[0, 0, 3] = IGNORE
    keep = hard_pixels(logits, labels, threshold=0.7, at_least=1)
    assert keep.flatten().tolist() == [False, False, True, False]
    assert hard_cross_entropy(logits, labels, keep).item() == pytest.approx(-np.log(0.6), rel=1e-5)


def test_all_pixels_hard_is_plain_cross_entropy() -> None:
    """A mean over another number of pixels than those that count."""
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    labels[0, :2] = IGNORE
    keep = hard_pixels(logits, labels, threshold=1.0, at_least=0)
    assert torch.equal(keep, labels != IGNORE)
    torch.testing.assert_close(
        hard_cross_entropy(logits, labels, keep), F.cross_entropy(logits, labels, ignore_index=IGNORE)
    )
    half = hard_cross_entropy(logits.bfloat16(), labels, keep)
    assert half.dtype == torch.float32


def test_no_labelled_pixel_is_no_loss() -> None:
    """0 / 0 on a crop that holds nothing but pixels to be ignored."""
    logits, labels = torch.zeros(1, 2, 2, 2, requires_grad=True), torch.full((1, 2, 2), IGNORE)
    keep = hard_pixels(logits, labels, threshold=0.7, at_least=3)
    loss = hard_cross_entropy(logits, labels, keep)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) == 0.0
