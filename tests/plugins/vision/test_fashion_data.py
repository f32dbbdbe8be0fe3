"""The shipped part of Fashion-MNIST and its teacher: content, batches, augmentation, damage."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdzoo.errors import KdzooError
from kdzoo_vision.data import fashion
from kdzoo_vision.models import build, count_parameters

MANIFEST = json.loads((fashion.FILES / "fashion-manifest.json").read_text())


def pixels(split: str) -> np.ndarray:
    """(N, 28, 28) uint8, cut out of the sheet cell by cell."""
    sheet = np.asarray(Image.open(fashion.FILES / f"fashion-{split}.png"))
    rows, columns = sheet.shape[0] // 28, sheet.shape[1] // 28
    return np.stack(
        [sheet[28 * r : 28 * r + 28, 28 * c : 28 * c + 28] for r in range(rows) for c in range(columns)]
    )


@pytest.mark.parametrize(
    ("split", "count"), [("train", 500), ("pool", 12_000), ("val", 2_000), ("test", 5_000)]
)
def test_sizes_and_content(split: str, count: int) -> None:
    """Loading must give the pixels that were chosen, in order, normalised."""
    data = fashion.load(split)
    assert len(data) == count
    assert data.ids[0] == f"{split}/0"
    assert len(set(data.ids)) == count
    expected = pixels(split)
    assert hashlib.sha256(expected.tobytes()).hexdigest() == MANIFEST["splits"][split]["pixels_sha256"]
    rows = torch.tensor([0, count // 2, count - 1, 3])
    batch = data.collate(data.items, rows, None)
    wanted = (torch.from_numpy(expected[rows.numpy()]).float() / 255 - MANIFEST["mean"]) / MANIFEST["std"]
    assert batch.views["image"].shape == (4, 1, 28, 28)
    torch.testing.assert_close(batch.views["image"][:, 0], wanted)
    assert batch.ids == [data.ids[k] for k in rows.tolist()]


def test_no_image_is_in_two_splits() -> None:
    seen = [image.tobytes() for split in fashion.SPLITS for image in pixels(split)]
    assert len(seen) == len(set(seen)) == 19_500


@pytest.mark.parametrize(("split", "each"), [("train", 50), ("val", 200), ("test", 500)])
def test_classes_are_balanced(split: str, each: int) -> None:
    groups = fashion.load(split).groups
    assert groups is not None
    assert torch.bincount(groups).tolist() == [each] * 10


def test_labels_belong_to_their_images() -> None:
    """Labels in another order than the images would leave a nearest class mean at chance, 0.1."""
    train, val = fashion.load("train"), fashion.load("val")
    x, y = (train.collate(train.items, torch.arange(500), None).views["image"].flatten(1), train.groups)
    means = torch.stack([x[y == c].mean(0) for c in range(10)])
    batch = val.collate(val.items, torch.arange(2000), None)
    guess = torch.cdist(batch.views["image"].flatten(1), means).argmin(1)
    assert (guess == batch.labels).float().mean() > 0.6


def test_pool_has_no_labels() -> None:
    pool = fashion.load("pool")
    batch = pool.collate(pool.items, torch.tensor([5, 7]), None)
    assert batch.labels.tolist() == [-1, -1]
    assert batch.labels.dtype == torch.int64
    assert batch.counts == {"item": 2, "label": 0}
    assert pool.groups is None
    with np.load(fashion.FILES / "fashion-labels.npz", allow_pickle=False) as labels:
        assert sorted(labels) == ["test", "train", "val"]


def test_fewer_labels_are_a_balanced_prefix() -> None:
    full, some = fashion.load("train"), fashion.load("train", 120)
    assert list(some.ids) == list(full.ids[:120])
    assert some.groups is not None
    assert torch.bincount(some.groups).tolist() == [12] * 10
    assert some.hash != full.hash
    batch = some.collate(some.items, torch.arange(120), None)
    assert batch.counts == {"item": 120, "label": 120}
    assert torch.equal(batch.labels, full.groups[:120])
    assert fashion.load("val", 120) is fashion.load("val")


def test_read_once_per_process() -> None:
    assert fashion.load("train") is fashion.load("train", 500)


def shifted(image: np.ndarray, view: int) -> np.ndarray:
    """View number `view` (mirror, down, right), pixel by pixel."""
    mirror, down, right = view // 25, view // 5 % 5 - 2, view % 5 - 2
    out = np.zeros_like(image)
    for y in range(28):
        for x in range(28):
            from_y, from_x = y + down, x + right
            if 0 <= from_y < 28 and 0 <= from_x < 28:
                out[y, x] = image[from_y, 27 - from_x if mirror else from_x]
    return out


def test_augmented_views_are_shifts_and_mirror_images() -> None:
    """Fast window copies must not read a neighbour's pixels, least of all at the last image."""
    data, image = fashion.load("train"), pixels("train")[-1]
    frames = data.items.flatten()[499 * 2048 :]
    for view, start in enumerate(fashion.VIEWS.tolist()):
        window = frames[start:].as_strided((28, 28), (32, 1))
        assert np.array_equal(window.numpy(), shifted(image, view)), view


def test_augmentation_is_a_function_of_the_seed() -> None:
    """A row's view depends on its own seed alone: not on the batch around it, nor on torch's generator."""
    data = fashion.load("train")
    rows, seeds = torch.tensor([3, 9, 499, 3]), torch.tensor([11, 12, -5, 13])
    whole = data.collate(data.items, rows, seeds).views["image"]
    torch.manual_seed(1)
    for k in range(4):
        alone = data.collate(data.items, rows[k : k + 1], seeds[k : k + 1]).views["image"][0]
        assert torch.equal(alone, whole[k])
    assert not torch.equal(whole, data.collate(data.items, rows, None).views["image"])


def test_augmentation_can_be_switched_off() -> None:
    """Recorded teacher answers belong to the plain image; an augmented one must not be served with them."""
    plain, train = fashion.load("train", augment=False), fashion.load("train")
    rows = torch.arange(6)
    expected = train.collate(train.items, rows, None).views["image"]
    assert torch.equal(plain.collate(plain.items, rows, rows).views["image"], expected)
    assert plain.hash == train.hash


def test_all_views_are_equally_likely_even_for_consecutive_seeds() -> None:
    starts = fashion.view_offsets(torch.arange(50_000))
    counts = torch.stack([(starts == start).sum() for start in fashion.VIEWS])
    assert counts.sum() == 50_000
    assert len(set(fashion.VIEWS.tolist())) == 50
    # chi square with 49 degrees of freedom: above 94 once in 10,000
    assert float(((counts - 1000.0) ** 2 / 1000).sum()) < 94


def test_collate_leaves_the_items_alone() -> None:
    data = fashion.load("train")
    before = data.items.clone()
    batch = data.collate(data.items, torch.arange(8), torch.arange(8))
    batch.views["image"].zero_()
    batch.labels.zero_()
    assert torch.equal(data.items, before)
    assert torch.equal(data.collate(data.items, torch.arange(8), None).labels, data.groups[:8])


def copy(tmp_path: Path) -> Path:
    for path in fashion.FILES.glob("fashion-*"):
        if path.stem != "fashion-pool":
            shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["fashion-train.png", "fashion-labels.npz", "fashion-teacher.safetensors"])
def test_damaged_file(name: str, tmp_path: Path) -> None:
    """One flipped bit is found, and the message says which file, both hashes, and what to do."""
    path = copy(tmp_path) / name
    content = bytearray(path.read_bytes())
    right = hashlib.sha256(content).hexdigest()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    wrong = hashlib.sha256(content).hexdigest()
    read = fashion.teacher if name == "fashion-teacher.safetensors" else partial(fashion.load, "train")
    with pytest.raises(KdzooError) as caught:
        read(folder=tmp_path)
    for part in (str(path), right, wrong, "pip install --force-reinstall kdzoo-vision"):
        assert part in str(caught.value)


def test_missing_file_and_broken_manifest(tmp_path: Path) -> None:
    with pytest.raises(KdzooError, match=r"fashion-pool.png cannot be read .No such file.*Reinstall"):
        fashion.load("pool", folder=copy(tmp_path))
    (tmp_path / "fashion-manifest.json").write_text("{")
    with pytest.raises(KdzooError, match=r"fashion-manifest.json is not valid JSON"):
        fashion.load("val", folder=tmp_path)


def test_mistakes_are_explained() -> None:
    with pytest.raises(KdzooError, match="Did you mean train"):
        fashion.load("trian")
    for labels in (9, 501):
        with pytest.raises(KdzooError, match=f"labels = {labels} given, 10 to 500 expected"):
            fashion.load("train", labels)


def test_teacher_is_as_described() -> None:
    """The shipped weights must reach the validation accuracy that their JSON claims, read by this loader."""
    info, weights = fashion.teacher()
    model = build(info["model"], num_classes=10, in_channels=1, image_size=28)
    model.load_state_dict(weights)
    model.eval()
    assert count_parameters(model) == info["parameters"]
    val = fashion.load("val")
    assert info["val_sha256"] == val.hash
    batch = val.collate(val.items, torch.arange(2000), None)
    with torch.no_grad():
        hits = (model(batch.views["image"]).logits.argmax(1) == batch.labels).float().mean()
    assert abs(float(hits) - info["val_accuracy"]) < 0.0011  # two images: other CPUs round differently
    assert info["val_accuracy"] > 0.9
    assert info["command"].startswith("python tools/train_fashion_teacher.py --source")


def test_shipped_files_are_small_and_licensed() -> None:
    files = list(fashion.FILES.glob("fashion-*"))
    assert sum(path.stat().st_size for path in files) < 9_000_000
    assert (fashion.FILES / "fashion-teacher.safetensors").stat().st_size < 500_000
    text = (fashion.FILES / "fashion-LICENSE.txt").read_text()
    assert "The MIT License" in text
    assert "Zalando SE" in text
