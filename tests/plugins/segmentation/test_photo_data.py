"""Splits and views of the paper profiles' data sets, and what is said of files that are not as they should be."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample
from PIL import Image

from kdzoo.errors import KdzooError
from kdzoo_segmentation.data import photos
from kdzoo_segmentation.data.mm_sets import SOURCES, metainfo, pieces
from kdzoo_segmentation.data.photo_sets import PHOTO_SETS, find
from kdzoo_segmentation.data.photo_views import MEAN, STD, Recipe, seeded
from kdzoo_segmentation.measures import IGNORE

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
import tiny_photo_sets as tiny

NAMES = sorted(PHOTO_SETS)
SMALL = Recipe(scale=(48, 40), crop=(32, 32))
SEEDS = torch.tensor([3, 2**62 + 5])
ROWS = torch.arange(2)


def recipe(name: str, **changes: Any) -> Recipe:
    return replace(SMALL, coloured=name == "deepglobe-land", **changes)


@pytest.mark.parametrize("name", NAMES)
def test_every_set_is_read(name: str, tmp_path: Path) -> None:
    """Labels shifted by one, masks of the wrong part, or "no class" counted as one."""
    tiny.WRITERS[name](tmp_path)
    classes = len(metainfo(name)["classes"])
    assert set(SOURCES) == set(PHOTO_SETS)
    data = {split: photos.load(name, split, tmp_path, recipe(name)) for split in ("train", "pool", "test")}
    assert not set(data["train"].ids) & set(data["test"].ids)
    assert data["pool"].ids == data["train"].ids
    batch = data["train"].collate(data["train"].items, ROWS, SEEDS)
    assert batch.views["image"].shape == (2, 3, 32, 32)
    assert batch.views["image"].dtype == torch.float32
    assert (batch.labels.shape, batch.labels.dtype) == ((2, 32, 32), torch.int64)
    whole = data["test"].collate(data["test"].items, torch.tensor([0]), None)
    seen = set(whole.labels.unique().tolist())
    assert IGNORE in seen
    assert 0 in seen
    assert max(seen - {IGNORE}) == {"pascal-context-59": 58}.get(name, classes - 1)
    assert whole.counts == {"item": 1, "pixel": int((whole.labels != IGNORE).sum())}
    blind = data["pool"].collate(data["pool"].items, ROWS, SEEDS)
    assert torch.equal(blind.views["image"], batch.views["image"])
    assert (blind.labels == IGNORE).all()
    assert blind.counts["pixel"] == 0


def test_official_parts(tmp_path: Path) -> None:
    """The masks added to VOC, ACDC's clear-weather photos, and the fold of DeepGlobe."""
    for write in tiny.WRITERS.values():
        write(tmp_path)
    voc = pieces("voc2012-aug", find("voc2012-aug", tmp_path), "train")
    assert [Path(one["seg_map_path"]).parent.name for one in voc] == ["SegmentationClass"] * 2 + [
        "SegmentationClassAug"
    ] * 3
    acdc = pieces("acdc", find("acdc", tmp_path), "train")
    assert len(acdc) == 4
    land = {
        part: pieces("deepglobe-land", find("deepglobe-land", tmp_path), part) for part in ("train", "test")
    }
    assert [Path(one["img_path"]).name for one in land["test"]] == ["100_sat.jpg"]
    assert len(land["train"]) == 5


@pytest.mark.parametrize("augment", ["mmseg", "shift"])
def test_a_view_is_a_function_of_its_seed(tmp_path: Path, augment: str) -> None:
    """Augmentation that depends on threads, on the batch, or on what others drew; or that moves others' numbers."""
    tiny.write_cityscapes(tmp_path)
    rule = recipe("cityscapes", augment=augment)
    one = photos.load("cityscapes", "train", tmp_path, rule)
    many = photos.load("cityscapes", "train", tmp_path, rule, decoders=3)
    np.random.seed(1)
    random.seed(1)
    expected = np.random.random(3).tolist(), random.random()
    np.random.seed(1)
    random.seed(1)
    first = one.collate(one.items, ROWS, SEEDS)
    assert (np.random.random(3).tolist(), random.random()) == expected
    second = many.collate(many.items, ROWS.flip(0), SEEDS.flip(0))
    assert torch.equal(first.views["image"], second.views["image"].flip(0))
    assert torch.equal(first.labels, second.labels.flip(0))
    other = one.collate(one.items, ROWS, SEEDS + (1 << 40))  # seeds that differ in their upper half alone
    assert not torch.equal(first.views["image"], other.views["image"])


def test_an_error_leaves_the_generators_as_they_were() -> None:
    """A bad file must not change what is drawn after it is caught."""
    np.random.seed(4)
    expected = np.random.random()
    np.random.seed(4)
    with pytest.raises(ValueError, match="low >= high"), seeded(9):
        np.random.randint(3, 3)
    assert np.random.random() == expected


def test_image_and_mask_move_together(tmp_path: Path) -> None:
    """A mask that is cropped, flipped or shifted unlike its image."""
    home = tiny.write_cityscapes(tmp_path, train=1)
    where = next((home / "leftImg8bit/train").rglob("*.png"))
    values = tiny.blocks((0, 1, 2, 3), 0, (64, 32))
    Image.fromarray(np.repeat(values[..., None] * 60 + 20, 3, axis=2)).save(where)
    tiny.mask(next((home / "gtFine/train").rglob("*.png")), values)
    for augment in ("mmseg", "shift"):
        rule = Recipe((64, 32), (24, 24), (1.0, 1.0), augment, pixels="unit")
        data = photos.load("cityscapes", "train", tmp_path, rule)
        for seed in range(12):
            scene = data.collate(data.items, torch.tensor([0]), torch.tensor([seed]))
            image, labels = scene.views["image"][0].mean(0) * 255, scene.labels[0]
            known = labels != IGNORE
            means = torch.stack([image[known & (labels == k)].mean() for k in range(4)])
            means = means[~means.isnan()]
            assert (means.diff() > 15).all(), (
                "brighter numbers are brighter pixels, whatever is done to colours"
            )
            if augment == "shift":
                assert torch.equal(image[known], labels[known] * 60.0 + 20)
                assert int((~known).sum()) in {
                    64 * abs(down) + 32 * abs(right) - abs(down * right)
                    for down in range(3)
                    for right in range(3)
                }


def test_pixels_are_mmsegs(tmp_path: Path) -> None:
    """Channels in the wrong order, another mean, or padding before normalising."""
    tiny.write_ade20k(tmp_path)
    data = photos.load("ade20k", "train", tmp_path, Recipe((48, 40), (64, 64), (0.5, 0.6)))
    batch = data.collate(data.items, ROWS, SEEDS)
    rule = data.collate.recipe
    views = [
        rule.trained(rule.load(data.items.pieces[row], 150), seed) for row, seed in enumerate(SEEDS.tolist())
    ]
    samples = []
    for image, mask in views:
        sample = SegDataSample(metainfo={"img_shape": image.shape[:2]})
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(mask.astype(np.int64))[None])
        samples.append(sample)
    images = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image, _ in views]
    processor = SegDataPreProcessor(
        mean=list(MEAN), std=list(STD), bgr_to_rgb=True, pad_val=0, seg_pad_val=255, size=(64, 64)
    )
    said = processor({"inputs": images, "data_samples": samples}, training=True)
    assert torch.allclose(said["inputs"], batch.views["image"], atol=1e-6)
    assert torch.equal(torch.stack([s.gt_sem_seg.data[0] for s in said["data_samples"]]), batch.labels)


def test_evaluation_keeps_masks_whole(tmp_path: Path) -> None:
    """Scores held against resized masks would be another metric than the papers'."""
    tiny.write_voc(tmp_path)
    for resized, size in ((True, (1, 3, 24, 20)), (False, (1, 3, 48, 40))):
        data = photos.load("voc2012-aug", "test", tmp_path, recipe("voc", scale=(24, 20), resized=resized))
        batch = data.collate(data.items, torch.tensor([0]), None)
        assert batch.views["image"].shape == size
        assert batch.labels.shape == (1, 48, 40)
        assert data.fixed_views
    with pytest.raises(KdzooError, match="eval_batch=1"):
        data.collate(data.items, ROWS, None)


def test_labels_at_a_stride_and_weights(tmp_path: Path) -> None:
    """TransKD's labels: every fourth pixel's, and the sum of weights that its loss is divided by."""
    tiny.write_cityscapes(tmp_path)
    table = tuple(float(k + 1) for k in range(19))
    rule = Recipe((64, 32), (32, 64), augment="shift", stride=4, pixels="unit")
    data = photos.load("cityscapes", "test", tmp_path, rule, weights=table)
    batch = data.collate(data.items, ROWS, None)
    assert batch.labels.shape == (2, 8, 16)
    with Image.open(data.items.pieces[0]["seg_map_path"]) as image:
        full = torch.from_numpy(np.asarray(image).astype(np.int64))
    assert torch.equal(batch.labels[0], full[2::4, 2::4])
    expected = sum(table[label] for label in batch.labels.ravel().tolist() if label != IGNORE)
    assert batch.counts["weight"] == pytest.approx(expected)
    assert 0 <= float(batch.views["image"].min()) < float(batch.views["image"].max()) <= 1


def test_val_and_labelled_shares(tmp_path: Path) -> None:
    """A choice that leaks into training, that depends on the machine, or that loses images."""
    tiny.write_ade20k(tmp_path, train=10)

    def ids(split: str, **shares: float) -> list[str]:
        return list(photos.load("ade20k", split, tmp_path, SMALL, **shares).ids)

    whole = ids("train")
    held = ids("val", val_share=0.2)
    assert len(held) == 2
    assert set(held) < set(ids("val", val_share=0.4))
    rest = ids("train", val_share=0.2)
    assert sorted(held + rest) == whole
    few = ids("train", val_share=0.2, labelled=0.25)
    assert len(few) == 2
    assert set(few) < set(rest)
    assert ids("pool", val_share=0.2, labelled=0.25) == rest
    assert photos.ranked(["a", "b", "c"], 0.34) == photos.ranked(["c", "a", "b"], 0.34) != set()


def test_the_hash_follows_the_files(tmp_path: Path) -> None:
    """Results of other files, or of other starting weights, would be taken from the store."""
    home = tiny.write_ade20k(tmp_path)
    before = photos.load("ade20k", "train", tmp_path, SMALL).hash
    assert before == photos.load("ade20k", "train", home, SMALL).hash
    assert before != photos.load("ade20k", "train", tmp_path, SMALL, salt="weights").hash
    tiny.photo(home / "images/training/ADE_train_00000001.jpg", 77, (30, 30))
    assert before != photos.load("ade20k", "train", tmp_path, SMALL).hash


# --- what is said where something is wrong -------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_piece_gives_the_layout(name: str, tmp_path: Path) -> None:
    """A traceback, or a message from which nobody learns what to fetch and where to put it."""
    home = tiny.WRITERS[name](tmp_path)
    info = PHOTO_SETS[name]
    assert find(name, tmp_path) == find(name, home) == home
    (home / info.needed[-1]).rename(home / "gone")
    with pytest.raises(KdzooError) as caught:
        photos.load(name, "train", tmp_path, SMALL)
    text = str(caught.value)
    assert text.splitlines()[0].endswith(f"{info.needed[-1]} is missing")
    assert info.home in text
    assert info.terms in text
    assert all(line.strip() in text for line in info.layout.splitlines())


def test_no_folder_at_all(tmp_path: Path) -> None:
    """An OSError for a mistyped data root."""
    with pytest.raises(KdzooError, match="it does not exist"):
        find("ade20k", tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(KdzooError, match="a file, not a folder"):
        find("ade20k", tmp_path / "file")
    with pytest.raises(KdzooError, match="Did you mean ade20k"):
        find("ade20", tmp_path)


def test_a_mask_that_was_never_made(tmp_path: Path) -> None:
    """Cityscapes as unpacked, without *_labelTrainIds.png; an empty split."""
    home = tiny.write_cityscapes(tmp_path)
    next((home / "gtFine/val").rglob("*.png")).unlink()
    with pytest.raises(KdzooError, match=r"gtFine/val/.*labelTrainIds.png is missing or has 0 bytes"):
        photos.load("cityscapes", "test", tmp_path, SMALL)
    for path in (home / "leftImg8bit/train").rglob("*.png"):
        path.unlink()
    with pytest.raises(KdzooError, match="no image of the train split was found"):
        photos.load("cityscapes", "train", tmp_path, SMALL)


BROKEN = {
    "size": r"is 20 x 30 pixels and its image 40 x 56",
    "colours": r"has 3 colour channels, expected one number a pixel: its palette was lost",
    "number": r"holds the number 200 at 6 pixels, expected 0 to 149",
    "file": r"cannot be read",
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("seeds", [torch.tensor([1]), None], ids=["training", "evaluation"])
def test_a_broken_mask_is_one_message(tmp_path: Path, fault: str, seeds: torch.Tensor | None) -> None:
    """Classes held against the wrong places, colours read as classes, or a loss that reads outside of its scores."""
    home = tiny.write_ade20k(tmp_path)
    path = home / "annotations/training/ADE_train_00000001.png"
    good = np.asarray(Image.open(path)).copy()
    if fault == "size":
        tiny.mask(path, good[:20, :30])
    elif fault == "colours":
        Image.open(path).convert("RGB").save(path)
    elif fault == "number":
        good[0, :6] = 201
        tiny.mask(path, good)
    else:
        path.write_bytes(path.read_bytes()[:60])
    data = photos.load("ade20k", "train", tmp_path, SMALL)
    with pytest.raises(KdzooError, match=BROKEN[fault]) as caught:
        data.collate(data.items, torch.tensor([0]), seeds)
    assert path.name in str(caught.value)


def test_a_broken_photo_is_one_message(tmp_path: Path) -> None:
    """cv2 answers None for a file that it cannot read."""
    home = tiny.write_ade20k(tmp_path)
    path = home / "images/training/ADE_train_00000001.jpg"
    path.write_bytes(b"no photo at all")
    data = photos.load("ade20k", "train", tmp_path, SMALL)
    with pytest.raises(KdzooError, match=f"{path.name}.*cannot be read"):
        data.collate(data.items, torch.tensor([0]), None)


def test_colours_of_no_class(tmp_path: Path) -> None:
    """Red is no colour of DeepGlobe: it must not become a class."""
    home = tiny.write_deepglobe(tmp_path)
    Image.new("RGB", (48, 48), (255, 0, 0)).save(home / "train/100_mask.png")
    data = photos.load("deepglobe-land", "test", tmp_path, recipe("deepglobe-land"))
    with pytest.raises(KdzooError, match=r"expected 0 to 5"):
        data.collate(data.items, torch.tensor([0]), None)
