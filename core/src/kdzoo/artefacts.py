"""The store of artefacts: folders named by the key of the stage that made them.

An artefact is made in ``<key>.part/`` under a lock, gets ``artefact.json`` (hash of every file) as its last file and
is then renamed to ``<key>/``: a folder without ``.part`` is whole. Reading checks the hashes once a process.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
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
    except FileExistsError:
        raise  # what it means is for the caller to say
    except OSError as error:
        remedy = {
            errno.ENOSPC: "the disk is full: free some space, or set KDZOO_HOME to a folder on another disk",
            errno.EDQUOT: "the quota is used up: free some space, or set KDZOO_HOME to a folder elsewhere",
            errno.EROFS: "the file system is read-only: set KDZOO_HOME to a folder you may write to",
            errno.EACCES: "permission denied: set KDZOO_HOME to a folder you may write to",
            errno.EPERM: "not permitted: set KDZOO_HOME to a folder you may write to",
            errno.ENOTDIR: "a part of this path is a file: set KDZOO_HOME to a folder",
            errno.EFBIG: "the file would be larger than the system allows: raise the limit (ulimit -f)",
        }.get(error.errno or 0, f"{error.strerror or error}: set KDZOO_HOME to a folder you may write to")
        raise KdzooError(
            f"cannot write {error.filename or path}: {remedy}. What was finished is kept; run the same command again."
        ) from error


def write_atomic(path: Path, content: bytes) -> str:
    """Write a file so that it is either whole or absent; returns its sha256."""
    with disk_errors(path):
        make_folder(path.parent)
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
    """Artefacts by key, in ``<root>/artefacts``, or in another folder for artefacts of another kind."""

    def __init__(self, root: Path, kind: str = "artefacts") -> None:
        self.root = root / kind
        self._verified: set[str] = set()

    def folder(self, key: str) -> Path:
        return self.root / key

    def part(self, key: str) -> Path:
        return self.root / f"{key}.part"

    def manifest(self, key: str) -> dict[str, Any] | None:
        """The manifest of a whole and intact artefact, or None. A damaged one is set aside, to be made again."""
        path = self.folder(key) / MANIFEST
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            manifest: dict[str, Any] = json.loads(content)
            whole = manifest.pop("sha256") == manifest_hash(manifest)
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            self.set_aside(key, MANIFEST)
            return None
        if key not in self._verified:
            for name, expected in manifest["files"].items():
                file = self.folder(key) / name
                if not file.exists() or file_hash(file) != expected:
                    self.set_aside(key, name)
                    return None
            self._verified.add(key)
        return manifest

    def set_aside(self, key: str, name: str) -> None:
        """Rename a damaged artefact, of which the file `name` is wrong, and warn."""
        import warnings

        aside = self.root / f"{key}.damaged-{time.time_ns()}"
        with disk_errors(aside):
            os.replace(self.folder(key), aside)
        warnings.warn(
            f"artefact {key[:8]}: {name} does not have the hash it was written with; the folder is kept as "
            f"{aside.name} and it is made again",
            stacklevel=3,
        )

    def finish(self, key: str, manifest: dict[str, Any]) -> None:
        """Write the manifest into the part folder and give the folder its final name."""
        part = self.part(key)
        with disk_errors(part):
            names = sorted(p.relative_to(part).as_posix() for p in part.rglob("*") if p.is_file())
            # A manifest is there already if the last attempt was killed between writing and renaming.
            passing = [name for name in names if name == MANIFEST or name.startswith((".", "checkpoint"))]
            files = {name: file_hash(part / name) for name in names if name not in passing}
            manifest = {**manifest, "files": files}
            write_atomic(part / MANIFEST, dump_json({**manifest, "sha256": manifest_hash(manifest)}))
            for name in passing:  # only now: until the manifest is on the disk the checkpoint is all there is
                if name != MANIFEST:
                    (part / name).unlink()
            os.replace(part, self.folder(key))

    def discard(self, key: str, whole: bool = False) -> None:
        """Remove an unfinished artefact; with `whole`, a finished one too."""
        shutil.rmtree(self.part(key), ignore_errors=True)
        if whole:
            shutil.rmtree(self.folder(key), ignore_errors=True)
            self._verified.discard(key)

    def is_locked(self, key: str) -> bool:
        """Whether somebody who is alive holds the right to make `key`."""
        path = self.root / f"{key}.lock"
        return path.exists() and not _break_if_stale(path)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the right to make `key`; waits for a live owner, takes over from a dead one.

        The lock is a file made with O_EXCL that names host and process; its owner touches it every 10 seconds. It is
        stale once its process is gone (same host) or after 60 seconds without a touch.
        """
        path = self.root / f"{key}.lock"
        me = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}"
        with disk_errors(path):
            make_folder(self.root)
            while not _take(path, me):
                if not _break_if_stale(path):
                    time.sleep(0.2)
        done = threading.Event()
        heart = threading.Thread(target=_beat, args=(path, done), daemon=True)
        heart.start()
        try:
            yield
        finally:
            done.set()
            heart.join()
            # Whoever slept through 60 seconds may have lost the lock to another.
            if _owner(path) == me:
                path.unlink(missing_ok=True)


def manifest_hash(manifest: dict[str, Any]) -> str:
    """sha256 over the content of a manifest, whatever its layout."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def make_folder(path: Path) -> None:
    """Make a folder and its parents."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", str(path)) from error


def _take(path: Path, me: str) -> bool:
    """Make the lock file if there is none."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "w") as file:
            file.write(me)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _owner(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


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
    host, pid, *_ = [*owner.split(), "", ""]
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
