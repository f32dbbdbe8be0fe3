"""What a user can get wrong: one message that says what to do, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdzoo import records
from kdzoo.errors import KdzooError

METHOD, TASK = "hinton-kd", "fashion-few-labels"


def left_in(home: Path) -> list[str]:
    """Files in the home folder, the cache of parsed cards apart."""
    return sorted(
        p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file() and p.name != "cards.msgpack"
    )


@pytest.fixture
def refused(kdzoo: Any, home: Path) -> Callable[..., str]:
    """Run the program and check all that holds for any mistake; returns the message for the rest."""

    def run(*words: str) -> str:
        outcome = kdzoo(*words)
        assert outcome.code == 2, outcome.err
        assert outcome.out == ""
        assert outcome.err.startswith("kdzoo: ")
        assert outcome.err.count("\nkdzoo: ") == 0
        assert "Traceback" not in outcome.err
        if home.is_dir():
            assert left_in(home) == []
        return str(outcome.err)

    return run


def says(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"


def test_unknown_method(refused: Any) -> None:
    says(refused("bench", "hintn-kd"), "unknown method 'hintn-kd'", "Did you mean hinton-kd", "'kdzoo list'")


def test_unknown_command(refused: Any) -> None:
    says(refused("bnch", METHOD), "unknown command 'bnch'", "Did you mean bench?", "'kdzoo --help'")


def test_unknown_option(refused: Any) -> None:
    says(refused("bench", METHOD, "--sed", "3"), "unknown option '--sed'", "--seeds", "'kdzoo bench --help'")


def test_unknown_setting(refused: Any) -> None:
    message = refused("bench", METHOD, "--set", "temprature=2")
    says(message, "unknown setting 'temprature'", "Did you mean temperature", "Known: accumulate")


def test_wrong_type_of_a_setting(refused: Any) -> None:
    message = refused("bench", METHOD, "--set", "steps=abc")
    says(message, "--set steps=abc", "got 'abc'", "expected a whole number", "optimiser steps")


def test_setting_out_of_range(refused: Any) -> None:
    message = refused("bench", METHOD, "--set", "temperature=0")
    says(
        message, "--set temperature=0", "got 0.0", "expected at least 0.001", "temperature of both softmaxes"
    )


def test_setting_that_is_no_choice(refused: Any) -> None:
    message = refused("bench", METHOD, "--set", "optimizer=lion")
    says(message, "got 'lion'", "expected one of 'sgd', 'adam', 'adamw'")


def test_setting_that_is_no_number(refused: Any) -> None:
    says(refused("bench", METHOD, "--set", "lr=nan"), "--set lr=nan", "expected a finite number")


@pytest.mark.parametrize("text", ["lr", "", "lr:0.1"])
def test_malformed_set(refused: Any, text: str) -> None:
    says(refused("bench", METHOD, "--set", text), f"--set got {text!r}", "expected KEY=VALUE", "--set lr=0.1")


def test_missing_plugin(refused: Any, plugged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plugged()
    monkeypatch.setenv("KDZOO_PLUGINS", "core,nope")
    message = refused("bench", METHOD)
    says(message, "KDZOO_PLUGINS names nope", "not installed", "pip install", "take the name out")


def test_method_of_a_plugin_that_is_left_out(
    refused: Any, plugged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugged()
    monkeypatch.setenv("KDZOO_PLUGINS", "core")
    says(refused("bench", METHOD), f"unknown method '{METHOD}'", "'kdzoo list'")


def test_unknown_extension(refused: Any) -> None:
    says(refused("bench", METHOD, "--with", "mixup"), "unknown extension 'mixup'", "'kdzoo plugins'")


def test_unknown_task(refused: Any) -> None:
    message = refused("bench", METHOD, "--task", "fashion-few-label")
    says(message, "unknown task 'fashion-few-label'", f"Did you mean {TASK}", "'kdzoo list --tasks'")


def test_task_that_does_not_fit_the_method(refused: Any) -> None:
    message = refused("bench", METHOD, "--task", "emoji-retrieval")
    says(message, f"unknown task for {METHOD} 'emoji-retrieval'", f"{METHOD} runs on: {TASK}")


def test_unknown_arm(refused: Any) -> None:
    message = refused("bench", METHOD, "--arms", "hinton")
    says(message, "unknown arm 'hinton'", f"Did you mean {METHOD}", "Known: teacher, student")


def test_unknown_profile(refused: Any) -> None:
    message = refused("bench", METHOD, "--profile", "papr")
    says(message, "unknown profile 'papr'", "Did you mean paper", "'local' or 'paper'")


@pytest.mark.parametrize("seeds", ["0", "-1", "100000", "many"])
def test_impossible_seeds(refused: Any, seeds: str) -> None:
    says(
        refused("bench", METHOD, f"--seeds={seeds}"),
        f"--seeds got {seeds!r}",
        "at least 1, at most 1000",
        "claim",
    )


def test_impossible_jobs(refused: Any) -> None:
    says(refused("bench", METHOD, "--jobs", "-1"), "--jobs got '-1'", "at least 0", "processes")


@pytest.mark.parametrize("device", ["foo", "cuda:x", "gpu"])
def test_unknown_device(refused: Any, device: str) -> None:
    says(refused("bench", METHOD, "--device", device), f"unknown device {device!r}", "'cuda:N'")


def test_device_that_is_not_there(refused: Any) -> None:
    message = refused("bench", METHOD, "--device", "cuda:99")
    says(message, "--device cuda:99", "sees", "every run would fail", "--device cpu", "'kdzoo doctor'")


def test_unknown_dtype(refused: Any) -> None:
    message = refused("bench", METHOD, "--dtype", "float61")
    says(message, "unknown dtype 'float61'", "'float32' or 'bfloat16'")


def test_out_in_a_missing_folder(refused: Any, tmp_path: Path) -> None:
    message = refused("bench", METHOD, "--out", str(tmp_path / "absent" / "record.json"))
    says(message, "--out", "does not exist", "would be lost", "Make it, or name another file")
    assert not (tmp_path / "absent").exists()


def test_out_that_is_a_folder(refused: Any, tmp_path: Path) -> None:
    says(refused("bench", METHOD, "--out", str(tmp_path)), "this is a folder", "record.json")


def test_paper_profile_without_data(refused: Any) -> None:
    message = refused("bench", "rkd", "--profile", "paper")
    says(message, "trains on the paper's data", "--data-root DIR", "CUB_200_2011/", "'kdzoo show rkd'")


def test_data_root_that_is_missing(refused: Any, tmp_path: Path) -> None:
    message = refused("bench", "rkd", "--profile", "paper", "--data-root", str(tmp_path / "absent"))
    says(message, "--data-root", "no such folder", "nothing to train on", "'kdzoo show TASK'")


def test_data_root_without_the_data(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    message = refused("bench", "rkd", "--profile", "paper", "--data-root", str(tmp_path / "data"))
    says(message, "CUB-200-2011: images.txt is not there", "Expected:", "What to do:")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_read_only_home(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDZOO_HOME", "/proc/kdzoo")
    says(refused("bench", METHOD, "--smoke", "--jobs", "0"), "/proc/kdzoo", "set KDZOO_HOME to a folder")


def test_home_that_is_a_file(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    monkeypatch.setenv("KDZOO_HOME", str(file))
    says(
        refused("bench", METHOD, "--smoke", "--jobs", "0"),
        str(file),
        "is a file",
        "set KDZOO_HOME to a folder",
    )
    assert file.read_text() == "mine"


# --- files that are damaged ---------------------------------------------------------------------------------------

TOY = """
import torch
from torch import nn
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch, Metric, Term
from kdzoo.task import Data

def data(run, name):
    items = torch.linspace(-1, 1, 4)[:, None]
    return Data(items, [f"{name}/{i}" for i in range(4)], collate, hash="of " + name)

def collate(items, rows, seeds):
    labels = (items[rows, 0] > 0).long()
    return Batch([str(int(row)) for row in rows], {"image": items[rows]}, labels, {"item": len(rows)})

@hookimpl
def build_model(run, role):
    return nn.Linear(1, 2)

@hookimpl
def loss_terms(run, batch):
    total = nn.functional.cross_entropy(run.out("student").logits, batch.labels, reduction="sum")
    return {"task": Term(total, per="item")}

@hookimpl
def evaluate(run, split):
    said = run.predict(run.ships[0], split)
    hits = (said.logits.argmax(1) == said.labels).float()
    return {"accuracy": Metric(float(hits.mean()), len(hits), hits)}
"""


def install_with_teacher(write_cards: Any, plugged: Any, stored: bytes, found: bytes | None) -> None:
    """The toy task with a shipped teacher: the card knows `stored`, the package holds `found`."""
    sha256 = hashlib.sha256(stored).hexdigest()
    shipped = f'file = "teacher.safetensors"\nsha256 = "{sha256}"\ncommand = "python tools/train_teacher.py"'
    package: Path = write_cards(task=("set = { steps = 30 }", shipped))
    (package / "tasks" / "toy_task.py").write_text(TOY)
    if found is not None:
        (package / "tasks" / "teacher.safetensors").write_bytes(found)
    plugged(
        toy=f"from pathlib import Path\n@hookimpl\ndef cards():\n"
        f"    return [Path({str(package)!r}) / 'methods', Path({str(package)!r}) / 'tasks']"
    )


def weights(size: int) -> bytes:
    import torch
    from safetensors.torch import save

    return save({"weight": torch.ones(2, size), "bias": torch.zeros(2)})


def test_a_whole_teacher_trains(write_cards: Any, plugged: Any, kdzoo: Any, home: Path) -> None:
    """The tests below fail for the teacher's sake alone; and --json is alone on stdout."""
    install_with_teacher(write_cards, plugged, weights(1), weights(1))
    outcome = kdzoo("bench", "toy-kd", "--smoke", "--jobs", "0", "--json", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert {run["status"] for run in json.loads(outcome.out)["runs"]} == {"done"}
    assert "3/3 runs" in outcome.err


@pytest.mark.parametrize(
    ("stored", "found", "parts"),
    [
        ("whole", "damaged", ["sha256", "the card says", "damaged or another version's", "Reinstall"]),
        ("whole", None, ["are missing", "reinstall"]),
        ("other", "other", ["role 'teacher'", "do not fit the model that was built", "settings"]),
        ("noise", "noise", ["role 'teacher'", "teacher.safetensors"]),
    ],
)
def test_corrupt_teacher_weights(
    write_cards: Any,
    plugged: Any,
    kdzoo: Any,
    home: Path,
    stored: str,
    found: str | None,
    parts: list[str],
) -> None:
    """Every arm needs the teacher, so nothing can be compared: the reason is printed once, not once a run."""
    contents = {
        "whole": weights(1),
        "damaged": weights(1)[:-3] + b"abc",
        "other": weights(5),
        "noise": b"no weights",
    }
    install_with_teacher(write_cards, plugged, contents[stored], contents[found] if found else None)
    outcome = kdzoo("bench", "toy-kd", "--smoke", "--jobs", "0", "--device", "cpu")
    assert outcome.code == 2, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    says(outcome.err, *parts)
    assert outcome.err.count(parts[0]) == 1
    assert not [name for name in left_in(home) if ".part/" in name and name.endswith("artefact.json")]
    assert not [name for name in left_in(home) if name.endswith((".tmp", ".lock"))]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["no record of schema"]),
        (b"{", ["no record of schema", "kdzoo bench"]),
        (b"[]", ["no record of schema"]),
        (b'{"schema": 1}', ["missing required field", "kdzoo bench"]),
        (b"\xff\xfe", ["no record of schema"]),
        (None, ["cannot read the record", "No such file", "record.json"]),
    ],
)
def test_corrupt_record(tmp_path: Path, content: bytes | None, parts: list[str]) -> None:
    path = tmp_path / "record.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KdzooError) as error:
        records.read(path)
    says(str(error.value), str(path), *parts)


def test_record_with_a_field_nobody_knows(tmp_path: Path) -> None:
    """A record of a later version must not be read half."""
    fields: dict[str, Any] = {"schema": 1, "command": "", "config_hash": "", "made_at": ""}
    fields |= {name: {} for name in ("id", "config", "env", "data", "arms", "stages")}
    fields |= {name: [] for name in ("runs", "comparisons", "claims", "paper", "failures")}
    path = tmp_path / "record.json"
    path.write_text(json.dumps(fields))
    assert records.read(path).runs == []
    path.write_text(json.dumps({**fields, "later": 1}))
    with pytest.raises(KdzooError, match="unknown field `later`"):
        records.read(path)
