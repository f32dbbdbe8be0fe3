"""All recordings below a home folder: made once, found again, verified, removed.

A recording is what a teacher said about each sample of a split, as a folder that knows what it is:
``<home>/signals/<key>/`` holds shards (``shard-00000.safetensors``, ...) and the manifest ``artefact.json``; the key
is the hash of the `Identity`. Made like every artefact (`kdzoo.artefacts`): in a part folder, under a lock, renamed
when it is whole; a maker that was killed is gone on from at the last whole shard.

What is checked when:
- when a recording is opened: the manifest's own hash, every field of the identity against what the caller needs, the
  size of every shard, and the hash of every shard if all together have at most `HASHED` bytes;
- by `verify` (``kdzoo cache verify``): the hash of every file, whatever its size.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from safetensors.torch import save

from kdzoo.artefacts import MANIFEST, Store, disk_errors, dump_json, file_hash, manifest_hash, write_atomic
from kdzoo.errors import KdzooError
from kdzoo.recording import ENDS, IDS, Columns, Identity, Recording, ragged_bytes, require

SCHEMA = 1
HASHED = 64 << 20  # bytes up to which opening hashes all shards: about a tenth of a second
SHARD_BYTES = 64 << 20  # a maker holds one shard in memory
_PROGRESS = "checkpoint-shards.json"  # the store drops what begins so when an artefact is finished


class Problem(NamedTuple):
    """What is wrong with a file of a recording."""

    file: str
    text: str


State = Literal["whole", "unfinished", "being made", "damaged"]


class Entry(NamedTuple):
    """A folder under signals/: a recording, or what is left of one.

    Attributes:
        state: "whole", "unfinished" (nobody is making it), "being made", "damaged" (set aside, or no valid manifest).
    """

    folder: Path
    state: State
    recording: Recording | None
    bytes: int
    used: float


class Recordings:
    """All recordings below a home folder."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root, "signals")

    def open(self, need: Identity) -> Recording | None:
        """The recording of exactly this identity, or None; a damaged one is set aside with a warning, to be made
        again.

        Raises:
            KdzooError: the folder holds something else than its name says.
        """
        folder = self.store.folder(need.key)
        if not folder.is_dir():
            return None
        manifest = _manifest(folder)
        problem = (
            Problem(MANIFEST, "is not what was written")
            if manifest is None
            else _quick_check(folder, manifest)
        )
        if problem:
            self.store.set_aside(need.key, problem.file)
            return None
        assert manifest is not None
        recording = Recording(folder, manifest)
        require(recording, need)
        with suppress(OSError):  # a cache that may only be read is still one
            os.utime(folder / MANIFEST)
        return recording

    def build(
        self,
        identity: Identity,
        ids: Sequence[str],
        make: Callable[[int, int], Columns],
        *,
        shard_rows: int,
        facts: Callable[[], dict[str, Any]] = dict,
        checked: Callable[[], None] = lambda: None,
    ) -> Recording:
        """Open the recording, or make it: several processes may ask at once, one of them makes it.

        Args:
            identity: what it depends on.
            ids: one id per row, no two alike.
            make: the columns of the rows from first to last (exclusive); called once a shard, in order, and not again
                for shards that an earlier maker had finished.
            shard_rows: rows a shard.
            facts: what else the manifest shall say; asked at the end.
            checked: called once before the first row is made; raises where there must be no recording.
        """
        if found := self.open(identity):
            return found
        _refuse_twice(ids)
        with self.store.lock(identity.key):
            if found := self.open(identity):
                return found
            checked()
            part = self.store.part(identity.key)
            with disk_errors(part):
                part.mkdir(parents=True, exist_ok=True)
            shards = _finished(part, shard_rows)
            seconds = sum(shard["seconds"] for shard in shards)
            for first in range(sum(shard["rows"] for shard in shards), len(ids), shard_rows):
                began = time.perf_counter()
                last = min(first + shard_rows, len(ids))
                shards.append(_write(part, len(shards), ids[first:last], make(first, last)))
                shards[-1]["seconds"] = time.perf_counter() - began
                seconds += shards[-1]["seconds"]
                write_atomic(part / _PROGRESS, dump_json(shards))
            manifest = {
                "schema": SCHEMA,
                "identity": msgspec.to_builtins(identity),
                "count": len(ids),
                "shards": shards,
                "facts": facts(),
                "seconds": seconds,
                "versions": {
                    "kdzoo": metadata.version("kdzoo"),
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                },
                "made_at": time.time(),
            }
            self.store.finish(identity.key, manifest)
        made = self.open(identity)
        assert made is not None
        return made

    def entries(self) -> list[Entry]:
        """Everything that lies under signals/, in the order of its names."""
        found: list[Entry] = []
        try:
            folders = sorted(path for path in self.store.root.iterdir() if path.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return found
        for folder in folders:
            size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
            manifest = _manifest(folder) if "." not in folder.name else None
            if manifest is not None:
                used = (folder / MANIFEST).stat().st_mtime
                found.append(Entry(folder, "whole", Recording(folder, manifest), size, used))
                continue
            state: State = "damaged"
            if folder.name.endswith(".part"):
                state = "being made" if self.store.is_locked(folder.name.partition(".")[0]) else "unfinished"
            found.append(Entry(folder, state, None, size, folder.stat().st_mtime))
        return found

    def verify(self, entry: Entry) -> list[Problem]:
        """Hash every file of a recording; what is wrong, by file."""
        if entry.recording is None:
            if entry.state == "damaged":
                return [Problem(MANIFEST, "is missing or is not what was written")]
            return []
        problems = []
        for name, expected in entry.recording.manifest["files"].items():
            try:
                found = file_hash(entry.folder / name)
            except OSError as error:
                problems.append(Problem(name, f"cannot be read: {error.strerror}"))
                continue
            if found != expected:
                problems.append(Problem(name, f"sha256 {found[:16]}... found, {expected[:16]}... written"))
        return problems

    def remove(self, entry: Entry) -> None:
        """Delete a folder; a recording goes under its lock, and is first renamed, so that nobody opens half of it."""
        with self.store.lock(entry.folder.name.partition(".")[0]), disk_errors(entry.folder):
            gone = entry.folder.with_name(f"{entry.folder.name.partition('.')[0]}.damaged-{time.time_ns()}")
            os.replace(entry.folder, gone)
            shutil.rmtree(gone)


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest if it is what was written, else None."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        if manifest.pop("sha256") != manifest_hash(manifest) or manifest["schema"] != SCHEMA:
            return None
        msgspec.convert(manifest["identity"], Identity)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return manifest


def _quick_check(folder: Path, manifest: dict[str, Any]) -> Problem | None:
    """Sizes, and hashes where they are cheap."""
    shards = manifest["shards"]
    cheap = sum(shard["bytes"] for shard in shards) <= HASHED
    for shard in shards:
        try:
            size = (folder / shard["file"]).stat().st_size
            whole = size == shard["bytes"] and (
                not cheap or file_hash(folder / shard["file"]) == shard["sha256"]
            )
        except OSError:
            whole = False
        if not whole:
            return Problem(shard["file"], "is missing, cut or changed")
    return None


def _finished(part: Path, shard_rows: int) -> list[dict[str, Any]]:
    """The shards that an earlier maker left whole, up to the first that is not."""
    try:
        said = json.loads((part / _PROGRESS).read_bytes())
    except (OSError, ValueError):
        return []
    good: list[dict[str, Any]] = []
    for shard in said:
        path = part / shard["file"]
        if shard["rows"] != shard_rows or not path.is_file() or file_hash(path) != shard["sha256"]:
            break
        good.append(shard)
    return good


def _write(part: Path, number: int, ids: Sequence[str], columns: Columns) -> dict[str, Any]:
    rows = len(ids)
    for name, value in columns.items():
        if name + ENDS not in columns and len(value) != rows:
            raise ValueError(
                f"column {name!r} has {len(value)} rows, expected {rows}: answers would belong to other samples"
            )
    content = save(
        {
            **{n: v.contiguous() for n, v in columns.items()},
            **ragged_bytes(IDS, [name.encode() for name in ids]),
        }
    )
    file = f"shard-{number:05d}.safetensors"
    return {"file": file, "rows": rows, "bytes": len(content), "sha256": write_atomic(part / file, content)}


def _refuse_twice(ids: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if (before := first.setdefault(name, row)) != row:
            raise KdzooError(
                f"the sample id {name!r} is given twice, at rows {before} and {row}: a recording could not say which "
                "of the two answers is meant. Give every sample an id of its own."
            )
    if not first:
        raise KdzooError(
            "there are no samples to record: the split is empty. Check the task's data settings."
        )
