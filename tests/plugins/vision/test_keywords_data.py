"""The keywords of the emoji as they ship: labels, splits, hashes, teacher."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from kdzoo import catalog
from kdzoo.errors import KdzooError
from kdzoo.label_metrics import average_precision
from kdzoo_vision.data import emoji, emoji_keywords
from kdzoo_vision.ml_decoder import LabelModel
from kdzoo_vision.models import build

ROOT = Path(__file__).parents[3]
ROWS = torch.arange(6)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/build_emoji_keywords.py, which is no package."""
    spec = importlib.util.spec_from_file_location(
        "build_emoji_keywords", ROOT / "tools/build_emoji_keywords.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_known_labels_lie_where_they_should() -> None:
    """Would catch labels shifted by one concept, which would still train, to chance."""
    keywords = emoji_keywords.read()
    assert len(keywords.names) == 143
    assert int(keywords.rare.sum()) == 56

    def labels(points: str) -> set[str]:
        return {keywords.names[k] for k in keywords.concepts[points][1]}

    assert {"cat", "animal"} <= labels("1F408")
    assert {"fruit", "red"} <= labels("1F34E")
    assert "heart" in labels("2764-FE0F")
    assert "arrow" not in labels("1F408")


def test_splits_are_disjoint_in_concepts_and_keep_every_label() -> None:
    """Would catch a concept whose other drawing was trained on, and a label that a split cannot score."""
    data = {split: emoji_keywords.load(split) for split in emoji_keywords.SPLITS}
    concepts = {split: {name.partition("/")[0] for name in one.ids} for split, one in data.items()}
    assert sum(map(len, concepts.values())) == len(set.union(*concepts.values())) == 1567
    for split, one in data.items():
        assert len(one) == catalog.load().task("emoji-keywords").sizes[split] == 2 * len(concepts[split])
        labels = one.collate(one.items, torch.arange(len(one)), None).labels
        assert labels.sum(0).min() >= 2
        assert torch.equal(labels[0::2], labels[1::2]), "both drawings have their concept's labels"
    everything = emoji_keywords.load("all")
    assert set(everything.ids) == {*data["train"].ids, *data["pool"].ids}


def test_batch_and_hidden_labels() -> None:
    """Would catch labels of the pool that reach the student."""
    data = emoji_keywords.load("pool", labelled=False)
    batch = data.collate(data.items, ROWS, ROWS)
    assert batch.counts == {"item": 6, "label": 0}
    assert batch.labels.unique().tolist() == [-1.0]
    assert batch.views["image"].shape == (6, 3, 32, 32)
    assert not torch.equal(batch.views["image"], data.collate(data.items, ROWS, None).views["image"])
    assert data.hash != emoji_keywords.load("pool").hash


def test_pixels_are_the_concepts_own() -> None:
    """Would catch drawings of other concepts beside the labels."""
    data, whole = emoji_keywords.load("val"), emoji.read()
    positions = {concept[0]: k for k, concept in enumerate(whole.concepts)}
    for row in (0, 7, 101):
        points, style = data.ids[row].split("/")
        assert torch.equal(data.items[row], whole.pixels[positions[points], emoji.STYLES.index(style)])


@pytest.mark.parametrize("name", ["emoji-keywords.json", "emoji-index.json"])
def test_a_corrupt_file_names_file_hashes_and_remedy(tmp_path: Path, name: str) -> None:
    """Would catch other labels under the same name."""
    for path in emoji.FILES.glob("emoji-*"):
        shutil.copy(path, tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes().replace(b"cat", b"dog", 1))
    with pytest.raises(KdzooError, match=rf"{name} has sha256 .* expects .*Reinstall"):
        emoji_keywords.read(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(KdzooError, match="cannot be read"):
        emoji_keywords.read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"sha256": {}, "rare": 1}'])
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    """Would catch a KeyError for a half-copied installation."""
    (tmp_path / "emoji-keywords-manifest.json").write_text(text)
    with pytest.raises(KdzooError, match=r"is not valid JSON|lacks"):
        emoji_keywords.read(tmp_path)


def test_unknown_split() -> None:
    """Would catch a traceback for a misspelt name."""
    with pytest.raises(KdzooError, match="unknown split"):
        emoji_keywords.load("tets")


def test_labels_by_hand(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch two names of one label, which would count twice in every mean, and labels that are too rare."""
    monkeypatch.setattr(tool, "LEAST", 2)
    words = [{"no", "not", "sign"}, {"no", "not"}, {"sign", "sun"}, {"moon"}]
    assert tool.choose_labels(words) == ["no", "sign"]


def test_stratification(tool: ModuleType) -> None:
    """Would catch a label that one split has hardly any of, or a concept without a split."""
    rows = [[k % 3, 3 + k % 10] if k % 4 else [] for k in range(200)]
    shares = {"a": 0.5, "b": 0.2, "c": 0.3}
    splits = tool.stratify(rows, shares, 1)
    assert splits == tool.stratify(rows, shares, 1)
    for split, share in shares.items():
        assert splits.count(split) == pytest.approx(200 * share, abs=3)
        for label in range(13):
            having = [s for s, row in zip(splits, rows, strict=True) if label in row]
            assert having.count(split) == pytest.approx(len(having) * share, abs=2)


def test_shipped_teacher_is_as_good_as_it_says() -> None:
    """Would catch weights, description and data that do not belong together: every arm would learn noise."""
    says = json.loads((emoji.FILES / "emoji-keywords-teacher.json").read_text())
    path = emoji.FILES / "emoji-keywords-teacher.safetensors"
    card = catalog.load().task("emoji-keywords")
    assert card.teacher is not None
    assert hashlib.sha256(path.read_bytes()).hexdigest() == says["sha256"] == card.teacher.sha256
    assert card.teacher.command == says["command"]
    assert path.stat().st_size < 1e6
    data = emoji_keywords.load("val")
    assert (says["train_data_hash"], says["val_data_hash"]) == (emoji_keywords.load("all").hash, data.hash)
    values = {name: param.default for name, param in card.params.items()}
    assert values["teacher"] == says["backbone"]
    net = LabelModel(
        build(says["backbone"], num_classes=None, in_channels=3, image_size=32),
        143,
        (3, 32, 32),
        width=values["teacher_label_dim"],
        hidden=values["teacher_label_hidden"],
        heads=values["teacher_label_heads"],
    ).eval()
    state = load_file(path)
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    batch = data.collate(data.items, torch.arange(len(data)), None)
    with torch.no_grad():
        found = average_precision(net(batch.views["image"]).logits, batch.labels).nanmean()
    assert found.item() == pytest.approx(says["val"]["map"], abs=0.003)


def test_attribution_ships_with_the_labels() -> None:
    """Would catch data without its licence beside it."""
    assert "UNICODE LICENSE V3" in (emoji.FILES / "emoji-keywords-LICENSE.txt").read_text()
    assert "emoji-keywords" in (ROOT / "plugins/vision/NOTICE").read_text()
