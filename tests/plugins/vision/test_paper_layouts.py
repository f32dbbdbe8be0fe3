"""The loaders of the paper profiles, on tiny files in the official layouts."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdzoo.rng import splitmix, uniforms
from kdzoo_vision.data.photos import DATASETS, load
from kdzoo_vision.data.transforms import (
    AREA,
    DRAWS,
    RATIO,
    batch_pixels,
    random_area,
)

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
import tiny_layouts as tiny

NAMES = sorted(DATASETS)
METRIC = sorted(name for name, info in DATASETS.items() if info.purpose == "metric")
CLASSIFICATION = sorted(name for name, info in DATASETS.items() if info.purpose == "classification")
PHOTOS = sorted(set(NAMES) - {"cifar-100"})


def everything(data):
    """All rows of a split as one evaluation batch."""
    return data.collate(data.items, torch.arange(len(data)), None)


def official_class(name: str, data, row: int) -> str:
    """The class of a row as the official files have it, read from the file name or the name list."""
    path = data.ids[row]
    if name == "cub-200-2011":
        return path.split("/")[1]
    if name == "stanford-online-products":
        return path.split("/")[1].split("_")[0]
    return data.items.classes[int(data.items.labels[row])]


# Splits


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_disjoint_and_complete(name, tmp_path):
    """An image in two splits, or in none."""
    tiny.WRITERS[name](tmp_path)
    splits = {split: load(name, split, tmp_path, image_size=16) for split in ("train", "val", "test")}
    ids = [id_ for data in splits.values() for id_ in data.ids]
    assert len(ids) == len(set(ids))
    assert all(len(data) > 0 for data in splits.values())
    whole = load(name, "train", tmp_path, image_size=16, val_share=0)
    assert sorted(whole.ids) == sorted([*splits["train"].ids, *splits["val"].ids])
    assert len({data.hash for data in splits.values()}) == 3


@pytest.mark.parametrize("name", METRIC)
def test_metric_splits_share_no_class(name, tmp_path):
    """Recall@K on classes seen in training, or labels with gaps, which a classification head cannot take."""
    tiny.WRITERS[name](tmp_path)
    seen: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        data = load(name, split, tmp_path, image_size=16)
        seen[split] = {data.items.classes[k] for k in data.items.labels.tolist()}
        assert sorted(set(data.items.labels.tolist())) == list(range(len(data.items.classes)))
        of_label: dict[int, set[str]] = {}
        for row, label in enumerate(data.items.labels.tolist()):
            of_label.setdefault(label, set()).add(official_class(name, data, row))
        assert all(len(classes) == 1 for classes in of_label.values())
    assert not seen["train"] & seen["val"]
    assert not seen["test"] & (seen["train"] | seen["val"])


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_classification_splits_share_classes(name, tmp_path):
    """Label 2 meaning one class in train and another in test."""
    tiny.WRITERS[name](tmp_path)
    splits = [load(name, split, tmp_path, image_size=16) for split in ("train", "val", "test")]
    assert len({data.items.classes for data in splits}) == 1
    assert len({tuple(sorted(set(data.items.labels.tolist()))) for data in splits}) == 1


def test_official_class_borders(tmp_path):
    """The border between train and test classes off by one."""
    tiny.write_cub(tmp_path, train=(99, 100), test=(101, 102))
    tiny.write_cars(tmp_path, train=(97, 98), test=(99, 100))
    assert load("cub-200-2011", "train", tmp_path, val_share=0).items.classes == ("99", "100")
    assert load("cub-200-2011", "test", tmp_path).items.classes == ("101", "102")
    assert load("cars196", "train", tmp_path, val_share=0).items.classes == ("97", "98")
    assert load("cars196", "test", tmp_path).items.classes == ("99", "100")


def test_cars_devkit_form(tmp_path):
    """The two forms of Cars196 giving different classes, or one without the official test images."""
    tiny.write_cars(tmp_path / "a")
    tiny.write_cars(tmp_path / "b", devkit=True)
    for split in ("train", "val", "test"):
        one, two = (load("cars196", split, tmp_path / form, image_size=16) for form in "ab")
        assert one.items.classes == two.items.classes
        assert one.items.labels.bincount().tolist() == two.items.labels.bincount().tolist()
    data = load("cars196", "train", tmp_path / "b", image_size=16)
    assert {id_.split("/")[0] for id_ in data.ids} == {"cars_train", "cars_test"}


def test_tiny_imagenet_test_labels_come_from_the_annotations(tmp_path):
    """Labels by file order instead of by annotation."""
    home = tiny.write_tiny_imagenet(tmp_path)
    source = home / "val/val_annotations.txt"
    source.write_text("".join(reversed(source.read_text().splitlines(keepends=True))))
    data = load("tiny-imagenet", "test", tmp_path)
    expected = {
        f"val/images/{line.split()[0]}": int(line.split()[1][1:]) - 1
        for line in source.read_text().splitlines()
    }
    assert dict(zip(data.ids, data.items.labels.tolist(), strict=True)) == expected


def test_val_share(tmp_path):
    """A share that is not what was asked; a choice that changes between runs; growth that reshuffles."""
    tiny.write_cub(tmp_path, train=range(1, 21), images=1)
    small = load("cub-200-2011", "val", tmp_path, val_share=0.1)
    large = load("cub-200-2011", "val", tmp_path, val_share=0.3)
    assert (len(small), len(large)) == (2, 6)
    assert set(small.ids) < set(large.ids)
    assert load("cub-200-2011", "val", tmp_path, val_share=0.1).ids == small.ids


# Batches


@pytest.mark.parametrize("name", NAMES)
def test_batch(name, tmp_path):
    """A batch without the shapes, counts or ids that the contract names."""
    tiny.WRITERS[name](tmp_path)
    data = load(name, "train", tmp_path, image_size=24)
    rows = torch.tensor([2, 0, 2])
    batch = data.collate(data.items, rows, torch.tensor([5, 6, 7]))
    image = batch.views["image"]
    assert image.shape == (3, 3, 24, 24)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert batch.ids == [data.ids[2], data.ids[0], data.ids[2]]
    assert torch.equal(batch.labels, data.items.labels[rows])
    several = DATASETS[name].purpose == "multi-label"
    assert batch.labels.dtype == (torch.float32 if several else torch.int64)
    assert batch.counts == {"item": 3, "label": 3}
    assert data.groups is None if several else torch.equal(data.groups, data.items.labels)
    here, there = multiprocessing.Pipe()
    here.send(data.collate)  # as a loader's worker process gets it
    again = there.recv()(data.items, rows, torch.tensor([5, 6, 7]))
    assert torch.equal(again.views["image"], image)


@pytest.mark.parametrize("name", NAMES)
def test_augmentation_is_a_function_of_the_seed(name, tmp_path):
    """Augmentation that depends on threads, batch mates, global generators, or not at all on the seed."""
    tiny.WRITERS[name](tmp_path)
    one = load(name, "train", tmp_path, image_size=24, decoders=1)
    two = load(name, "train", tmp_path, image_size=24, decoders=2)
    rows, seeds = torch.tensor([0, 1, 2, 3]), torch.tensor([11, -12, 13, 2**62])
    torch.manual_seed(0)
    first = one.collate(one.items, rows, seeds).views["image"]
    torch.manual_seed(1)
    second = two.collate(two.items, rows, seeds).views["image"]
    assert torch.equal(first, second)
    alone = one.collate(one.items, rows[2:3], seeds[2:3]).views["image"]
    assert torch.equal(alone[0], first[2])
    views = [one.collate(one.items, rows[:1], torch.tensor([s])).views["image"] for s in range(20)]
    assert len({view.numpy().tobytes() for view in views}) > 5
    assert torch.equal(everything(one).views["image"], everything(two).views["image"])


@pytest.mark.parametrize(("name", "squash"), [("imagenet-1k", False), ("cub-200-2011", True)])
def test_evaluation_pixels_equal_torchvision(name, squash, tmp_path):
    """Another resize filter, rounding of the crop or normalization than the teachers were trained with."""
    from torchvision import transforms as T

    tiny.WRITERS[name](tmp_path)
    data = load(name, "train", tmp_path, image_size=28, resize=33)
    reference = T.Compose(
        [
            T.Resize((33, 33) if squash else 33),
            T.CenterCrop(28),
            T.ToTensor(),
            T.Normalize(DATASETS[name].mean, DATASETS[name].std),
        ]
    )
    got = everything(data).views["image"]
    want = torch.stack([reference(Image.open(data.items.home / path)) for path in data.ids])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_cifar_pixels(tmp_path):
    """Color planes mixed up, coarse labels for fine ones, or a resampled picture at native size."""
    home = tiny.write_cifar100(tmp_path)
    records = np.fromfile(home / "test.bin", dtype=np.uint8).reshape(-1, 3074)
    data = load("cifar-100", "test", tmp_path)
    batch = everything(data)
    assert batch.labels.tolist() == records[:, 1].tolist()
    info = DATASETS["cifar-100"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (info.mean, info.std))
    pixels = torch.from_numpy(records[:, 2:].reshape(-1, 3, 32, 32)).float() / 255
    torch.testing.assert_close(batch.views["image"], (pixels - mean) / std)
    assert data.items.classes[7] == "thing_7"


def test_pad_crop_is_a_shifted_flipped_window(tmp_path):
    """A crop that reaches outside the padding, or one that never moves or flips."""
    tiny.write_cifar100(tmp_path)
    data = load("cifar-100", "train", tmp_path, mean=(0, 0, 0), std=(1, 1, 1))
    plain = data.collate(data.items, torch.tensor([0]), None).views["image"][0]
    padded = torch.nn.functional.pad(plain, (4, 4, 4, 4))
    windows = {}
    for top in range(9):
        for left in range(9):
            window = padded[:, top : top + 32, left : left + 32]
            windows[window.contiguous().numpy().tobytes()] = (top, left, False)
            windows[window.flip(2).contiguous().numpy().tobytes()] = (top, left, True)
    seeds = torch.arange(600)
    views = data.collate(data.items, torch.zeros(600, dtype=torch.int64), seeds).views["image"]
    found = [windows[view.numpy().tobytes()] for view in views]
    assert {place[0] for place in found} == set(range(9))
    assert {place[1] for place in found} == set(range(9))
    assert 240 < sum(place[2] for place in found) < 360


def test_batch_of_windows_equals_one_by_one(tmp_path):
    """The fast way for pictures in memory training on other pictures than the way for files."""
    tiny.write_cifar100(tmp_path, train=40)
    data = load("cifar-100", "train", tmp_path)
    rows, seeds = torch.arange(100), torch.arange(100) * 7919
    fast = data.collate(data.items, rows, seeds).views["image"]
    recipe = data.collate.recipe
    slow = batch_pixels(100, data.items.image, recipe, seeds, decoders=1)
    assert torch.equal(fast, recipe.normalized(slow))


def test_random_area_stays_inside_and_in_range():
    """Boxes outside the image, or with areas and ratios outside the recipe."""
    draws = uniforms(torch.arange(500), DRAWS)
    shares, ratios = [], []
    for row in draws:
        left, top, width, height = random_area(400, 300, row[1:].tolist())
        assert 0 <= left <= 400 - width
        assert 0 <= top <= 300 - height
        shares.append(width * height / 120_000)
        ratios.append(width / height)
    assert min(shares) == pytest.approx(AREA[0], abs=0.04)
    assert min(shares) > AREA[0] - 0.01  # whole pixels
    assert 0.85 < max(shares) <= AREA[1]
    assert min(ratios) > RATIO[0] - 0.02
    assert max(ratios) < RATIO[1] + 0.02
    assert random_area(1000, 1, [0.5] * 40) == (499, 0, 1, 1)


def test_splitmix_known_values():
    """Another generator than the one documented, or one that changes with the library."""
    gamma = 0x9E3779B97F4A7C15
    state = np.array([(1234567 + k * gamma) % 2**64 for k in range(3)], dtype=np.uint64)
    # Outputs for seed 1234567: the test values of Rosetta Code's task on SplitMix64.
    assert splitmix(state).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    draws = uniforms(torch.arange(2000), 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.08
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.03


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_modes_become_rgb(mode, tmp_path):
    """A grey, CMYK or palette file that ends in a batch of another channel count."""
    home = tiny.write_imagenet(tmp_path, classes=1, train=2)
    path = home / "train/n00000001/n00000001_0.JPEG"
    Image.open(path).convert(mode).save(path, "JPEG" if mode in ("L", "CMYK") else "PNG")
    data = load("imagenet-1k", "train", tmp_path, image_size=16, val_share=0)
    assert everything(data).views["image"].shape == (2, 3, 16, 16)


# Hashes


@pytest.mark.parametrize("name", PHOTOS)
def test_hash_is_of_paths_sizes_and_labels(name, tmp_path):
    """A hash that moves with the place or the order of the lists, or that misses an exchanged file."""
    tiny.WRITERS[name](tmp_path / "here")
    home = tiny.WRITERS[name](tmp_path / "there")
    before = load(name, "train", tmp_path / "here", val_share=0)
    after = load(name, "train", tmp_path / "there", val_share=0, image_size=16, decoders=2)
    assert before.hash == after.hash
    assert before.ids == after.ids
    assert len(before.hash) == 64
    with (home / after.ids[0]).open("ab") as file:
        file.write(b"\0")
    assert load(name, "train", tmp_path / "there", val_share=0).hash != before.hash


def test_hash_sees_a_changed_label(tmp_path):
    """Relabelled data taken for the same data."""
    home = tiny.write_cub(tmp_path)
    before = load("cub-200-2011", "train", tmp_path, val_share=0)
    labels = home / "image_class_labels.txt"
    labels.write_text(labels.read_text().replace("1 1\n", "1 2\n", 1))
    after = load("cub-200-2011", "train", tmp_path, val_share=0)
    assert before.ids == after.ids
    assert before.hash != after.hash


def test_cifar_hash_is_of_content(tmp_path):
    """One changed pixel that keys and caches do not notice."""
    home = tiny.write_cifar100(tmp_path)
    before = load("cifar-100", "test", tmp_path).hash
    content = bytearray((home / "test.bin").read_bytes())
    content[100] ^= 1
    (home / "test.bin").write_bytes(content)
    assert load("cifar-100", "test", tmp_path).hash != before
