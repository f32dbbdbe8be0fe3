"""The store of artefacts: folders named by the key of the stage that made them.

An artefact is made in ``<key>.part/`` under a lock, gets ``artefact.json`` (hash of every file) as its last file and
is then renamed to ``<key>/``: a folder without ``.part`` is whole. Reading checks the hashes once a process.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdzoo.errors import KdzooError

MANIFEST = "artefact.json"
STALE_SECONDS = 60.0
_HEARTBEAT_SECONDS = 10.0


def home() -> Path:
    """Where artefacts and benches are kept: ``$KDZOO_HOME``, else ``~/.cache/kdzoo``."""
    return Path(os.environ.get("KDZOO_HOME") or Path.home() / ".cache" / "kdzoo")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk may refuse into one line that says what to do."""
    try:
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "the disk is full: free some space, or set KDZOO_HOME to a folder on another disk",
            errno.EDQUOT: "the quota is used up: free some space, or set KDZOO_HOME to a folder elsewhere",
            errno.EROFS: "the file system is read-only: set KDZOO_HOME to a folder you may write to",
            errno.EACCES: "permission denied: set KDZOO_HOME to a folder you may write to",
            errno.EPERM: "not permitted: set KDZOO_HOME to a folder you may write to",
            errno.ENOTDIR: "a part of this path is a file: set KDZOO_HOME to a folder",
        }.get(error.errno or 0)
        if remedy is None:
            raise
        raise KdzooError(
            f"cannot write {error.filename or path}: {remedy}. What was finished is kept; run the same command again."
        ) from error


def write_atomic(path: Path, content: bytes) -> str:
    """Write a file so that it is either whole or absent; returns its sha256."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return hashlib.sha256(content).hexdigest()


def dump_json(value: Any) -> bytes:
    """Readable JSON; NaN is refused, since it is not JSON."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def file_hash(path: Path) -> str:
    """sha256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(content: Any) -> str:
    """The name of an artefact: sha256 over everything its result depends on, 32 hex digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """Artefacts by key, in ``<root>/artefacts``."""

    def __init__(self, root: Path) -> None:
        self.root = root / "artefacts"
        self._verified: set[str] = set()

    def folder(self, key: str) -> Path:
        return self.root / key

    def part(self, key: str) -> Path:
        return self.root / f"{key}.part"

    def manifest(self, key: str) -> dict[str, Any] | None:
        """The manifest of a whole and intact artefact, or None. A damaged one is set aside, to be made again."""
        path = self.folder(key) / MANIFEST
        try:
            manifest: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError):
            self._set_aside(key, MANIFEST)
            return None
        if key not in self._verified:
            for name, expected in manifest["files"].items():
                file = self.folder(key) / name
                if not file.exists() or file_hash(file) != expected:
                    self._set_aside(key, name)
                    return None
            self._verified.add(key)
        return manifest

    def _set_aside(self, key: str, name: str) -> None:
        import warnings

        aside = self.root / f"{key}.damaged-{time.time_ns()}"
        with disk_errors(aside):
            os.replace(self.folder(key), aside)
        warnings.warn(
            f"artefact {key[:8]}: {name} does not have the hash it was written with; the folder is kept as "
            f"{aside.name} and the stage is made again",
            stacklevel=3,
        )

    def finish(self, key: str, manifest: dict[str, Any]) -> None:
        """Write the manifest into the part folder and give the folder its final name."""
        part = self.part(key)
        names = sorted(p.relative_to(part).as_posix() for p in part.rglob("*") if p.is_file())
        files = {name: file_hash(part / name) for name in names if not name.startswith((".", "checkpoint"))}
        for name in names:
            if name not in files:
                (part / name).unlink()
        write_atomic(part / MANIFEST, dump_json({**manifest, "files": files}))
        with disk_errors(part):
            os.replace(part, self.folder(key))

    def discard(self, key: str, whole: bool = False) -> None:
        """Remove an unfinished artefact; with `whole`, a finished one too."""
        shutil.rmtree(self.part(key), ignore_errors=True)
        if whole:
            shutil.rmtree(self.folder(key), ignore_errors=True)
            self._verified.discard(key)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the right to make `key`; waits for a live owner, takes over from a dead one.

        The lock is a file made with O_EXCL that names host and process; its owner touches it every 10 seconds. It is
        stale once its process is gone (same host) or after 60 seconds without a touch.
        """
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / f"{key}.lock"
        me = f"{socket.gethostname()} {os.getpid()}"
        while True:
            try:
                with disk_errors(path):
                    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                break
            except FileExistsError:
                if not _break_if_stale(path):
                    time.sleep(0.2)
        with os.fdopen(handle, "w") as file:
            file.write(me)
        done = threading.Event()
        heart = threading.Thread(target=_beat, args=(path, done), daemon=True)
        heart.start()
        try:
            yield
        finally:
            done.set()
            heart.join()
            path.unlink(missing_ok=True)


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(_HEARTBEAT_SECONDS):
        try:
            os.utime(path)
        except OSError:
            return


def _break_if_stale(path: Path) -> bool:
    """Remove a lock whose owner is gone; True if it was removed.

    The lock is first renamed, then read again: if another process broke it and took it in between, the renamed file
    is the new owner's and is put back.
    """
    try:
        age = time.time() - path.stat().st_mtime
        owner = path.read_text()
    except FileNotFoundError:
        return True
    host, _, pid = owner.partition(" ")
    gone = host == socket.gethostname() and pid.isdigit() and not _alive(int(pid))
    if age <= STALE_SECONDS and not gone:
        return False
    aside = path.with_name(f".{path.name}.{os.getpid()}.stale")
    try:
        os.rename(path, aside)
        if aside.read_text() != owner:
            os.link(aside, path)
            return False
    except (FileNotFoundError, FileExistsError):
        return False
    finally:
        aside.unlink(missing_ok=True)
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
