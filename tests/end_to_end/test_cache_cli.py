"""``kdzoo bench --signals`` and ``kdzoo cache``: a bench on recorded answers is the live bench, and the disk is kept in
order."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdzoo.artefacts import MANIFEST, dump_json, manifest_hash
from kdzoo.bench import run_bench
from kdzoo.cli.cache import age, size
from kdzoo.plan import Request
from kdzoo.recordings import Recordings
from kdzoo.records import Record
from kdzoo.workers import Options

TWO_ARMS = Request(
    "fitnets",
    task="fashion-few-labels",
    arms="hinton-kd,fitnets",
    seeds=1,
    set=("steps=12", "eval_every=6", "warmup=2", "hint_share=0.5"),
)
PLAIN = Request("hinton-kd", arms="hinton-kd", seeds=1, set=("steps=12", "eval_every=6", "warmup=2"))
Benches = tuple[Record, Record, Path]


def bench(root: Path, request: Request) -> Record:
    record, _ = run_bench(
        request, Options(root, jobs=0), lambda *_: None, "kdzoo bench", measure_latency=False
    )
    assert not record.failures, record.failures
    return record


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Benches:
    """(live, recorded, home of the recorded one), two taught arms each: logits, and an inner layer."""
    root = tmp_path_factory.mktemp("cache")
    live = bench(root / "live", TWO_ARMS)
    return live, bench(root / "recorded", replace(TWO_ARMS, signals="recorded")), root / "recorded"


@pytest.fixture
def home_of_bench(benches: Benches, home: Path) -> Path:
    """A copy of the recordings of that bench, which a test may spoil."""
    shutil.copytree(benches[2] / "signals", home / "signals")
    return home


def test_a_bench_on_recorded_answers_is_the_live_bench_to_the_bit(benches: Benches) -> None:
    """A difference in the last digit becomes another accuracy some hundred steps later."""
    live, recorded, _ = benches
    for one, other in zip(live.runs, recorded.runs, strict=True):
        measured = [
            {name: value for name, value in row.metrics.items() if not name.startswith("cost/seconds")}
            for row in (one, other)
        ]
        assert measured[0] == measured[1], one.arm
        assert (one.curves, one.losses, one.init_hash, one.order_hash) == (
            other.curves, other.losses, other.init_hash, other.order_hash,
        )  # fmt: skip
        shipped = [{role: facts["sha256"] for role, facts in row.ships.items()} for row in (one, other)]
        assert shipped[0] == shipped[1], one.arm
        assert other.warnings == []


def test_a_bench_records_each_part_once_and_says_what_it_cost(benches: Benches) -> None:
    """Two arms share the logits; the inner layer is the hint arm's alone."""
    live, recorded, root = benches
    parts = sorted(entry.recording.identity.part for entry in Recordings(root).entries() if entry.recording)
    assert parts == ["features/stage2", "logits"]
    by_arm = {row.arm: row for row in recorded.runs}
    assert by_arm["hinton-kd"].cost["spent"]["recorded_teacher_forwards"] == 12_032  # 12,000 in groups of 64
    assert by_arm["fitnets"].cost["spent"]["recorded_teacher_forwards"] == 2 * 12_032
    # 32 augmented images a step, and the first batch of each part once more; live it is 128 a step.
    assert by_arm["hinton-kd"].cost["teacher_forwards"] == 12 * 32 + 128
    assert next(row for row in live.runs if row.arm == "hinton-kd").cost["teacher_forwards"] == 12 * 128
    assert recorded.config["request"]["signals"] == "recorded"
    assert "signals" not in live.config["request"]


def test_more_seeds_record_nothing_more(benches: Benches) -> None:
    """The recordings are the teacher's; seeds are the student's."""
    root = benches[2]
    before = {path: path.stat().st_mtime_ns for path in (root / "signals").glob("*/shard-*")}
    bench(root, replace(TWO_ARMS, first_seed=7, arms="hinton-kd", signals="recorded", smoke=True))
    assert {path: path.stat().st_mtime_ns for path in (root / "signals").glob("*/shard-*")} == before


def test_top_k_is_another_result_and_says_so(benches: Benches) -> None:
    """It must neither be taken from nor be put into the place of the full signal's."""
    root = benches[2]
    record = bench(root, replace(PLAIN, signals="top-k=2:drop"))
    row, full = record.row("hinton-kd", 0), benches[1].row("hinton-kd", 0)
    assert row is not None
    assert full is not None
    assert row.ships["student"]["sha256"] != full.ships["student"]["sha256"]
    assert record.config["request"]["signals"] == "top-k=2:drop"
    kept = [e.recording for e in Recordings(root).entries() if e.recording and e.recording.identity.k]
    assert [(one.identity.kind, one.identity.k, len(one)) for one in kept] == [("top-k", 2, 12_000)]


def test_differing_by_rounding_is_a_warning_in_the_record(
    tmp_path: Path, benches: Benches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On hardware whose kernels depend on the batch's size, the record must say that this is not the live result."""
    from kdzoo import recorded_answer

    monkeypatch.setattr(recorded_answer, "difference", lambda live, served: 3e-7)
    shutil.copytree(benches[2] / "signals", tmp_path / "signals")
    record = bench(tmp_path, replace(PLAIN, signals="recorded", smoke=True))
    row = record.row("hinton-kd", 0)
    assert row is not None
    (warning,) = row.warnings
    assert warning.startswith("logits of teacher/image as recorded and live differ by 3e-07")


# --- the commands -------------------------------------------------------------------------------------------------


def test_list_says_what_lies_there(home_of_bench: Path, kdzoo: Any) -> None:
    """What, of whom, about what, how large, how old; and the same as JSON."""
    outcome = kdzoo("cache", "list")
    assert outcome.code == 0
    logits = next(line for line in outcome.out.splitlines() if "  logits of teacher" in line)
    for part in ("fashion-few-labels/pool (image)", "12,000 samples", "float32", " kB", "made ", " ago"):
        assert part in logits
    assert outcome.out.splitlines()[-1].endswith(f"in {home_of_bench / 'signals'}")
    rows = json.loads(kdzoo("cache", "list", "--json").out)
    assert all(row["state"] == "whole" and row["deterministic"] and row["bytes"] > 1e5 for row in rows)
    assert {row["part"] for row in rows} >= {"logits", "features/stage2"}


def test_an_empty_cache(home: Path, kdzoo: Any) -> None:
    """The first thing a new user types must not be an error."""
    assert kdzoo("cache", "list").code == 0
    assert kdzoo("cache", "verify").code == 0
    assert kdzoo("cache", "prune").out == "nothing to remove\n"
    assert not (home / "signals").exists()


def test_verify_names_the_damaged_file_and_prune_removes_it(home_of_bench: Path, kdzoo: Any) -> None:
    """A flipped byte in the largest file of the cache: found, named, removed, the others left alone."""
    assert kdzoo("cache", "verify").code == 0
    whole = len(list((home_of_bench / "signals").iterdir()))
    victim = max((home_of_bench / "signals").glob("*/shard-*"), key=lambda path: path.stat().st_size)
    with open(victim, "r+b") as file:
        file.seek(-9, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-9, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    outcome = kdzoo("cache", "verify")
    assert outcome.code == 1
    assert f"WRONG  {victim}: sha256 " in outcome.out
    assert outcome.out.count("ok ") == whole - 1
    assert "kdzoo cache prune" in outcome.err
    assert kdzoo("cache", "verify", victim.parent.name[:6]).code == 1
    pruned = kdzoo("cache", "prune", "--yes")
    assert f"[{victim.name} is damaged]" in pruned.out
    assert len(list((home_of_bench / "signals").iterdir())) == whole - 1
    assert kdzoo("cache", "verify").code == 0


def aged(folder: Path, made: float, used: float) -> None:
    """Let a recording be made and used so many days ago."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_bytes())
    del manifest["sha256"]
    manifest["made_at"] = time.time() - made * 86_400
    path.write_bytes(dump_json({**manifest, "sha256": manifest_hash(manifest)}))
    os.utime(path, (time.time() - used * 86_400,) * 2)


def test_prune_by_age_and_use(home_of_bench: Path, kdzoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what was asked for goes; a dry run and a "no" remove nothing; what is being made is left alone."""
    root = home_of_bench / "signals"
    folders = sorted(root.iterdir())
    aged(folders[0], made=40, used=20)
    for folder in folders[1:]:
        aged(folder, made=2, used=1)
    (root / f"{'a' * 32}.part").mkdir()
    (root / f"{'b' * 32}.part").mkdir()

    def pruned(*words: str) -> str:
        outcome = kdzoo("cache", "prune", *words)
        assert outcome.code == 0
        return outcome.out

    with Recordings(home_of_bench).store.lock("a" * 32):
        assert "left over" in (said := pruned("--older-than", "30", "--dry-run"))
        assert "would remove 2 folders" in said
        assert "older than 30 days" in said
        assert "not used for 10 days" in pruned("--unused", "10", "--dry-run")
        assert "would remove 1 folder," in pruned("--unused", "30", "--dry-run")
        monkeypatch.setattr("builtins.input", lambda question: "n")
        assert "nothing was removed" in pruned("--older-than", "30")
        assert sorted(root.glob("?" * 32)) == folders
        monkeypatch.setattr("builtins.input", lambda question: "y")
        assert "removed 2 folders" in pruned("--older-than", "30")
        assert (root / f"{'a' * 32}.part").exists()
    assert sorted(root.glob("?" * 32)) == folders[1:]
    pruned("--all", "--yes")
    assert list(root.iterdir()) == []


def test_prune_asks_somebody(home_of_bench: Path, kdzoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a script nobody answers: that is no permission."""

    def nobody(question: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    outcome = kdzoo("cache", "prune", "--all")
    assert (outcome.code, "add --yes" in outcome.err) == (2, True)
    assert list((home_of_bench / "signals").iterdir())


def test_build_records_what_a_bench_would(home: Path, kdzoo: Any, benches: Benches) -> None:
    """The same key as the bench's own: built beforehand, the bench finds it. Built twice, it is there already."""
    first = kdzoo("cache", "build", "fashion-few-labels")
    assert first.code == 0, first.err
    (folder,) = (home / "signals").iterdir()
    assert (benches[2] / "signals" / folder.name).is_dir()
    assert "recorded in" in first.out
    second = kdzoo("cache", "build", "hinton-kd")
    assert "is there already" in second.out
    assert second.out.startswith(folder.name[:8])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst"], "unknown action of kdzoo cache 'lst'. Did you mean list?"),
        (["build"], "no method or task is named"),
        (["build", "hinton"], "unknown method 'hinton'. Did you mean hinton-kd"),
        (["build", "hinton-kd", "--signals", "live"], "--signals live asks the teacher each time"),
        (["build", "hinton-kd", "--yes"], "belongs to 'kdzoo cache prune'"),
        (["list", "--all"], "belongs to 'kdzoo cache prune'"),
        (["list", "abc"], "takes no names, got 'abc'"),
        (["verify", "zzz"], "unknown recording 'zzz'"),
        (["prune", "--older-than", "-1"], "--older-than got '-1', expected a number, at least 0"),
    ],
)
def test_mistakes_are_one_message(home: Path, kdzoo: Any, words: list[str], message: str) -> None:
    """Exit code 2, nothing on stdout, nothing made."""
    outcome = kdzoo("cache", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_bench_refuses_signals_that_do_not_fit(home: Path, kdzoo: Any) -> None:
    """Before weights load, with what to do instead."""
    for words, message in {
        ("--signals", "recordet"): "unknown signals 'recordet'",
        ("--signals", "top-k=99"): "expected less than the 10 classes",
        ("--signals", "top-k=3:tail-bucket"): "kdzoo.top_k.bucketed",
    }.items():
        outcome = kdzoo("bench", "hinton-kd", "--smoke", *words)
        assert outcome.code == 2
        assert message in outcome.err
    assert not (home / "artefacts").exists()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (684_511, "685 kB"), (1.25e9, "1.25 GB"), (3e12, "3 TB")]
)
def test_sizes_for_people(count: float, text: str) -> None:
    """Digits that nobody counts hide a factor of a thousand."""
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (40, "40 s"), (600, "10 min"), (7200, "2 h"), (259_200, "3 days")]
)
def test_ages_for_people(seconds: float, text: str) -> None:
    """A clock that is set back must not give a negative age."""
    assert age(seconds) == text
