"""Checkpoints: whole or refused, and never older files beside the newest."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import torch

from kdzoo import checkpoint
from kdzoo.artefacts import write_atomic
from kdzoo.errors import KdzooError
from kdzoo.fit import fit_stage
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch
from kdzoo.runs import Run, Stopped
from kdzoo.testing import toy
from kdzoo.testing.extensions import CUT, Stop


def stopped(folder: Path) -> None:
    with pytest.raises(Stopped):
        fit_stage(toy.run(folder, add=[Stop()]))


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None


def test_what_is_saved_is_the_state_after_whole_steps(tmp_path: Path) -> None:
    """Trained and own roles, optimiser and books are there; frozen roles and random state are not needed."""
    stopped(tmp_path)
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] == CUT
    assert set(state["models"]) == {"student", "connector", "average"}
    assert state["books"]["cost"]["steps"] == CUT
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{CUT}.pt", "checkpoint.json"]


@pytest.mark.parametrize("damage", ["flip a bit", "cut", "remove", "break the pointer", "empty the pointer"])
def test_a_damaged_checkpoint_is_refused_with_a_remedy(tmp_path: Path, damage: str) -> None:
    """Going on from a state that is not what was saved gives a result that nobody can get again."""
    stopped(tmp_path)
    state, pointer = tmp_path / f"checkpoint-{CUT}.pt", tmp_path / "checkpoint.json"
    content = bytearray(state.read_bytes())
    if damage == "flip a bit":
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif damage == "cut":
        state.write_bytes(content[:-100])
    elif damage == "remove":
        state.unlink()
    elif damage == "break the pointer":
        pointer.write_text('{"file": ')
    else:
        pointer.write_text("[]")
    with pytest.raises(KdzooError, match=r"checkpoint.*--no-resume"):
        fit_stage(toy.run(tmp_path))


def test_a_half_written_checkpoint_is_never_looked_at(tmp_path: Path) -> None:
    """Killed while the next state was being written: the pointer still names the last whole one."""
    stopped(tmp_path)
    (tmp_path / f"checkpoint-{CUT + 3}.pt").write_bytes(b"half")
    (tmp_path / ".checkpoint.json.1.tmp").write_bytes(b"ha")
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] == CUT
    fit_stage(toy.run(tmp_path))


class _FullDisk:
    """The disk is full from one step on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    @hookimpl
    def after_step(self, run: Run, batch: Batch) -> None:
        if run.step == 11:

            def full(handle: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            self.monkeypatch.setattr(os, "fsync", full)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state that cannot be written must not take the older one with it."""
    whole = toy.run(tmp_path / "whole")
    fit_stage(whole)
    run = toy.run(tmp_path / "full", add=[_FullDisk(monkeypatch)])
    run.checkpoint_seconds = 0.0
    with pytest.raises(KdzooError, match="the disk is full"):
        fit_stage(run)
    monkeypatch.undo()
    state = checkpoint.load(tmp_path / "full")
    assert state is not None
    assert state["step"] == 11
    assert not list((tmp_path / "full").glob(".*"))
    resumed = toy.run(tmp_path / "full")
    fit_stage(resumed)
    for name, value in whole.models["student"].state_dict().items():
        assert (value == resumed.models["student"].state_dict()[name]).all()


class Queue:
    """What a method keeps: something with a state."""

    def __init__(self) -> None:
        self.values = torch.zeros(3)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.values = state["values"]


class Keeps:
    """A method with a queue, made at the first step, moved at every step, and added to the loss's curve."""

    @hookimpl
    def after_step(self, run: Run, batch: Batch) -> None:
        queue = run.kept.get("queue") or run.keep("queue", Queue())
        queue.values = queue.values.roll(1)
        queue.values[0] = run.step
        run.log("queue", float(queue.values.sum()))


def test_what_a_method_keeps_is_resumed(tmp_path: Path) -> None:
    """A queue that begins empty after a resume gives another loss than an uninterrupted run's."""
    whole = toy.run(tmp_path / "whole", add=[Keeps()])
    fit_stage(whole)
    with pytest.raises(Stopped):
        fit_stage(toy.run(tmp_path / "cut", add=[Keeps(), Stop()]))
    resumed = toy.run(tmp_path / "cut", add=[Keeps()])
    fit_stage(resumed)
    assert resumed.logs["queue"] == whole.logs["queue"]


def test_a_name_is_kept_once(tmp_path: Path) -> None:
    run = toy.run(tmp_path)
    run.keep("queue", Queue())
    with pytest.raises(KdzooError, match="the name 'queue' is taken"):
        run.keep("queue", Queue())


def test_saving_takes_at_most_a_twentieth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that takes seconds to write, at a checkpoint every ten seconds, would double the training's time."""
    saves = []

    def slow(run: Run, optimizer: torch.optim.Optimizer | None) -> None:
        saves.append(run.step)
        time.sleep(0.05)

    monkeypatch.setattr(checkpoint, "save", slow)
    run = toy.run(tmp_path, settings={"steps": 60, "eval_every": 0})
    run.checkpoint_seconds = 0.001
    fit_stage(run)
    assert len(saves) <= 2


def test_loading_never_runs_code(tmp_path: Path) -> None:
    """A checkpoint is read with weights_only: a pickle in it that calls something is refused."""

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"step": 1, "x": Evil()}, tmp_path / "checkpoint-1.pt")
    digest = write_atomic(tmp_path / "checkpoint-1.pt", (tmp_path / "checkpoint-1.pt").read_bytes())
    (tmp_path / "checkpoint.json").write_text(f'{{"file": "checkpoint-1.pt", "sha256": "{digest}"}}')
    with pytest.raises(KdzooError, match=r"cannot be read.*--no-resume"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "owned").exists()


class Odd(Queue):
    """Something whose state cannot be read back without running code."""

    def state_dict(self) -> dict[str, object]:
        return {"path": Path("x")}


class KeepsOdd:
    @hookimpl
    def after_step(self, run: Run, batch: Batch) -> None:
        if "odd" not in run.kept:
            run.keep("odd", Odd())


def test_a_state_that_could_not_be_read_back_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    """Found only at the resume, it would cost the whole run."""
    run = toy.run(tmp_path, add=[KeepsOdd()])
    run.checkpoint_seconds = 0.0
    with pytest.raises(TypeError, match=r"run\.keep\('odd'\)"):
        fit_stage(run)
