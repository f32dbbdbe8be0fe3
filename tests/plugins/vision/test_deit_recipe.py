"""DeiT's recipe: RandAugment and erasing by a sample's own numbers, mixed batches, repeated samples."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from kdzoo.loader import Order
from kdzoo.method import Batch
from kdzoo.rng import uniforms
from kdzoo_vision import mixing
from kdzoo_vision.data import strong
from kdzoo_vision.data.photos import load
from kdzoo_vision.data.transforms import DRAWS, Recipe

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
import tiny_layouts

GREY = (124, 116, 104)
MIDDLE = (0.0, 0.0, 0.5, 0.25, 0.7)  # first operation, applied, a normal draw of 0, positive


def photo() -> Image.Image:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((24, 24), Image.Resampling.BICUBIC)


def draws(which: int, *, sign: float = 0.7, apply: float = 0.0) -> list[float]:
    """One operation at the exact magnitude 9, the second one left out."""
    one = [(which + 0.5) / len(strong._OPERATIONS), apply, 0.5, 0.25, sign]
    return [*one, 0.0, 0.99, 0.5, 0.25, 0.7]


def augmented(which: int, **options: float) -> np.ndarray:
    return np.asarray(strong.rand_augment(photo(), draws(which, **options), GREY)).astype(int)


def test_known_operations_at_magnitude_nine() -> None:
    """Would catch another order, strength or direction of the operations than the policy's."""
    pixels = np.asarray(photo()).astype(int)
    assert len(strong._OPERATIONS) == 15
    assert (augmented(2) == 255 - pixels).all()  # invert
    assert (augmented(4) == pixels // 128 * 128).all()  # posterize: 4 - int(3.6) = 1 bit
    solarized = np.where(pixels < 256 - 230, pixels, 255 - pixels)
    assert (augmented(5) == solarized).all()
    assert (augmented(6) == np.where(pixels < 128, np.minimum(255, pixels + 99), pixels)).all()
    assert (augmented(9) >= pixels).all()  # brightness x 1.81
    assert abs(augmented(9, sign=0.2) - 0.19 * pixels).max() <= 1
    moved = augmented(13)  # 0.45 x 0.9 of 24 pixels
    assert (moved[:, -9:] == np.array(GREY)).all()
    assert abs(moved[:, :13] - (0.28 * pixels[:, 9:22] + 0.72 * pixels[:, 10:23])).mean() < 6
    assert (augmented(14, sign=0.2)[:9] == np.array(GREY)).all()


def test_every_operation_keeps_the_size_and_half_do_nothing() -> None:
    """Would catch an operation that fails on some level, and a probability that is not honoured."""
    pixels = np.asarray(photo()).astype(int)
    changed = 0
    for which in range(15):
        assert augmented(which).shape == pixels.shape
        assert (augmented(which, apply=0.5) == pixels).all()
        changed += bool((augmented(which) != pixels).any())
    assert changed >= 14  # equalising or stretching may leave a picture alone
    table = uniforms(torch.arange(200), strong.DRAWS)
    same = [(np.asarray(strong.rand_augment(photo(), row, GREY)) == pixels).all() for row in table.tolist()]
    assert 0.2 < np.mean(same) < 0.4  # both left out: a quarter


def test_levels_stay_in_range() -> None:
    """Would catch a posterised image without bits, or a rotation by more than 30 degrees, at an extreme draw."""
    for first in (0.0, 1.0 - 2.0**-53):
        for second in (0.0, 0.5):
            for which in range(15):
                one = [(which + 0.5) / 15, 0.0, first, second, 0.7]
                assert strong.rand_augment(photo(), [*one, 0.0, 0.99, 0.5, 0.25, 0.7], GREY).size == (24, 24)


def test_erasing_is_one_box_of_noise_by_the_samples_own_seed() -> None:
    """Would catch noise that depends on the batch, a box of another size, or images that are all erased."""
    seeds = torch.arange(400)
    table = uniforms(seeds, strong.ERASE_DRAWS)
    erased = strong.erase(torch.zeros(400, 3, 20, 20), seeds, table, 0.25)
    hit = erased.flatten(1).ne(0).any(1)
    assert 0.2 < float(hit.float().mean()) < 0.3
    shares = erased[hit].ne(0).float().mean((1, 2, 3))
    assert 0.01 < float(shares.min()) < float(shares.max()) < 0.36
    assert float(erased[erased != 0].std()) == pytest.approx(1.0, abs=0.05)
    k = int(hit.nonzero()[0])
    alone = strong.erase(torch.zeros(1, 3, 20, 20), seeds[k : k + 1], table[k : k + 1], 0.25)
    assert torch.equal(alone[0], erased[k])
    assert not strong.erase(torch.zeros(4, 3, 20, 20), seeds[:4], table[:4], 0.0).any()


def test_strong_view_is_the_area_view_with_more(tmp_path: Path) -> None:
    """Would catch numbers that other transforms would lose, or evaluation images that are augmented."""
    tiny_layouts.write_imagenet(tmp_path)
    strongly = load(
        "imagenet-1k", "train", tmp_path, image_size=32, val_share=0.0, augment="strong", erasing=0.5
    )
    plainly = load("imagenet-1k", "train", tmp_path, image_size=32, val_share=0.0, augment="area")
    rows, seeds = torch.arange(8), torch.arange(8) + 5
    first, again, plain = (
        data.collate(data.items, rows, seeds).views["image"] for data in (strongly, strongly, plainly)
    )
    assert torch.equal(first, again)
    assert first.shape == plain.shape
    assert not torch.allclose(first, plain)
    alone = strongly.collate(strongly.items, rows[3:4], seeds[3:4]).views["image"]
    assert torch.equal(alone[0], first[3])
    shown = strongly.collate(strongly.items, rows, None).views["image"]
    assert torch.equal(shown, strongly.collate(strongly.items, rows, None).views["image"])
    assert float((shown - plainly.collate(plainly.items, rows, None).views["image"]).abs().mean()) < 0.2
    recipe = Recipe(32, 36, "strong", False, (0.5, 0.5, 0.5), (1, 1, 1))
    assert recipe.draws == DRAWS + strong.DRAWS
    assert Recipe(32, 36, "area", False, (0.5, 0.5, 0.5), (1, 1, 1)).draws == DRAWS


def test_a_pasted_box_weighs_what_it_covers() -> None:
    """Would catch a weight that is not corrected where the box is cut at the border."""
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    draw = random.Random(1)
    for _ in range(50):
        box, weight = mixing.random_box(8, 8, draw.random(), draw)
        mixed = mixing.pasted(images, box)
        assert float(mixed[0].mean()) == pytest.approx((1 - weight) * 2.0)
        assert torch.equal(mixed[1], images[1])
    assert mixing.random_box(8, 8, 1.0, draw)[1] == 1.0


def mixed(images: torch.Tensor, labels: torch.Tensor, step: int, **cfg: float) -> Batch:
    """A batch as `prepare_batch` leaves it."""
    run = SimpleNamespace(
        cfg=SimpleNamespace(**{"mixup": 0.0, "cutmix": 0.0, **cfg}),
        task=SimpleNamespace(sizes={"classes": 7}),
        rng=lambda purpose: torch.Generator().manual_seed(step),
    )
    batch = Batch(ids=["a"] * len(images), views={"image": images}, labels=labels)
    mixing.prepare_batch(run, batch)  # type: ignore[arg-type]
    return batch


def test_mixed_labels_are_those_of_the_mixed_images() -> None:
    """Would catch labels that stay sharp, or weights that are not the images'."""
    images, labels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    assert mixed(images, labels, 0).labels is labels
    assert mixed(images, labels, 0).views["image"] is images
    weights: dict[str, list[float]] = {"mixup": [], "cutmix": []}
    for step in range(30):
        for name, seen in weights.items():
            batch = mixed(images.clone(), labels, step, **{name: 1.0})
            weight, found = float(batch.labels[0, 0]), batch.views["image"]
            expected = weight * F.one_hot(labels, 7) + (1 - weight) * F.one_hot(labels.flip(0), 7)
            torch.testing.assert_close(batch.labels, expected)
            if name == "mixup":
                torch.testing.assert_close(found, weight * images + (1 - weight) * images.flip(0))
            else:
                assert bool(((found == images) | (found == images.flip(0))).all())
                assert float((found == images).float().mean()) == pytest.approx(weight, abs=1e-6)
            seen.append(weight)
    assert all(len(set(seen)) > 20 for seen in weights.values())


def test_with_both_either_is_used() -> None:
    """Would catch one of the two that never comes up."""
    images, labels = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    pasted = 0
    for step in range(40):
        found = mixed(images, labels, step, mixup=0.8, cutmix=1.0).views["image"]
        pasted += bool(((found == images) | (found == images.flip(0))).all())
    assert 10 < pasted < 30


def test_smoothing_and_mixing_together_are_the_recipes() -> None:
    """Would catch smoothing that is lost, or counted twice, where labels are probabilities."""
    logits, soft = torch.randn(3, 7), torch.softmax(torch.randn(3, 7), 1)
    found = F.cross_entropy(logits, soft, ignore_index=-1, reduction="sum", label_smoothing=0.1)
    target = 0.9 * soft + 0.1 / 7
    torch.testing.assert_close(found, -(target * torch.log_softmax(logits, 1)).sum())


def test_an_image_comes_three_times_with_three_views(tmp_path: Path) -> None:
    """Would catch repeats that are one view three times, or that are spread over steps."""
    tiny_layouts.write_imagenet(tmp_path)
    data = load("imagenet-1k", "train", tmp_path, image_size=32, val_share=0.0)
    order = Order(replace(data, groups=torch.arange(len(data))), 0, "train", 6, 3)
    seen = []
    for step in range(len(data) // 2):
        rows, seeds = order.rows(step)
        assert sorted(rows.unique(return_counts=True)[1].tolist()) == [3, 3]
        assert len(seeds.unique()) == 6
        seen += rows.unique().tolist()
    assert sorted(seen) == list(range(len(data)))
