"""``kdzoo compare`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from kdzoo.compare import Comparison
from kdzoo.plan import Request, make_plan
from kdzoo.workers import Options, run_all

SHORT = ("--jobs", "0", "--set", "steps=2", "--set", "eval_every=0")


def test_two_methods_are_ranked(kdzoo: Any, home: Path, tmp_path: Path) -> None:
    """Would catch a comparison that trains again, whose file differs from what is printed, or that cannot be read."""
    bench = make_plan(Request("dkd", seeds=3, arms="dkd", set=("steps=2", "eval_every=0")))
    run_all(bench.specs, Options(home, jobs=0), lambda *_: None)
    before = {path.name for path in (home / "artefacts").iterdir()}
    out = tmp_path / "ranks.json"
    asked = ("compare", "dkd", "hinton-kd", "--task", "fashion-few-labels", *SHORT, "--out", str(out))
    first = kdzoo(*asked, "--json")
    assert first.code == 0, first.err
    made = {path.name for path in (home / "artefacts").iterdir()} - before
    assert len(made) == 6  # fit and evaluation of the baseline at three seeds; all else was the bench's
    data = msgspec.json.decode(first.out, type=Comparison)
    assert msgspec.json.decode(out.read_bytes(), type=Comparison) == data
    assert sum(data.ranks.values()) == pytest.approx(3.0)
    assert data.friedman is not None
    assert [row.arm for row in data.tasks["fashion-few-labels"].rows] == [
        "teacher",
        "student",
        "hinton-kd",
        "dkd",
    ]
    ElementTree.parse(out.with_suffix(".svg"))

    second = kdzoo(*asked, "--metric", "nll")
    assert second.code == 0, second.err
    assert "test/nll, lower is better" in second.out
    assert "Holm-corrected over 1 pair" in second.out
    kept = sorted(path.name for path in home.glob("compares/*/*"))
    assert kept == ["compare.json", "compare.json", "compare.svg", "compare.svg"]


def test_smoke_over_two_tasks(kdzoo: Any) -> None:
    """Would catch tasks whose metrics have other names, and tests on one seed."""
    tasks = ("--task", "fashion-few-labels", "--task", "emoji-retrieval")
    got = kdzoo("compare", "rkd", "fitnets", *tasks, "--smoke", "--jobs", "0")
    assert got.code == 0, got.err
    assert "SMOKE RUN" in got.out
    assert "rkd, fitnets on fashion-few-labels: test/accuracy" in got.out
    assert "rkd, fitnets on emoji-retrieval: test/recall@1" in got.out
    assert "Mean ranks over 2 blocks (task, seed)" in got.out
    assert "ranks are not testable: 1 seed" in got.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rkd",), "expected at least 2"),
        (("rkd", "hinton-kd", "--task", "emoji-retrieval"), "hinton-kd runs on fashion-few-labels"),
        (("rkd", "fitnets", "--metric", "val/recall@1"), "what is measured at the end"),
        (("rkd", "fitnets", "--set", "hint_shar=1"), "unknown setting 'hint_shar'"),
        (("rkd", "fitnets", "--out", "x.svg"), "this file is for the data"),
        (("rkd", "rkt"), "unknown method 'rkt'"),
    ],
)
def test_mistakes_cost_no_training(kdzoo: Any, home: Path, words: tuple[str, ...], message: str) -> None:
    """Would catch a mistake that is found after the training, or ends in a traceback."""
    got = kdzoo("compare", *words)
    assert got.code == 2
    assert got.err.startswith("kdzoo: ")
    assert message in got.err
    assert not (home / "artefacts").exists()
    assert json.dumps(got.out) == '""'
