"""The emoji data: what ships, what a batch holds, and how damage is reported."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo.task import Data
from kdzoo_vision.data import emoji
from kdzoo_vision.models import build

SEEDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
ROWS = torch.arange(8)


def classes(data: Data) -> Tensor:
    """(N,), which this data set always has."""
    assert data.groups is not None
    return data.groups


def test_splits_share_no_subgroup_and_no_drawing() -> None:
    """A drawing or a kind of thing seen in training would turn "unseen" into recall of the train set."""
    concepts, drawings = {}, {}
    for split in emoji.SPLITS:
        data = emoji.load(split)
        assert len(data) == len(data.ids) == len(data.items) == len(classes(data))
        concepts[split] = {emoji.read().concepts[k][3] for k in classes(data).tolist()}
        drawings[split] = {image.numpy().tobytes() for image in data.items}
        assert len(drawings[split]) == len(data), "two equal drawings: retrieval would be a coin toss"
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not concepts[first] & concepts[second]
        assert not drawings[first] & drawings[second]
    sizes = [len(emoji.load(split)) for split in emoji.SPLITS]
    assert sizes == [1970, 470, 780]


def test_each_class_has_its_two_styles() -> None:
    """A class with one image can never be hit at Recall@1; ids tie rows to code points and styles."""
    data = emoji.load("val")
    counts = classes(data).unique(return_counts=True)[1]
    assert counts.tolist() == [2] * (len(data) // 2)
    for row, name in enumerate(data.ids):
        points, style = name.split("/")
        assert emoji.read().concepts[int(classes(data)[row])][0] == points
        assert style == emoji.STYLES[row % 2]


def test_cells_hold_the_drawing_the_index_names() -> None:
    """A shifted sheet would still load, with every label wrong. The red heart is red, the green one green."""
    read = emoji.read()
    at = {concept[0]: k for k, concept in enumerate(read.concepts)}
    for points, channel in (("2764-FE0F", 0), ("1F49A", 1), ("1F499", 2)):
        for style in range(2):
            red_green_blue = read.pixels[at[points], style, :3].float().mean((1, 2))
            assert red_green_blue.argmax() == channel, (points, emoji.STYLES[style])
    assert (read.pixels[:, :, :3] <= read.pixels[:, :, 3:]).all(), "colours were to be multiplied by opacity"


def test_evaluation_batch() -> None:
    """Views of evaluation depend on nothing but the drawing, on grey ground."""
    data = emoji.load("val")
    batch = data.collate(data.items, ROWS, None)
    image = batch.views["image"]
    assert image.shape == (8, 3, 32, 32)
    assert image.dtype == torch.float32
    assert batch.counts == {"item": 8, "label": 8}
    assert batch.ids == list(data.ids[:8])
    assert torch.equal(batch.labels, classes(data)[:8])
    pixels = data.items[:8].double() / 255
    expected = (pixels[:, :3] + (1 - pixels[:, 3:]) * 0.5 - 0.5) / 0.25
    torch.testing.assert_close(image.double(), expected, atol=1e-5, rtol=0)


def test_augmentation_depends_on_the_seed_of_the_row_alone() -> None:
    """Neither order nor company in the batch may move a view: resume and data order rely on it."""
    data = emoji.load("train")
    image = data.collate(data.items, ROWS, SEEDS).views["image"]
    order = torch.tensor([5, 0, 7])
    again = data.collate(data.items, ROWS[order], SEEDS[order]).views["image"]
    torch.testing.assert_close(again, image[order], atol=1e-5, rtol=0)
    other = data.collate(data.items, ROWS, SEEDS + 1).views["image"]
    assert ((other - image).abs().mean((1, 2, 3)) > 0.02).all()
    assert image.min() >= -2
    assert image.max() <= 2


def test_augmentation_without_strength_is_a_change_of_ground(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one matrix per sample must reduce to plain composition; a slip in it only shows as worse recall."""
    for name in ("SCALE", "ROTATION", "SHIFT", "GAIN", "BRIGHTNESS"):
        monkeypatch.setattr(emoji, name, 0.0)
    monkeypatch.setattr(emoji, "SATURATION", (1.0, 1.0))
    data = emoji.load("train")
    pixels = data.items[ROWS].float() / 255
    image = emoji.augment(pixels, SEEDS) * 0.25 + 0.5
    ground = torch.from_numpy(emoji.uniforms(SEEDS, emoji.DRAWS))[:, 8:11, None, None].float()
    torch.testing.assert_close(image, pixels[:, :3] + (1 - pixels[:, 3:]) * ground, atol=1e-5, rtol=0)
    opaque = pixels[:, 3:].expand_as(image) == 1
    torch.testing.assert_close(image[opaque], pixels[:, :3][opaque], atol=1e-5, rtol=0)


def test_shift_moves_the_drawing_by_whole_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit of a shift is a pixel, not half an image."""
    for name in ("SCALE", "ROTATION", "GAIN", "BRIGHTNESS"):
        monkeypatch.setattr(emoji, name, 0.0)
    monkeypatch.setattr(emoji, "SATURATION", (1.0, 1.0))
    monkeypatch.setattr(emoji, "SHIFT", 2.0)
    draws = torch.full((1, emoji.DRAWS), 0.5).double().numpy()
    draws[0, 2:4] = 1.0, 0.0  # 2 pixels along x, -2 along y
    monkeypatch.setattr(emoji, "uniforms", lambda seeds, count: draws)
    pixels = torch.zeros(1, 4, 32, 32)
    pixels[0, :, 10, 20] = 1.0
    image = emoji.augment(pixels, torch.tensor([0])) * 0.25 + 0.5
    where = (image[0, 0] > 0.9).nonzero().tolist()
    assert where == [[12, 18]]


def test_loading_twice_gives_the_same_object() -> None:
    """Decoding the sheets costs 0.2 s; stages of one process share it."""
    assert emoji.load("val") is emoji.load("val")
    assert len({emoji.load(split).hash for split in emoji.SPLITS}) == 3


def test_hash_is_the_content_of_the_split(tmp_path: Path) -> None:
    """The hash enters stage keys: another place must not change it, another split must."""
    for path in emoji.FILES.glob("emoji-*"):
        shutil.copy(path, tmp_path)
    assert emoji.load("val", tmp_path).hash == emoji.load("val").hash
    manifest = json.loads((tmp_path / "emoji-manifest.json").read_text())
    manifest["splits"]["train"].append(manifest["splits"]["val"].pop())
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path, moved)
    (moved / "emoji-manifest.json").write_text(json.dumps(manifest))
    assert emoji.load("val", moved).hash != emoji.load("val").hash


@pytest.mark.parametrize("name", ["emoji-google.png", "emoji-twitter.png", "emoji-index.json"])
def test_a_corrupt_file_names_file_hashes_and_remedy(tmp_path: Path, name: str) -> None:
    """One flipped bit would train on other data under the same name."""
    for path in emoji.FILES.glob("emoji-*"):
        shutil.copy(path, tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    expected = hashlib.sha256(content).hexdigest()
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KdzooError) as caught:
        emoji.load("train", tmp_path)
    message = str(caught.value)
    for part in (name, expected, hashlib.sha256(content).hexdigest(), "Reinstall kdzoo-vision"):
        assert part in message


def test_missing_files_and_broken_manifest(tmp_path: Path) -> None:
    """No traceback from PIL or json for a half-copied installation."""
    with pytest.raises(KdzooError, match=r"emoji-manifest\.json.*Reinstall"):
        emoji.load("train", tmp_path / "nowhere")
    (tmp_path / "emoji-manifest.json").write_text('{"sha256": {')
    with pytest.raises(KdzooError, match="not valid JSON"):
        emoji.load("train", tmp_path)
    manifest = (emoji.FILES / "emoji-manifest.json").read_text()
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "emoji-manifest.json").write_text(manifest)
    with pytest.raises(KdzooError, match=r"emoji-google\.png cannot be read"):
        emoji.load("train", tmp_path / "second")


@pytest.mark.parametrize("text", ["[]", "{}", '{"sha256": {}, "splits": {}, "columns": 40}'])
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    """Valid JSON with parts missing must not end in a KeyError."""
    (tmp_path / "emoji-manifest.json").write_text(text)
    with pytest.raises(KdzooError, match="lacks"):
        emoji.load("train", tmp_path)


def test_unknown_split_suggests() -> None:
    """The task has no pool and no dev split."""
    with pytest.raises(KdzooError, match=r"unknown split .*'tran'.*train"):
        emoji.load("tran")


def test_attribution_ships_with_the_drawings() -> None:
    """CC-BY asks for authors, licence and a note of changes beside the sheet."""
    twitter = (emoji.FILES / "emoji-LICENSE-twitter.txt").read_text()
    assert "CC-BY-4.0" in twitter
    assert "Changes:" in twitter
    google = (emoji.FILES / "emoji-LICENSE-google.txt").read_text()
    assert "Apache License" in google
    assert sum(path.stat().st_size for path in emoji.FILES.glob("emoji-*.png")) < 5e6


def test_shipped_teacher_retrieves_as_it_says() -> None:
    """Weights, model description and data must belong together, else every distilled arm learns from noise."""
    says = json.loads((emoji.FILES / "emoji-teacher.json").read_text())
    path = emoji.FILES / "emoji-teacher.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == says["sha256"]
    assert path.stat().st_size < 1.5e6
    data = emoji.load("val")
    assert says["val_data_hash"] == data.hash
    assert says["train_data_hash"] == emoji.load("train").hash
    model = build(**says["model"])
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    model.eval()
    with torch.no_grad():
        rows = model(data.collate(data.items, torch.arange(len(data)), None).views["image"]).embedding
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-4, rtol=0)
    similar = F.normalize(rows, dim=1) @ rows.T
    similar.fill_diagonal_(-2)
    hits = torch.eq(classes(data)[similar.argmax(dim=1)], classes(data))
    # Nearly tied neighbours may swap between processors: two of 470 images.
    assert hits.double().mean().item() == pytest.approx(says["val"]["recall@1"], abs=0.005)
