"""What the word after ``kdzoo report`` may mean: a file, a folder, a key, or a method's newest bench."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdzoo.artefacts import MANIFEST, home
from kdzoo.errors import KdzooError, unknown

if TYPE_CHECKING:
    from kdzoo.records import Record

EXPECTED = (
    "Expected a record (a JSON file of a bench), a bench folder, a method (its newest bench is taken), "
    "or the folder or key of one stage's artefact."
)
_KEY = re.compile(r"[0-9a-f]{6,32}")


@dataclass(frozen=True, slots=True)
class Target:
    """What was found: the record of a bench, or the folder of one stage's artefact."""

    kind: Literal["bench", "stage"]
    path: Path
    out: Path
    """Where the page goes if nobody says otherwise."""


def find(word: str, root: Path | None = None) -> Target:
    """Read the word as a path first, then as a name within the home folder.

    Raises:
        KdzooError: nothing is there, or more than one thing; with what there is.
    """
    root = home() if root is None else root
    path = Path(word)
    at_path = _at(path) if path.exists() else None
    by_name = _named(word, root) if not {"/", "\\"} & set(word) else []
    if at_path is not None and by_name and not _same(at_path, by_name[0]):
        raise KdzooError(
            f"{word!r} is both {at_path.path} and {by_name[0].path}, so the page might be of the wrong one. "
            f"Write ./{word} for the first, or the whole path of the second."
        )
    if at_path is not None:
        return at_path
    if len(by_name) > 1:
        listed = ", ".join(
            target.path.parent.name if target.kind == "bench" else target.path.name for target in by_name
        )
        raise KdzooError(f"{word!r} fits {len(by_name)} results in {root}: {listed}. Write more of the name.")
    if by_name:
        return by_name[0]
    if path.exists():
        raise _no_result(path)
    raise _nothing(word, root)


def _same(one: Target, other: Target) -> bool:
    return one.path.resolve() == other.path.resolve()


def _at(path: Path) -> Target | None:
    """The result at a path, or None where the path holds none."""
    if path.is_dir():
        if (path / "record.json").is_file():
            return _bench(path / "record.json")
        return _stage(path) if (path / MANIFEST).is_file() else None
    if path.name == MANIFEST:
        return _stage(path.parent)
    return _bench(path)


def _bench(record: Path) -> Target:
    name = "report.html" if record.name == "record.json" else f"{record.stem}.html"
    return Target("bench", record, record.with_name(name))


def _stage(folder: Path) -> Target:
    """An artefact's folder is sealed by hashes, so its page lies outside the store."""
    folder = folder.resolve()
    beside = folder.parent.with_name("reports") if folder.parent.name == "artefacts" else folder.parent
    return Target("stage", folder, beside / f"{folder.name}.html")


def _named(word: str, root: Path) -> list[Target]:
    """Benches by folder name, stages by key, then a method's newest bench."""
    benches = sorted((root / "benches").glob("*/record.json"))
    exact = [path for path in benches if path.parent.name == word]
    if exact:
        return [_bench(exact[0])]
    newest = _newest(benches, word)
    if newest is not None:
        return [_bench(newest)]
    found = [_bench(path) for path in benches if len(word) > 3 and path.parent.name.startswith(word)]
    if _KEY.fullmatch(word):
        keys = sorted((root / "artefacts").glob(f"{word}*/{MANIFEST}"))
        found += [_stage(path.parent) for path in keys if "." not in path.parent.name]
    return found


def _newest(benches: list[Path], slug: str) -> Path | None:
    """The newest bench of a method; a smoke run only where there is nothing else, since its numbers mean nothing."""
    found = []
    for path in benches:
        if not path.parent.name.startswith(slug):
            continue
        try:
            record: Any = json.loads(path.read_bytes())
            if record["id"]["method"] == slug:
                found.append((not record["id"]["smoke"], str(record["made_at"]), path))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # what cannot be read is said when it is asked for by its own name
    return max(found)[2] if found else None


def _no_result(path: Path) -> KdzooError:
    if path.is_dir() and path.name.endswith(".part"):
        return KdzooError(
            f"{path} is a stage that was not finished: it has no results to show. Run its bench again; it goes on "
            "from its checkpoint."
        )
    return KdzooError(f"{path} holds neither record.json nor {MANIFEST}. {EXPECTED}")


def _nothing(word: str, root: Path) -> KdzooError:
    from kdzoo import catalog

    methods = catalog.load().methods
    if word in methods:
        return KdzooError(f"no bench of {word!r} in {root / 'benches'}. Make one: kdzoo bench {word}")
    if {"/", "\\"} & set(word) or Path(word).suffix == ".json":
        return KdzooError(f"{word}: no such file or folder, so there is nothing to show. {EXPECTED}")
    known = [*methods, *(path.parent.name for path in (root / "benches").glob("*/record.json"))]
    return unknown("result", word, known, EXPECTED)


def read_stage(folder: Path) -> dict[str, Any]:
    """The manifest of an artefact, whole; the store is left alone.

    Raises:
        KdzooError: it cannot be read, or was changed since it was written.
    """
    from kdzoo.artefacts import manifest_hash

    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        whole = manifest.pop("sha256") == manifest_hash(manifest)
    except OSError as error:
        raise KdzooError(f"cannot read {path}: {error.strerror}. {EXPECTED}") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise KdzooError(
            f"{path} is damaged: its content does not have the hash it was written with, so its numbers may be "
            "wrong. Run its bench again; the stage is then made anew."
        )
    return manifest


def root_of(record: Path) -> Path:
    """The home folder whose store a record's artefacts are in: its own, where it still lies in one."""
    folder = record.resolve().parent.parent
    return folder.parent if folder.name == "benches" else home()


def stored_bins(path: Path, record: Record) -> dict[str, dict[str, Any]]:
    """Bins of calibration that a record's own store has and the record has not."""
    missing = [row.items for row in record.runs if row.items and not row.reliability]
    return stored_reliability(root_of(path), missing)


def stored_reliability(root: Path, keys: list[str]) -> dict[str, dict[str, Any]]:
    """Bins of calibration kept in the artefacts of evaluations, by key; what is not there is left out."""
    found = {}
    for key in keys:
        folder = root / "artefacts" / key
        if _KEY.fullmatch(key) and (folder / MANIFEST).is_file():
            try:
                bins = read_stage(folder).get("facts", {}).get("reliability")
            except KdzooError:
                continue
            if bins:
                found[key] = bins
    return found
