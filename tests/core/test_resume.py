"""A bench that is killed and started again ends where an uninterrupted one ends, bit by bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

COMMAND = (
    "bench hinton-kd --task fashion-few-labels --seeds 1 --arms hinton-kd --set steps=240 --set eval_every=40"
)
INTERRUPTIONS = ["group", "parent", "group", "ctrl-c"]


class Bench:
    """One home, in which the same command is started until it ends by itself."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> None:
        """In a process group of its own, as a shell starts it."""
        env = {
            **os.environ,
            "KDZOO_HOME": str(self.home),
            "KDZOO_CHECKPOINT_SECONDS": "0.05",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", "from kdzoo.cli import main; main()", *COMMAND.split(), *options]
        self.process = subprocess.Popen(
            command,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def state(self) -> set[str]:
        """Checkpoints and finished artefacts."""
        found = set()
        # os.walk passes over folders that are renamed while it reads (a finished artefact loses its .part);
        # Path.glob raises there in Python 3.11 and 3.12.
        for folder, _, names in os.walk(self.home / "artefacts"):
            artefact = Path(folder).name
            for name in names:
                if name.endswith(".json") or (artefact.endswith(".part") and name.startswith("checkpoint-")):
                    found.add(f"{artefact}/{name}")
        return found

    def wait_for_progress(self) -> bool:
        """Until something was saved that was not there when the process started; False if the process has ended."""
        assert self.process is not None
        before, end = self.state(), time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            if any("checkpoint-" in name for name in self.state() - before):
                return True
            time.sleep(0.01)
        return False

    def end(self) -> tuple[int, str, str]:
        assert self.process is not None
        out, err = self.process.communicate(timeout=240)
        return self.process.returncode, out, err

    def interrupt(self, how: str) -> tuple[int, str, str]:
        assert self.process is not None
        if how == "parent":
            os.kill(self.process.pid, signal.SIGKILL)
        else:
            os.killpg(self.process.pid, signal.SIGKILL if how == "group" else signal.SIGINT)
        return self.end()

    def alive(self) -> list[int]:
        """Processes of the group that are left."""
        assert self.process is not None
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self.process.pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found

    def record(self) -> dict[str, Any]:
        (path,) = self.home.glob("benches/*/record.json")
        record: dict[str, Any] = json.loads(path.read_text())
        return record

    def results(self) -> list[dict[str, Any]]:
        """Everything of a record's runs that must not depend on interruptions."""
        rows = []
        for row in self.record()["runs"]:
            row = dict(row)
            row["metrics"] = {name: value for name, value in row["metrics"].items() if name != "cost/seconds"}
            row["ships"] = {
                r: {k: v for k, v in s.items() if k != "latency_ms"} for r, s in row["ships"].items()
            }
            timed = ("seconds", "validation_seconds", "peak_memory_bytes")
            row["cost"] = {name: value for name, value in row["cost"].items() if name not in timed}
            rows.append(row)
        return rows

    def files(self) -> dict[str, dict[str, str]]:
        """Key -> file -> sha256, of every artefact."""
        found = {}
        for path in self.home.glob("artefacts/*/artefact.json"):
            manifest = json.loads(path.read_text())
            found[manifest["key"]] = manifest["files"]
        return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("whole"))
    bench.start("--jobs", "1")
    code, _, err = bench.end()
    assert code == 0, err
    return bench


def same(one: Bench, other: Bench) -> None:
    assert one.results() == other.results()
    assert one.files() == other.files()
    rubbish = [p.name for p in one.home.rglob("*") if p.name.endswith((".part", ".tmp", ".lock", ".stale"))]
    assert rubbish == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_bench_ends_as_an_uninterrupted_one(uninterrupted: Bench, tmp_path: Path) -> None:
    """SIGKILL to all processes or to the parent alone, and Ctrl-C, at random moments of the training; then resumed."""
    dice = random.Random(20261124)
    bench = Bench(tmp_path)
    for how in INTERRUPTIONS:
        bench.start("--jobs", "1")
        assert bench.wait_for_progress(), f"the bench ended before it was interrupted ({how}): {bench.end()}"
        time.sleep(dice.uniform(0, 0.15))
        code, out, err = bench.interrupt(how)
        if how == "ctrl-c":
            assert code == 130, err
            assert "Traceback" not in err
            assert "Go on with the same command" in err
            assert out == ""
        else:
            assert code == -signal.SIGKILL, "the bench ended by itself before it was killed"
        end = time.monotonic() + 20
        while bench.alive() and time.monotonic() < end:
            time.sleep(0.05)
        assert bench.alive() == [], f"workers outlive their parent ({how})"
        assert not list(tmp_path.glob("benches/*/*"))
    bench.start("--jobs", "1")
    code, _, err = bench.end()
    assert code == 0, err
    same(bench, uninterrupted)


@pytest.mark.slow
def test_without_workers_ctrl_c_stops_at_a_whole_step_too(uninterrupted: Bench, tmp_path: Path) -> None:
    """--jobs 0 trains in the command's own process: the same message, the same exit code, the same results."""
    bench = Bench(tmp_path)
    bench.start("--jobs", "0")
    assert bench.wait_for_progress()
    code, _, err = bench.interrupt("ctrl-c")
    assert code == 130, err
    assert "Traceback" not in err
    assert list(tmp_path.glob("artefacts/*.part/checkpoint.json"))
    bench.start("--jobs", "0")
    code, _, err = bench.end()
    assert code == 0, err
    same(bench, uninterrupted)
