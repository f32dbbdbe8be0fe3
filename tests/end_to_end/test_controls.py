"""``kdzoo bench --controls`` from the command line: the arms, the record, and a second start."""

from __future__ import annotations

import json
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from kdzoo import plugins, records
from kdzoo.controls import LONGER, SMOOTHING, smoothed_entropy
from kdzoo.errors import KdzooError
from kdzoo.plan import Request, make_plan
from kdzoo.report.table import print_record

ROOT = Path(__file__).resolve().parents[2]
BENCH = ("bench", "hinton-kd", "--jobs", "0", "--seeds", "1", "--set", "steps=4", "--set", "eval_every=2")


@pytest.fixture(autouse=True)
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extensions as core's pyproject.toml names them, whatever the installed metadata say."""
    project = tomllib.loads((ROOT / "core/pyproject.toml").read_text())["project"]
    entries = {
        name: metadata.EntryPoint(name, target, plugins.EXTENSION_GROUP)
        for name, target in project["entry-points"][plugins.EXTENSION_GROUP].items()
    }
    monkeypatch.setattr(plugins, "extensions", lambda: entries)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what takes most of the time of a bench of four steps, and is tested elsewhere."""
    monkeypatch.setattr("kdzoo.bench._item_interval", lambda *_: None)
    monkeypatch.setattr("kdzoo.bench._latencies", lambda *_: {})


def test_controls_are_run_marked_and_kept(kdzoo: Any, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a control that is missing in table or record, is a copy of another arm, or changes when resumed."""
    whole = kdzoo(*BENCH, "--controls", "--json")
    assert whole.code == 0, whole.err
    record = json.loads(whole.out)
    arms, rows = record["arms"], {row["arm"]: row for row in record["runs"]}
    marked = {name for name, arm in arms.items() if arm["control"]}
    slower = LONGER in arms  # a method that is no slower buys no steps, and the record says so
    assert marked == {"hinton-kd.permuted", "hinton-kd.random-teacher", SMOOTHING} | (
        {LONGER} if slower else set()
    )
    assert slower or LONGER in record["config"]["left_out"]
    assert {row["status"] for row in rows.values()} == {"done"}
    assert not any(row["warnings"] for row in rows.values())
    weights = [
        row["ships"]["student"]["sha256"] for arm, row in rows.items() if arm not in ("teacher", "student")
    ]
    assert len(set(weights)) == len(weights)
    assert arms["hinton-kd.permuted"]["extensions"][0].startswith("permuted==")
    starts = {row["init_hash"] for row in rows.values() if row["seed"] is not None}
    assert len(starts) == 1
    assert rows["hinton-kd.random-teacher"]["cost"]["teacher_forwards"] == 4 * 128
    assert rows["hinton-kd.random-teacher"]["metrics"]["test/agreement"]["value"] is not None

    entropy = next(stage for stage in record["stages"].values() if stage["name"] == "entropy")
    assert entropy["seed"] is None
    epsilon = record["config"]["settings"][SMOOTHING]["label_smoothing"]
    said = float(arms[SMOOTHING]["text"].partition("mean entropy: ")[2].partition(" nats")[0])
    assert smoothed_entropy(epsilon, 10) == pytest.approx(said, abs=1e-4)

    again = json.loads(kdzoo(*BENCH, "--controls", "--json").out)
    assert again["config_hash"] == record["config_hash"]
    assert all(stage["reused"] for stage in again["stages"].values())
    fresh = json.loads(kdzoo(*BENCH, "--controls", "--json", "--fresh").out)
    assert fresh["config_hash"] == record["config_hash"]  # other timings, the same steps
    assert [row["metrics"]["test/accuracy"] for row in fresh["runs"]] == [
        row["metrics"]["test/accuracy"] for row in record["runs"]
    ]

    (kept,) = (home / "benches").glob("*/record.json")
    print_record(records.read(kept), None)
    shown = capsys.readouterr().out
    assert "hinton-kd.permuted†" in shown
    assert (
        "† hinton-kd.permuted is a control: every sample gets the teacher's answer to another sample" in shown
    )


def test_steps_that_were_settled_are_trained(kdzoo: Any, home: Path) -> None:
    """Would catch a count that is written down and not obeyed, or that resets when artefacts are gone."""
    words = ("--arms", "hinton-kd,student.longer")
    assert kdzoo(*BENCH, *words).code == 0
    (note,) = (home / "controls").iterdir()
    note.write_text(json.dumps({"set": {"steps": 9}, "why": "as written here"}))
    record = json.loads(kdzoo(*BENCH, *words, "--json").out)
    row = next(row for row in record["runs"] if row["arm"] == LONGER)
    assert (row["steps"], row["status"]) == (9, "done")
    assert record["arms"][LONGER]["differs"] == ["steps", "order"]
    assert record["arms"][LONGER]["why"] == "as written here"
    assert set(record["arms"]) == {"teacher", "student", "hinton-kd", LONGER}


def test_a_control_that_a_task_cannot_have_is_named(kdzoo: Any) -> None:
    """Would catch an arm that is silently absent."""
    shown = kdzoo("bench", "fitnets", "--task", "emoji-retrieval", "--controls", "--smoke", "--jobs", "0")
    assert shown.code == 0, shown.err
    assert (
        "control student.smoothing is left out: the loss of emoji-retrieval has no class labels" in shown.out
    )
    assert "fitnets.permuted†" in shown.out


def test_permuted_by_hand(kdzoo: Any) -> None:
    """Would catch an extension that only --controls can switch on."""
    record = json.loads(kdzoo(*BENCH, "--arms", "hinton-kd", "--with", "permuted", "--json").out)
    assert record["id"]["extensions"][0].startswith("permuted==")
    assert record["arms"]["hinton-kd"]["control"] is False


def test_an_extension_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a traceback where an old installation does not know core's own extension."""
    monkeypatch.setattr(plugins, "extensions", dict)
    with pytest.raises(KdzooError, match="unknown extension 'permuted'"):
        make_plan(Request("hinton-kd", controls=True, seeds=1))
