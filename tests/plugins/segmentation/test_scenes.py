"""The composed scenes: what ships, what a scene holds, what a batch holds, and how damage is reported."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kdzoo.errors import KdzooError
from kdzoo_segmentation.data import scenes
from kdzoo_segmentation.measures import IGNORE

NUMBERS = {name: number for number, name in enumerate(scenes.METAINFO["classes"])}
FIRST = 12  # scenes that are composed where a few are enough
HASHES = {  # of the first scenes of each split, images and labels
    "train": "c2bb9dee0724b60b",
    "pool": "03499664f1907cb1",
    "val": "8835b88a6f21de5f",
    "test": "e8c726b3cff6a189",
}


@pytest.fixture(scope="module")
def few() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {split: scenes.compose(scenes.read(), split, FIRST) for split in scenes.SPLITS}


def test_splits_share_no_photo_and_all_show_all_drawings() -> None:
    """A ground seen in training would turn the test into recall; a class without drawings would never be seen."""
    parts = scenes.read()
    seen: dict[str, set[bytes]] = {}
    for name, split in parts.split_of.items():
        seen.setdefault(split, set()).add(parts.photos[name].tobytes())
    assert sorted(seen) == ["test", "train", "val"]
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not seen[first] & seen[second]
    assert {concept[2] for concept in parts.concepts} == set(scenes.FREQUENCY)
    assert len(parts.drawings) == len(parts.concepts)
    assert len({style.tobytes() for drawing in parts.drawings for style in drawing}) == 2 * len(
        parts.concepts
    )


def test_cells_hold_the_drawing_the_manifest_names() -> None:
    """A shifted sheet would still load, with every label wrong: an evergreen is green, a grinning face yellow."""
    parts = scenes.read()
    at = {concept[1]: row for row, concept in enumerate(parts.concepts)}
    for style in range(2):
        red, green, blue, _ = parts.drawings[at["evergreen tree"], style].astype(float).mean((1, 2))
        assert green > max(red, blue)
        red, green, blue, _ = parts.drawings[at["grinning face"], style].astype(float).mean((1, 2))
        assert min(red, green) > 2 * blue
    assert (parts.drawings[:, :, :3] <= parts.drawings[:, :, 3:]).all(), (
        "colours were to be multiplied by opacity"
    )


def test_scenes_are_those_of_every_other_machine(few: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Arithmetic that depends on a library or processor would make records of two machines incomparable."""
    for split, (images, labels) in few.items():
        assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:16] == HASHES[split], split


def test_a_scene_does_not_depend_on_how_many_are_made(few: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Else a larger pool would be other scenes."""
    images, labels = scenes.compose(scenes.read(), "val", 3)
    assert np.array_equal(images, few["val"][0][:3])
    assert np.array_equal(labels, few["val"][1][:3])


def test_every_class_occurs_and_the_rare_ones_are_rare() -> None:
    """A class without pixels in val would leave its IoU undefined; equal classes would leave nothing to balance."""
    for split in ("val", "train"):
        labels = scenes.scenes(split)[1]
        pixels = torch.bincount(labels.flatten().long(), minlength=len(NUMBERS)).double() / labels.numel()
        assert len(pixels) == len(NUMBERS)
        assert (pixels > 0.01).all()
        assert 0.5 < pixels[0] < 0.8
    rare = [NUMBERS[name] for name in scenes.SUBSETS["rare"]]
    others = [number for number in range(1, len(NUMBERS)) if number not in rare]
    assert pixels[rare].max() < pixels[others].min()


def test_objects_touch_each_other_and_the_border(few: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Methods for borders between objects would have nothing to find."""
    labels = few["train"][1].astype(int)
    beside = (labels[:, 1:] != labels[:, :-1]) & (labels[:, 1:] > 0) & (labels[:, :-1] > 0)
    assert beside.any((1, 2)).mean() > 0.4
    assert (labels[:, [0, -1]] > 0).any((1, 2)).mean() > 0.3


def test_the_topmost_drawing_that_covers_half_of_a_pixel_has_it() -> None:
    """Colours and labels that disagree about who lies above, or where."""
    canvas, labels = np.full((3, 96, 96), 200), np.zeros((96, 96), np.uint8)
    side = 4 + 2 * scenes.PAD
    opaque = np.full((4, side, side), 255)
    opaque[:3] = 10
    faint = np.full((4, side, side), 127)
    faint[:3] = 0
    scenes.paste(canvas, labels, opaque, (10, 20, 4), 3)
    scenes.paste(canvas, labels, faint, (10, 20, 4), 5)
    top, left = 10 - scenes.PAD, 20 - scenes.PAD
    assert (labels[top : top + side, left : left + side] == 3).all()
    assert (labels > 0).sum() == side * side
    assert (canvas[:, top : top + side, left : left + side] == 5).all()  # (10 * 128 + 127) // 255
    scenes.paste(canvas, labels, opaque, (94, -3, 4), 2)
    assert (labels == 2).sum() == (96 - 94 + scenes.PAD) * (-3 + 4 + scenes.PAD)


def test_resizing_keeps_a_flat_area_flat_and_halves_by_its_triangle() -> None:
    """Weights that do not sum to one would darken drawings or push opacity above 255."""
    for side in (26, 48, 60):
        assert (scenes.triangle(48, side).sum(1) == 256).all()
        assert (scenes.resized(np.full((2, 48, 48), 255, np.uint8), side) == 255).all()
    ramp = np.broadcast_to(np.arange(0, 192, 4, dtype=np.uint8), (1, 48, 48))
    slow = [
        sum(max(0.0, 1 - abs(j + 0.5 - (i + 0.5) * 2) / 2) * 4 * j for j in range(48))
        / sum(max(0.0, 1 - abs(j + 0.5 - (i + 0.5) * 2) / 2) for j in range(48))
        for i in range(24)
    ]
    np.testing.assert_allclose(scenes.resized(ramp, 24)[0, 0], slow, atol=1)


def test_noise_has_the_strength_it_is_asked_for() -> None:
    """A slip in the scale would drown the drawings or change nothing."""
    found = scenes.noise(7, 10)
    assert abs(found.mean()) < 0.5
    assert abs(found.std() - 10) < 0.3
    assert not scenes.noise(7, 0).any()


def test_evaluation_batch() -> None:
    """Views of evaluation depend on nothing but the scene; labels are the composed ones."""
    data = scenes.load("val")
    rows = torch.tensor([3, 5])
    batch = data.collate(data.items, rows, None)
    assert batch.ids == ["val/3", "val/5"]
    expected = (data.items[rows].double() / 255 - scenes.MEAN) / scenes.STD
    torch.testing.assert_close(batch.views["image"].double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(batch.labels, scenes.scenes("val")[1][rows].long())
    assert batch.counts == {"item": 2, "pixel": 2 * 96 * 96}
    seeded = data.collate(data.items, rows, torch.tensor([1, 2]))
    assert torch.equal(seeded.views["image"], batch.views["image"])
    assert len(data) == 100
    assert data.fixed_views


def test_the_pool_has_no_labels_and_is_not_the_training_set() -> None:
    """Labels that leak into the pool would make semi-supervised arms supervised."""
    images = torch.from_numpy(scenes.compose(scenes.read(), "pool", 2)[0])
    data = scenes.serve(
        images, torch.full((2, 96, 96), IGNORE, dtype=torch.uint8), ["pool/0", "pool/1"], False
    )
    assert data.collate(data.items, torch.tensor([0, 1]), None).counts == {"item": 2, "pixel": 0}
    train = torch.from_numpy(scenes.compose(scenes.read(), "train", 2)[0])
    assert not torch.equal(train, images)


def served() -> scenes.Data:
    images, labels = (torch.from_numpy(part) for part in scenes.compose(scenes.read(), "train", 4))
    return scenes.serve(images, labels, [f"train/{row}" for row in range(4)], augmented=True)


def test_augmentation_depends_on_the_seed_of_the_row_alone() -> None:
    """Neither order nor company in the batch may move a view: resume and data order rely on it."""
    data, rows, seeds = served(), torch.arange(4), torch.tensor([3, 1, 4, 1])
    batch = data.collate(data.items, rows, seeds)
    order = torch.tensor([2, 0])
    again = data.collate(data.items, rows[order], seeds[order])
    torch.testing.assert_close(again.views["image"], batch.views["image"][order], atol=1e-5, rtol=0)
    assert torch.equal(again.labels, batch.labels[order])
    other = data.collate(data.items, rows, seeds + 1)
    assert ((other.views["image"] - batch.views["image"]).abs().mean((1, 2, 3)) > 0.02).all()


def test_labels_move_with_the_image() -> None:
    """A label map moved otherwise than its image would teach every border wrongly."""
    masks = torch.from_numpy(scenes.compose(scenes.read(), "train", 4)[1])
    image = (masks > 0).float().unsqueeze(1).expand(-1, 3, -1, -1) / 2
    moved, labels = scenes.augment(image, masks, torch.tensor([3, 1, 4, 9]))
    low, high = moved.amin((1, 2, 3), keepdim=True), moved.amax((1, 2, 3), keepdim=True)
    inside = (moved - low) / (high - low)
    apart = ((inside[:, 0] > 0.5) != (labels > 0)).float().mean()
    assert apart < 0.01
    assert set(labels.unique().tolist()) <= set(masks.unique().tolist())


def test_half_of_the_views_are_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all other changes off a view is the scene or its mirror image, to the bit in the labels."""
    for name in ("SCALE", "SHIFT", "GAIN", "OFFSET"):
        monkeypatch.setattr(scenes, name, 0.0)
    image = torch.rand(32, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 7, (32, 96, 96), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    moved, masks = scenes.augment(image, labels, torch.arange(32))
    same = torch.tensor([torch.equal(a, b) for a, b in zip(masks, labels, strict=True)])
    mirrored = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(masks, labels, strict=True)])
    assert (same ^ mirrored).all()
    assert 8 <= int(mirrored.sum()) <= 24
    torch.testing.assert_close(moved[mirrored], image[mirrored].flip(-1), atol=1e-4, rtol=0)


def test_fewer_labels_are_a_part_of_the_whole() -> None:
    """The grid over the number of labels must nest, or it compares samples as well."""
    whole, part = scenes.load("train"), scenes.load("train", labelled=50)
    assert len(part) == 50
    assert torch.equal(part.items, whole.items[:50])
    assert part.hash != whole.hash


def test_damage_is_named(tmp_path: Path) -> None:
    """A changed file would give other scenes under the same name."""
    for path in scenes.FILES.glob("scenes-*"):
        shutil.copy(path, tmp_path)
    sheet = tmp_path / "scenes-grey.png"
    sheet.write_bytes(sheet.read_bytes()[:-1] + b"x")
    with pytest.raises(KdzooError, match=r"scenes-grey\.png has sha256"):
        scenes.load("val", folder=tmp_path)
    manifest = tmp_path / "scenes-manifest.json"
    content = json.loads(manifest.read_text())
    del content["sha256"]["scenes-grey.png"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(KdzooError, match=r"lacks the sha256 of scenes-grey\.png"):
        scenes.load("val", folder=tmp_path)
    with pytest.raises(KdzooError, match="validation"):
        scenes.load("validation")
