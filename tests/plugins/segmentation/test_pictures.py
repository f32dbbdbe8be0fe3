"""Pictures of what nets see: which colours stand where, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from kdzoo.artefacts import home
from kdzoo.errors import KdzooError
from kdzoo.plan import Request, make_plan
from kdzoo.testing.subject import few_evaluated
from kdzoo.workers import Options, run_all
from kdzoo_segmentation.measures import IGNORE
from kdzoo_segmentation.pictures import GAP, HEAD, TILE, UNCOUNTED, WRONG, coloured, draw, errors, meta, sheet

PALETTE = torch.tensor([[0, 0, 0], [10, 200, 30]], dtype=torch.uint8)


def test_colours_by_hand() -> None:
    """A class with another's colour; a pixel to be ignored that is drawn as an error."""
    truth = torch.tensor([[0, 1, IGNORE]])
    assert coloured(truth, PALETTE).tolist() == [[[0, 0, 0], [10, 200, 30], list(UNCOUNTED)]]
    assert errors(torch.tensor([[1, 1, 1]]), truth).tolist() == [[list(WRONG), [255] * 3, list(UNCOUNTED)]]


def test_each_arm_has_its_column() -> None:
    """Arms drawn in each other's place, errors above the wrong arm."""
    truth = torch.zeros(1, 4, 4, dtype=torch.int64)
    said = {"right": truth, "wrong": truth + 1}
    info = {"classes": ("a", "b"), "palette": PALETTE.tolist()}
    picture = sheet(torch.rand(1, 1, 4, 4), truth, said, info)
    middle = [GAP + column * (TILE + GAP) + TILE // 2 for column in range(4)]
    above, below = HEAD + TILE // 2, HEAD + TILE + GAP // 2 + TILE // 2
    assert [picture.getpixel((x, above)) for x in middle[1:]] == [(0, 0, 0), (0, 0, 0), (10, 200, 30)]
    assert [picture.getpixel((x, below)) for x in middle[2:]] == [(255, 255, 255), WRONG]


def test_nets_of_a_bench_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way from a record's settings to a file; before the bench one clear message."""
    monkeypatch.setenv("KDZOO_HOME", str(tmp_path))
    request = Request(
        "pixel-kd",
        task="brain-slices",
        arms="pixel-kd",
        seeds=1,
        set=(
            "steps=1",
            "teacher_steps=1",
            "warmup=0",
            "batch=2",
            "student=fcn-r18-xxs",
            "teacher=fcn-r18-xxs",
        ),
    )
    with pytest.raises(KdzooError, match=r"at seed 0 has not been trained.*'kdzoo bench pixel-kd --task"):
        draw(request, tmp_path / "x.png", 1)
    assert not (tmp_path / "x.png").exists()
    with few_evaluated(4):
        run_all(make_plan(request).specs, Options(home(), jobs=0), lambda *_: None)
    size = draw(request, tmp_path / "x.png", 1)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == size


def test_a_task_without_colours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdzoo_segmentation.tasks import brain_slices

    short = {**brain_slices.METAINFO, "palette": [[0, 0, 0]]}
    monkeypatch.setattr(brain_slices, "METAINFO", short)
    with pytest.raises(KdzooError, match="8 classes and a palette of 1 colours"):
        meta("brain-slices")
    with pytest.raises(KdzooError, match="it is no segmentation"):
        meta("fashion-few-labels")
