"""Weights from local files: the right ones reach the right layers, all others are refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kdzoo import catalog
from kdzoo.artefacts import Store
from kdzoo.errors import KdzooError
from kdzoo.execute import execute
from kdzoo.plan import Request, make_plan
from kdzoo_segmentation import models, weights

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
import tiny_photo_sets


def net(seed: int, name: str = "fcn-r18-xs", classes: int = 5) -> models.Segmentor:
    torch.manual_seed(seed)
    return models.build(name, classes=classes)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("form", ["mmseg", "ranks", "bare", "kdzoo"])
def test_whole_models_in_every_form(tmp_path: Path, form: str) -> None:
    """Keys that miss their prefix would leave a teacher random."""
    taught, path = net(1), tmp_path / "w.pth"
    own = taught.net.state_dict()
    if form == "mmseg":
        torch.save({"meta": {"CLASSES": ("a", "b"), "mmseg_version": "1.2.2"}, "state_dict": own}, path)
    elif form == "ranks":
        torch.save({"state_dict": {f"module.{name}": value for name, value in own.items()}}, path)
    elif form == "bare":
        torch.save(own, path)
    else:
        path = tmp_path / "w.safetensors"
        save_file(taught.state_dict(), path)
    fresh = net(2)
    assert not equal(fresh.state_dict(), taught.state_dict())
    weights.load_whole(fresh, path)
    assert equal(fresh.state_dict(), taught.state_dict())


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_backbones_without_their_classifier(tmp_path: Path, prefix: str) -> None:
    """Only the backbone moves; the classifier of ImageNet is no part of it."""
    source, fresh, path = net(1), net(2), tmp_path / "w.pth"
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    own = {f"{prefix}{name}": value for name, value in source.net.backbone.state_dict().items()}
    own |= {f"{'head.' if prefix else ''}fc.weight": torch.ones(3, 3)}
    torch.save({"state_dict": own}, path)
    weights.load_backbone(fresh, path)
    assert equal(fresh.net.backbone.state_dict(), source.net.backbone.state_dict())
    assert torch.equal(before["net.decode_head.conv_seg.weight"], fresh.net.decode_head.conv_seg.weight)


class Anything:
    """What a checkpoint's meta may hold."""


def test_files_that_would_run_code_are_refused(tmp_path: Path) -> None:
    """An object in a checkpoint's meta is code; the message must say how to go on."""
    path = tmp_path / "w.pth"
    torch.save({"meta": Anything(), "state_dict": net(1).net.state_dict()}, path)
    with pytest.raises(KdzooError, match="would run code from it") as caught:
        weights.load_whole(net(2), path)
    assert "save_file" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            lambda: net(1, classes=7).net.state_dict(),
            r"2 of another shape, such as net.decode_head.conv_seg.bias",
        ),
        (lambda: net(1, "fcn-r18-xs").net.backbone.state_dict(), r"missing, such as net.backbone"),
        (lambda: {"state_dict": {}}, "holds no tensors by name"),
        (lambda: [1, 2], "holds no tensors by name"),
    ],
    ids=["classes", "another model", "empty", "a list"],
)
def test_other_weights_are_refused(tmp_path: Path, content: Any, said: str) -> None:
    """A part of the teacher would stay random, and nobody would see it."""
    path = tmp_path / "w.pth"
    torch.save(content(), path)
    with pytest.raises(KdzooError, match=said):
        weights.load_whole(net(2), path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_broken_and_missing_files(tmp_path: Path, name: str) -> None:
    """A download that stopped half-way; a mistyped path."""
    with pytest.raises(KdzooError, match="are not there"):
        weights.read(tmp_path / name)
    (tmp_path / name).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(KdzooError, match=r"cannot be read as weights|holds more than tensors"):
        weights.read(tmp_path / name)


def test_a_changed_file_is_another_run(tmp_path: Path) -> None:
    """Stages know the path alone: a new file there would be taken for the old one."""
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(2)}, path)
    first = weights.fingerprint(str(path))
    torch.save({"a": torch.ones(3)}, path)
    assert weights.fingerprint("") == ""
    assert first != weights.fingerprint(str(path)) != ""
    with pytest.raises(KdzooError, match="are not there"):
        weights.fingerprint(str(tmp_path / "none.pth"))


def test_weights_are_read_only_where_they_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A given teacher that is not the one who teaches; or ImageNet's weights read again over trained ones."""
    tiny_photo_sets.write_ade20k(tmp_path)
    classes = catalog.load().task("ade20k").sizes["classes"]
    taught = net(1, classes=classes)
    torch.save({"meta": {}, "state_dict": taught.net.state_dict()}, tmp_path / "teacher.pth")
    torch.save(net(3).net.backbone.state_dict(), tmp_path / "backbone.pth")
    values = {
        "steps": 1,
        "teacher_steps": 0,
        "batch": 2,
        "student": "fcn-r18-xs",
        "teacher": "fcn-r18-xs",
        "scale": "48,40",
        "crop": "32,32",
        "decoders": 1,
        "teacher_weights": tmp_path / "teacher.pth",
        "pretrained": tmp_path / "backbone.pth",
    }
    asked = tuple(f"{name}={value}" for name, value in values.items())
    plan = make_plan(
        Request(
            method="pixel-kd",
            task="ade20k",
            profile="paper",
            arms="pixel-kd",
            seeds=1,
            set=asked,
            data_root=str(tmp_path),
        )
    )
    read: list[str] = []
    monkeypatch.setattr(weights, "load_whole", _spy(weights.load_whole, read))
    monkeypatch.setattr(weights, "load_backbone", _spy(weights.load_backbone, read))
    store = Store(tmp_path / "store")
    for stage, arm, files in [
        ("teacher", "teacher", ["teacher.pth"]),
        ("fit", "pixel-kd", ["backbone.pth"]),
        ("evaluate", "pixel-kd", []),
    ]:
        spec = next(s for s in plan.specs.values() if s.stage.name == stage and s.arm == arm)
        read.clear()
        execute(spec, store)
        assert read == files, stage
        if stage == "teacher":
            kept = weights.read(store.folder(spec.key) / "student.safetensors")
            assert equal(kept, taught.state_dict())


def _spy(function: Any, read: list[str]) -> Any:
    def called(model: Any, path: Path) -> None:
        read.append(path.name)
        function(model, path)

    return called
