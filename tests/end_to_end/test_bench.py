"""A whole bench through worker processes: what is shared, what is refused, what a failure takes with it."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdzoo import records
from kdzoo.artefacts import Store
from kdzoo.bench import make_record, run_bench
from kdzoo.plan import Plan, Request, make_plan
from kdzoo.records import Record
from kdzoo.runs import StageSpec
from kdzoo.workers import Options, run_all

SMOKE = Request("hinton-kd", seeds=2, smoke=True)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path, Path]:
    """(record, its folder, root) of a smoke bench with two workers."""
    root = tmp_path_factory.mktemp("bench")
    record, folder = run_bench(SMOKE, Options(root, jobs=2), lambda *_: None, "kdzoo bench hinton-kd --smoke")
    return record, folder, root


def test_record_round_trip(smoke: tuple[Record, Path, Path]) -> None:
    """A record that cannot be read again is lost work."""
    record, folder, _ = smoke
    assert records.to_json(records.read(folder / "record.json")) == records.to_json(record)


def test_record_holds_every_run_and_what_it_was(smoke: tuple[Record, Path, Path]) -> None:
    """Without hashes, versions and costs a number cannot be judged."""
    record, _, _ = smoke
    assert [(row.arm, row.seed) for row in record.runs] == [
        ("teacher", None), ("student", 0), ("student", 1), ("hinton-kd", 0), ("hinton-kd", 1),
    ]  # fmt: skip
    for row in record.runs:
        assert row.status == "done"
        assert {"test/accuracy", "test/agreement", "test/teacher_kl", "test/ece"} <= row.metrics.keys()
        assert all(
            0 <= row.metrics[name]["value"] <= 1 for name in ("test/accuracy", "test/agreement", "test/ece")
        )
        (facts,) = row.ships.values()
        assert facts["params"] > 0
        assert facts["flops"] > 0
        assert facts["latency_ms"] > 0
        (bins,) = row.reliability.values()
        gaps = [
            count * abs(hit - sure)
            for count, hit, sure in zip(bins["count"], bins["accuracy"], bins["confidence"], strict=True)
            if count
        ]
        assert sum(gaps) / sum(bins["count"]) == pytest.approx(row.metrics["test/ece"]["value"])
        if row.seed is not None:
            assert row.steps == 3
            assert row.cost["seconds"] > 0
            assert row.cost["peak_memory_bytes"] > 1e7
            assert row.cost["student_forwards"] == 3 * 128
            assert row.cost["teacher_forwards"] == (3 * 128 if row.arm == "hinton-kd" else 0)
    assert record.row("teacher", None).metrics["test/agreement"]["value"] == 1.0  # type: ignore[union-attr]
    assert record.env["packages"]["torch"]
    assert len(record.stages) == 1 + 2 * 2 + 2 * 2


def test_second_bench_reuses_everything_and_says_so(smoke: tuple[Record, Path, Path]) -> None:
    """Training again what is there wastes hours; counting it as new would falsify the costs."""
    first, _, root = smoke
    second, _ = run_bench(SMOKE, Options(root, jobs=2), lambda *_: None, "again", measure_latency=False)
    assert all(stage["reused"] for stage in second.stages.values())
    assert second.config_hash == first.config_hash
    for a, b in zip(first.runs, second.runs, strict=True):
        assert a.metrics == b.metrics
        assert a.cost == b.cost


def test_another_method_shares_student_and_baseline(smoke: tuple[Record, Path, Path]) -> None:
    """The student alone is one arm for all methods of a task: it is trained once."""
    first, _, root = smoke
    plan = make_plan(Request("dkd", arms="dkd", seeds=2, smoke=True))
    made = run_all(plan.specs, Options(root, jobs=0), lambda *_: None)
    student = [plan.runs[("student", seed)][-1].key for seed in (0, 1)]
    assert all(made[key]["reused"] for key in student)
    assert set(student) <= first.stages.keys()


def test_an_arm_that_differs_without_saying_so_is_refused(smoke: tuple[Record, Path, Path]) -> None:
    """More steps or another start for one arm only is the commonest unfair comparison."""
    _, _, root = smoke
    plan = make_plan(replace(SMOKE, seeds=1))
    made = run_all(plan.specs, Options(root, jobs=0), lambda *_: None)
    fit = next(spec for spec in plan.runs[("hinton-kd", 0)] if spec.stage.name == "fit")
    made[fit.key] = {**made[fit.key], "cost": {**made[fit.key]["cost"], "steps": 4}}
    row = make_record(plan, made, Store(root), "kdzoo", {}).row("hinton-kd", 0)
    assert row is not None
    assert row.status == "refused"
    assert "steps" in row.warnings[-1]
    plan.arms["hinton-kd"] = replace(plan.arms["hinton-kd"], differs=("steps",), why="a test")
    declared = make_record(plan, made, Store(root), "kdzoo", {}).row("hinton-kd", 0)
    assert declared is not None
    assert declared.status == "done"


def spoiled(plan: Plan, arm: str) -> dict[str, StageSpec]:
    """The plan's stages with one arm's fit made to fail."""
    specs = plan.specs
    for key, spec in specs.items():
        if spec.arm == arm and spec.stage.name == "fit":
            specs[key] = replace(spec, stage=replace(spec.stage, call="kdzoo.nowhere:fit"))
    return specs


@pytest.mark.parametrize("jobs", [0, 2])
def test_a_failed_stage_takes_only_what_needs_it(tmp_path: Path, jobs: int) -> None:
    """One broken method must not cost the results of the others."""
    plan = make_plan(replace(SMOKE, seeds=1))
    made = run_all(spoiled(plan, "hinton-kd"), Options(tmp_path, jobs=jobs), lambda *_: None)
    record = make_record(plan, made, Store(tmp_path), "kdzoo", {})
    assert {row.arm: row.status for row in record.runs} == {
        "teacher": "done", "student": "done", "hinton-kd": "failed",
    }  # fmt: skip
    first, second = record.failures
    assert "kdzoo.nowhere" in first["error"]
    assert second["skipped"]
    assert not [c for c in record.comparisons if "hinton-kd" in c["arms"]]


def test_a_killed_worker_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    """The out-of-memory killer takes a worker without a word; the bench must notice and say what happened."""
    plan = make_plan(replace(SMOKE, seeds=1, set=("steps=100000",), smoke=False))
    specs = {
        key: spec for key, spec in plan.specs.items() if spec.arm == "student" and spec.stage.name == "fit"
    }
    killed: list[int] = []

    def event(kind: str, spec: StageSpec, details: dict[str, Any]) -> None:
        if kind == "progress" and not killed:
            (lock,) = (tmp_path / "artefacts").glob("*.lock")
            killed.append(int(lock.read_text().split()[1]))
            os.kill(killed[0], signal.SIGKILL)

    (result,) = run_all(specs, Options(tmp_path, jobs=1), event).values()
    assert "SIGKILL" in result["error"]
    assert "memory" in result["error"]


def test_damaged_artefact_is_made_again(smoke: tuple[Record, Path, Path]) -> None:
    """A flipped byte in finished weights must not be evaluated as if nothing had happened."""
    record, _, root = smoke
    row = record.row("student", 0)
    assert row is not None
    key = next(k for k, stage in record.stages.items() if stage["name"] == "fit" and stage["seed"] == 0)
    path = root / "artefacts" / key / "student.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="does not have the hash"):
        again, _ = run_bench(SMOKE, Options(root, jobs=0), lambda *_: None, "again", measure_latency=False)
    assert not again.stages[key]["reused"]
    made_again = again.row("student", 0)
    assert made_again is not None
    assert made_again.ships["student"]["sha256"] == row.ships["student"]["sha256"]
    assert made_again.metrics["test/accuracy"] == row.metrics["test/accuracy"]


def test_json_has_no_nan(smoke: tuple[Record, Path, Path]) -> None:
    """NaN is not JSON: other programs could not read the record."""
    _, folder, _ = smoke
    json.loads((folder / "record.json").read_text(), parse_constant=lambda name: pytest.fail(name))
