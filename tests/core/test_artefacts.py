"""The store: locks, hashes, full and read-only disks."""

from __future__ import annotations

import errno
import json
import multiprocessing as mp
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdzoo import artefacts
from kdzoo.artefacts import MANIFEST, Store, disk_errors, dump_json, key_of, write_atomic
from kdzoo.errors import KdzooError

KEY = "0" * 32


def make(store: Store, key: str = KEY, content: bytes = b"weights") -> Path:
    part = store.part(key)
    part.mkdir(parents=True)
    write_atomic(part / "student.safetensors", content)
    store.finish(key, {"name": "fit"})
    return store.folder(key)


def dead_pid() -> int:
    """The id of a process that has just ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def left_over(root: Path) -> list[str]:
    """Whatever a finished store must not hold."""
    return [path.name for path in root.rglob("*") if path.name.endswith((".part", ".tmp", ".lock", ".stale"))]


# --- keys and writing -------------------------------------------------------------------------------------------


def test_a_key_depends_on_content_and_not_on_the_order_of_writing_it() -> None:
    """Two keys for one content train twice; one key for two contents shares a wrong result."""
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 1.5})
    assert key_of({"a": [1, 2]}) != key_of({"a": [2, 1]})
    with pytest.raises(ValueError, match="Out of range float"):
        key_of({"lr": float("nan")})


def test_json_refuses_nan() -> None:
    """NaN is not JSON: other readers would fail on the file."""
    with pytest.raises(ValueError, match="Out of range float"):
        dump_json({"value": float("nan")})


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in the middle of writing must not leave half a file under the final name."""
    path = tmp_path / "record.json"
    write_atomic(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KdzooError, match="the disk is full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_a_disk_refuses_is_one_line_with_a_remedy(code: int, said: str) -> None:
    """A traceback tells a user nothing about a full disk."""
    with pytest.raises(KdzooError) as caught, disk_errors(Path("/store/x")):
        raise OSError(code, os.strerror(code), "/store/x/file")
    message = str(caught.value)
    assert "/store/x/file" in message
    assert said in message
    assert "KDZOO_HOME" in message
    assert "\n" not in message


@pytest.mark.parametrize("home", ["/proc/kdzoo", "/dev/null/kdzoo", "FILE"])
def test_a_home_that_cannot_be_written_is_a_message(home: str, tmp_path: Path) -> None:
    """A folder of the kernel, below a device, and a file where a folder is meant."""
    if home == "FILE":
        (tmp_path / "file").write_text("")
        home = str(tmp_path / "file")
    store = Store(Path(home))
    with pytest.raises(KdzooError, match="KDZOO_HOME"), store.lock(KEY):
        pass
    with pytest.raises(KdzooError, match="KDZOO_HOME"):
        write_atomic(Path(home) / "benches" / "record.json", b"")
    assert store.manifest(KEY) is None


def test_a_file_larger_than_allowed_is_a_message(tmp_path: Path) -> None:
    """The system's own refusal in the middle of writing, not a simulated one."""

    def limited(results: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_atomic(tmp_path / "weights", b"x" * 2000)
            results.send("written")
        except KdzooError as error:
            results.send(str(error))

    ours, theirs = mp.Pipe()
    child = mp.get_context("fork").Process(target=limited, args=(theirs,))
    child.start()
    said = ours.recv()
    child.join()
    assert "ulimit -f" in said
    assert list(tmp_path.iterdir()) == []


# --- integrity --------------------------------------------------------------------------------------------------


def test_a_whole_artefact_is_found_again(tmp_path: Path) -> None:
    """What was finished must not be made again."""
    make(Store(tmp_path))
    manifest = Store(tmp_path).manifest(KEY)
    assert manifest is not None
    assert manifest["name"] == "fit"
    assert set(manifest["files"]) == {"student.safetensors"}
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("damage", ["flip a bit", "cut", "remove", "edit the manifest", "break the manifest"])
def test_a_damaged_artefact_is_set_aside_with_a_warning(tmp_path: Path, damage: str) -> None:
    """A bit that flips in weights or in a measured number must not reach a table."""
    folder = make(Store(tmp_path))
    weights, manifest = folder / "student.safetensors", folder / MANIFEST
    if damage == "flip a bit":
        weights.write_bytes(b"weighty")
    elif damage == "cut":
        weights.write_bytes(b"weight")
    elif damage == "remove":
        weights.unlink()
    elif damage == "edit the manifest":
        manifest.write_text(manifest.read_text().replace('"fit"', '"fat"'))
    else:
        manifest.write_text("[]")
    store = Store(tmp_path)
    with pytest.warns(UserWarning, match=r"does not have the hash it was written with.*made again"):
        assert store.manifest(KEY) is None
    assert not folder.exists()
    assert [path.name.partition("-")[0] for path in store.root.iterdir()] == [f"{KEY}.damaged"]
    make(store)
    assert store.manifest(KEY) is not None


def test_the_manifest_outlives_its_layout(tmp_path: Path) -> None:
    """The hash is over the content: a file that was only indented otherwise is not damaged."""
    manifest = make(Store(tmp_path)) / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text())))
    assert Store(tmp_path).manifest(KEY) is not None


def test_an_attempt_killed_between_manifest_and_rename_is_finished_by_the_next(tmp_path: Path) -> None:
    """The old manifest must not enter the new one's hashes: the artefact would be damaged from birth."""
    store = Store(tmp_path)
    part = store.part(KEY)
    part.mkdir(parents=True)
    write_atomic(part / "student.safetensors", b"weights")
    write_atomic(part / MANIFEST, dump_json({"name": "an earlier attempt"}))
    write_atomic(part / "checkpoint.json", b"{}")
    store.finish(KEY, {"name": "fit"})
    manifest = Store(tmp_path).manifest(KEY)
    assert manifest is not None
    assert set(manifest["files"]) == {"student.safetensors"}
    assert sorted(path.name for path in store.folder(KEY).iterdir()) == [MANIFEST, "student.safetensors"]


def test_a_full_disk_at_the_end_keeps_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint may go only once the manifest is on the disk, or hours of training go with it."""
    store = Store(tmp_path)
    part = store.part(KEY)
    part.mkdir(parents=True)
    write_atomic(part / "checkpoint.json", b"{}")

    def full(path: Path, content: bytes) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(artefacts, "write_atomic", full)
    with pytest.raises(KdzooError, match="the disk is full"):
        store.finish(KEY, {})
    assert (part / "checkpoint.json").exists()
    assert not store.folder(KEY).exists()


# --- locks ------------------------------------------------------------------------------------------------------


def test_a_lock_is_gone_after_use_even_after_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.lock(KEY):
        assert (store.root / f"{KEY}.lock").exists()
    with pytest.raises(ZeroDivisionError), store.lock(KEY):
        1 / 0  # noqa: B018
    assert left_over(tmp_path) == []


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    """After SIGKILL nobody removes the lock; waiting for it would be waiting for ever."""
    store = Store(tmp_path)
    store.root.mkdir(parents=True)
    (store.root / f"{KEY}.lock").write_text(f"{socket.gethostname()} {dead_pid()} abc")
    began = time.monotonic()
    with store.lock(KEY):
        assert str(os.getpid()) in (store.root / f"{KEY}.lock").read_text()
    assert time.monotonic() - began < 5
    assert left_over(tmp_path) == []


def test_a_lock_nobody_touches_is_taken_over_after_a_minute(tmp_path: Path) -> None:
    """On another host the process cannot be looked up; its heartbeat can."""
    store = Store(tmp_path)
    store.root.mkdir(parents=True)
    lock = store.root / f"{KEY}.lock"
    lock.write_text("elsewhere 1 abc")
    os.utime(lock, (time.time() - 61,) * 2)
    with store.lock(KEY):
        assert "elsewhere" not in lock.read_text()


@pytest.mark.parametrize(
    "owner",
    ["elsewhere 1 abc", f"{socket.gethostname()} {os.getpid()} abc", ""],
    ids=["another host", "this process", "not yet named"],  # a process id in a name would split pytest-xdist
)
def test_a_living_lock_is_not_broken(tmp_path: Path, owner: str) -> None:
    """A young lock of another host, of a living process, and one whose owner has not written its name yet."""
    lock = tmp_path / f"{KEY}.lock"
    lock.write_text(owner)
    assert not artefacts._break_if_stale(lock)
    assert lock.read_text() == owner


def test_a_lock_lost_in_sleep_is_not_taken_from_its_new_owner(tmp_path: Path) -> None:
    """A process that slept through a minute must not remove the lock of whoever took over."""
    store = Store(tmp_path)
    lock = store.root / f"{KEY}.lock"
    with store.lock(KEY):
        lock.write_text("elsewhere 1 abc")
    assert lock.read_text() == "elsewhere 1 abc"


def test_a_lock_changed_hands_while_it_was_judged_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes find the same dead lock: the slower must not break the faster one's new lock."""
    lock = tmp_path / f"{KEY}.lock"
    lock.write_text(f"{socket.gethostname()} {dead_pid()} abc")
    alive, new = artefacts._alive, f"{socket.gethostname()} {os.getpid()} new"

    def slow(pid: int) -> bool:
        answer = alive(pid)
        lock.unlink()
        lock.write_text(new)
        return answer

    monkeypatch.setattr(artefacts, "_alive", slow)
    assert not artefacts._break_if_stale(lock)
    assert lock.read_text() == new
    assert left_over(tmp_path) == [lock.name]


def _build(root: Path, started: Any) -> None:
    """What two processes do at once: make the artefact if it is not there, and note that they made it."""
    started.wait()
    store = Store(root)
    with store.lock(KEY):
        if store.manifest(KEY) is None:
            make(store, content=str(os.getpid()).encode())
            with open(root / "made", "a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.1)


def test_several_processes_make_a_key_once(tmp_path: Path) -> None:
    """Two that write the same folder would mix their files; two that train would waste one training."""
    context = mp.get_context("fork")
    started = context.Event()
    children = [context.Process(target=_build, args=(tmp_path, started)) for _ in range(4)]
    for child in children:
        child.start()
    started.set()
    for child in children:
        child.join(timeout=30)
    assert [child.exitcode for child in children] == [0] * 4
    assert len((tmp_path / "made").read_text().splitlines()) == 1
    assert left_over(tmp_path) == []
    assert Store(tmp_path).manifest(KEY) is not None
