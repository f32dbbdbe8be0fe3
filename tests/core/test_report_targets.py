"""``kdzoo report``: what its word may mean, where the page goes, and one clear message where it means nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdzoo.artefacts import Store
from kdzoo.errors import KdzooError
from kdzoo.report import stage_view, targets
from kdzoo.report.html import stage_page

KEY = "0123456789abcdef0123456789abcdef"
OTHER = "0123456789abcdefffffffffffffffff"
BINS = {"count": [0, 4], "accuracy": [None, 0.5], "confidence": [None, 0.75]}


def bench(
    home: Path, name: str, method: str = "toy-kd", made_at: str = "2026-01-01", smoke: bool = False
) -> Path:
    path = home / "benches" / name / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"id": {"method": method, "smoke": smoke}, "made_at": made_at}))
    return path


def stage(home: Path, key: str = KEY, **changes: Any) -> Path:
    """A finished artefact, written by the store itself."""
    store = Store(home)
    store.part(key).mkdir(parents=True)
    (store.part(key) / "student.safetensors").write_bytes(b"weights")
    manifest = {
        "key": key,
        "name": "fit",
        "call": "kdzoo.fit:fit_stage",
        "version": 1,
        "source_hash": "ab",
        "task": "toy-task",
        "method": "toy-kd",
        "seed": 3,
        "needs": {"teacher": OTHER},
        "settings": {"lr": 0.1, "api_key": "x"},
        "seconds": 12.5,
        "facts": {
            "init_hash": "cd",
            "reliability": {"student": BINS},
            "ships": {"student": {"params": 5, "flops": 2e6, "sha256": "ef"}},
        },
        "metrics": {"test/accuracy": {"value": 0.5, "n": 4}, "test/miou[rare]": {"value": None, "n": 0}},
        "cost": {"steps": 10, "seconds": 2.0, "peak_memory_bytes": 2**20, "spent": {"tokens": 7}},
        "curves": {"val/accuracy": [[5, 0.25], [10, 0.5]]},
        "logs": {"loss/task": [[0, 1.0], [5, 0.5]], "beta/mean": [[0, 0.1]]},
    }  # fmt: skip
    store.finish(key, {**manifest, **changes})
    return store.folder(key)


# --- what a word means --------------------------------------------------------------------------------------------


def test_paths(home: Path, tmp_path: Path) -> None:
    """Would catch a page that is written over the record, or into the sealed folder of an artefact."""
    record = bench(home, "toy-kd-toy-task-1")
    for word in (record, record.parent):
        found = targets.find(str(word))
        assert (found.kind, found.path, found.out) == ("bench", record, record.with_name("report.html"))
    named = tmp_path / "rkd.emoji.json"
    named.write_text("{}")
    assert targets.find(str(named)).out == tmp_path / "rkd.emoji.html"
    folder = stage(home)
    for word in (folder, folder / "artefact.json"):
        found = targets.find(str(word))
        assert (found.kind, found.path, found.out) == ("stage", folder, home / "reports" / f"{KEY}.html")


def test_names(home: Path) -> None:
    """Would catch a smoke run, or an older bench, that is taken for the method's result."""
    bench(home, "toy-kd-toy-task-1", made_at="2026-01-01")
    newest = bench(home, "toy-kd-toy-task-2", made_at="2026-02-01")
    bench(home, "toy-kd-toy-task-3", made_at="2026-03-01", smoke=True)
    other = bench(home, "toy-kd-more-toy-task-4", method="toy-kd-more", made_at="2026-04-01")
    (home / "benches" / "toy-kd-broken").mkdir()
    (home / "benches" / "toy-kd-broken" / "record.json").write_text("{")
    assert targets.find("toy-kd").path == newest
    assert targets.find("toy-kd-more").path == other
    assert targets.find("toy-kd-toy-task-1").path.parent.name == "toy-kd-toy-task-1"
    folder = stage(home)
    assert targets.find(KEY).path == folder
    assert targets.find(KEY[:8]).path == folder
    (home / "artefacts" / f"{KEY}.damaged-1").mkdir()
    assert targets.find(KEY[:8]).path == folder


def test_only_a_smoke_run_is_better_than_nothing(home: Path) -> None:
    """Would catch a refusal where the page itself would warn."""
    smoke = bench(home, "toy-kd-toy-task-1", smoke=True)
    assert targets.find("toy-kd").path == smoke


def test_ambiguous_words(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a page of one of two results, chosen by nobody."""
    bench(home, "toy-kd-toy-task-1")
    bench(home, "toy-kd-toy-task-2")
    stage(home)
    stage(home, OTHER)
    for word, listed in (("toy-kd-toy", "toy-kd-toy-task-2"), (KEY[:10], OTHER)):
        with pytest.raises(KdzooError, match="fits 2 results") as error:
            targets.find(word)
        assert listed in str(error.value)
    monkeypatch.chdir(tmp_path)
    bench(tmp_path, "x")
    (tmp_path / "benches" / "x").rename(tmp_path / "toy-kd")
    with pytest.raises(KdzooError, match=r"is both .* Write \./toy-kd"):
        targets.find("toy-kd")
    assert targets.find("./toy-kd").path == Path("toy-kd/record.json")


def test_words_that_mean_nothing(home: Path, tmp_path: Path, write_cards: Any, plugged: Any) -> None:
    """Would catch a traceback, or a message that does not say what would have been right."""
    package = write_cards()
    paths = [str(package / kind) for kind in ("methods", "tasks")]
    plugged(toy=f"from pathlib import Path\n@hookimpl\ndef cards(): return [Path(p) for p in {paths}]")
    unfinished = home / "artefacts" / f"{KEY}.part"
    unfinished.mkdir(parents=True)
    for word, said in (
        ("toy-kd", "Make one: kdzoo bench toy-kd"),
        ("toy-kdd", "Did you mean toy-kd"),
        ("nothing/at/all", "Expected a record"),
        (str(tmp_path), "holds neither record.json nor artefact.json"),
        (str(unfinished), "was not finished"),
    ):
        with pytest.raises(KdzooError) as error:
            targets.find(word)
        assert said in str(error.value), word


# --- one stage ----------------------------------------------------------------------------------------------------


def test_a_stage_shows_what_it_holds(home: Path) -> None:
    """Would catch a curve, a cost or a metric that is lost on the way to the page."""
    folder = stage(home)
    view = stage_view.stage_view(targets.read_stage(folder), folder)
    assert view.title == "fit of toy-kd on toy-task, seed 3"
    assert view.metrics is not None
    assert [[cell.text for cell in row] for row in view.metrics.rows] == [
        ["test/accuracy", "0.500", "4"], ["test/miou[rare]", "-", "0"],
    ]  # fmt: skip
    assert [figure.marks for figure in view.curves.first] == [2]
    assert [figure.marks for figure in view.terms.first] == [2]
    assert [figure.marks for figure in view.logged.first] == [1]
    assert [figure.marks for figure in view.calibration.first] == [1]
    assert dict(view.cost) == {
        "wall time of the stage": "12 s", "steps": "10", "seconds": "2.0", "peak memory": "1 MB", "tokens": "7",
    }  # fmt: skip
    assert view.needs == [("teacher", OTHER)]
    assert [name for name, _ in view.files] == ["student.safetensors"]
    page = stage_page(view)
    assert f"kdzoo report {OTHER}" in page


def test_a_stage_with_nothing_in_it(home: Path) -> None:
    """Would catch a page that needs a fit: other stages have no curves, no models, no method."""
    folder = stage(
        home, method=None, seed=None, curves={}, logs={}, metrics={}, facts={}, needs={}, cost={"spent": {}}
    )
    page = stage_page(stage_view.stage_view(targets.read_stage(folder), folder))
    assert "seed shared by all" in page
    assert "Nothing was trained in this stage" in page


def test_a_changed_manifest_is_refused_and_left_alone(home: Path) -> None:
    """Would catch a report of numbers that somebody has edited, and one that moves the store's folders."""
    folder = stage(home)
    path = folder / "artefact.json"
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(KdzooError, match="damaged"):
        targets.read_stage(folder)
    assert path.exists()
    assert targets.stored_reliability(home, [KEY]) == {}


def test_bins_from_the_store(home: Path) -> None:
    """Would catch an old record without a reliability diagram although the store has what it takes."""
    stage(home)
    assert targets.stored_reliability(home, [KEY, OTHER, "../../etc"]) == {KEY: {"student": BINS}}
    record = bench(home, "toy-kd-toy-task-1")
    assert targets.root_of(record) == home.resolve()
    assert targets.root_of(Path("/elsewhere/record.json")) == home


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page(home: Path, kdzoo: Callable[..., Any], tmp_path: Path) -> None:
    """Would catch a page that goes elsewhere than the command says."""
    folder = stage(home)
    done = kdzoo("report", KEY[:8])
    assert (done.code, done.out.strip()) == (0, str(home / "reports" / f"{KEY}.html"))
    assert (home / "reports" / f"{KEY}.html").read_text().startswith("<!DOCTYPE html>")
    assert Store(home).manifest(KEY) is not None
    out = tmp_path / "page.html"
    assert kdzoo("report", str(folder), "--out", str(out)).code == 0
    assert out.exists()


def test_mistakes_of_the_command(home: Path, kdzoo: Callable[..., Any], tmp_path: Path) -> None:
    """Would catch a record that is overwritten by its own page, and a traceback for a wrong path."""
    record = bench(home, "toy-kd-toy-task-1")
    before = record.read_bytes()
    for words, said in (
        (("toy-kd", "--out", str(record)), "which the page would replace"),
        (("toy-kd", "--out", str(tmp_path)), "this is a folder"),
        (("toy-kd", "--out", str(tmp_path / "no" / "page.html")), "does not exist"),
        (("toy-kd",), "is no record of schema"),
    ):
        done = kdzoo("report", *words)
        assert done.code == 2
        assert said in done.err
        assert len(done.err.strip().splitlines()) == 1
    assert record.read_bytes() == before
