"""Recordings on disk: what is written is what is read, by whoever, whenever, or it is refused."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from kdzoo import recordings as module
from kdzoo.artefacts import MANIFEST, dump_json, manifest_hash
from kdzoo.errors import KdzooError
from kdzoo.recording import Columns, Identity, Recording, hash_ids
from kdzoo.recordings import Recordings
from kdzoo.texts_and_scores import Candidate, Generation, Scores, Texts, record_scores, record_texts

IDS = [f"pool/{k}" for k in range(10)]
VALUES = torch.arange(30, dtype=torch.float32).view(10, 3)


def identity(**changes: Any) -> Identity:
    plain = {
        "kind": "logits",
        "part": "logits",
        "role": "teacher",
        "teacher": "t" * 64,
        "task": "toy",
        "split": "pool",
        "data": "d" * 64,
        "ids": hash_ids(IDS),
        "view": "image",
        "dtype": "float32",
    }
    return Identity(**{**plain, **changes})


def rows(first: int, last: int) -> Columns:
    return {"values": VALUES[first:last]}


def build(
    root: Path, make: Callable[[int, int], Columns] = rows, shard_rows: int = 4, **changes: Any
) -> Recording:
    return Recordings(root).build(identity(**changes), IDS, make, shard_rows=shard_rows)


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def never(first: int, last: int) -> Columns:
    raise AssertionError("the recording is whole, nothing is to be made")


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_rows", [3, 4, 10, 64])
def test_rows_come_back_in_the_order_asked_for(tmp_path: Path, shard_rows: int) -> None:
    """A row number counted within the wrong shard would teach another sample's answer."""
    recording = build(tmp_path, shard_rows=shard_rows)
    at = torch.tensor([9, 0, 3, 4, 4, 8, 2])
    assert torch.equal(recording.take(at), VALUES[at])
    assert torch.equal(recording.take(recording.rows_of(["pool/7", "pool/0"])), VALUES[[7, 0]])
    assert (len(recording), recording.ids) == (10, IDS)
    assert len(recording.manifest["shards"]) == -(-10 // shard_rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int32])
def test_every_dtype_comes_back_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    """A detour over float32 would round doubles and lose what bfloat16 is."""
    values = (VALUES / 7 if dtype.is_floating_point else VALUES).to(dtype)
    found = build(tmp_path, lambda first, last: {"values": values[first:last]}).take(torch.arange(10))
    assert found.dtype == dtype
    assert torch.equal(found, values)


def test_what_nobody_asks_for_is_not_read(tmp_path: Path) -> None:
    """A cache that is read into memory as a whole needs more of it than the teacher."""
    ids, wide = [str(k) for k in range(2000)], 5000
    big = Recordings(tmp_path).build(
        identity(ids=hash_ids(ids)),
        ids,
        lambda first, last: {"values": torch.zeros(last - first, wide)},
        shard_rows=2000,
    )
    before = private_bytes()
    assert big.take(torch.tensor([0, 1999, 7])).shape == (3, wide)
    assert private_bytes() - before < 8e6 < 4 * wide * len(ids)


def private_bytes() -> int:
    """Memory of this process that is no page of a file (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    pytest.skip("needs Linux")


def test_what_is_taken_may_be_written_to(tmp_path: Path) -> None:
    """A loss that works in place must not change the file under everybody else."""
    recording = build(tmp_path)
    recording.take(torch.arange(4)).fill_(-1)
    assert torch.equal(recording.take(torch.arange(10)), VALUES)
    assert not Recordings(tmp_path).verify(Recordings(tmp_path).entries()[0])


def test_an_unknown_id_is_named(tmp_path: Path) -> None:
    """Silence would put row 0 in its place."""
    with pytest.raises(KdzooError, match=r"nothing about the sample 'pool/10'"):
        build(tmp_path).rows_of(["pool/3", "pool/10"])


def test_an_id_given_twice_is_refused_with_both_rows(tmp_path: Path) -> None:
    """The second answer would hide the first."""
    with pytest.raises(KdzooError, match=r"'pool/2' is given twice, at rows 2 and 9"):
        Recordings(tmp_path).build(identity(), [*IDS[:9], "pool/2"], rows, shard_rows=4)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    """A recording of nothing would be found by the next run and serve it nothing."""
    with pytest.raises(KdzooError, match="no samples to record"):
        Recordings(tmp_path).build(identity(), [], rows, shard_rows=4)


def test_a_column_of_another_length_is_refused(tmp_path: Path) -> None:
    """Every row after the gap would belong to another sample."""
    with pytest.raises(ValueError, match="3 rows, expected 4"):
        build(tmp_path, lambda first, last: {"values": VALUES[first + 1 : last]})


# --- what a recording is of ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": "u" * 64}, {"data": "e" * 64}, {"split": "train"}, {"view": "crop"}, {"part": "embedding"},
        {"tokenizer": "q"}, {"template": "r"}, {"dtype": "bfloat16"}, {"k": 3}, {"deterministic": False},
        {"task_version": 2}, {"answers": "s"}, {"device": "cuda"}, {"threads": 2}, {"role": "mentor"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_mismatch_is_refused_with_both_values(tmp_path: Path, change: dict[str, Any]) -> None:
    """Another teacher's answers, or those about other samples, train without any sign that something is wrong."""
    build(tmp_path)
    need = identity(**change)
    shutil.copytree(tmp_path / "signals" / identity().key, tmp_path / "signals" / need.key)
    name, value = next(iter(change.items()))
    with pytest.raises(KdzooError) as caught:
        Recordings(tmp_path).open(need)
    said = getattr(identity(), name)
    assert f"{name}: recorded {said!r}, needed {value!r}" in str(caught.value)


def test_every_field_is_part_of_the_key() -> None:
    """A field outside the key would let two recordings share a folder."""
    other = {str: "x", int: 7, bool: False, type(None): "x"}
    for name, value in msgspec.to_builtins(identity()).items():
        new = "text" if name == "kind" else other[type(value)]
        assert identity(**{name: new}).key != identity().key, name


def test_a_second_process_finds_it(tmp_path: Path) -> None:
    """Recording twice what is there costs the hours that the cache is to save."""
    first = build(tmp_path)
    assert build(tmp_path, never).key == first.key


# --- damage -------------------------------------------------------------------------------------------------------


def damaged(root: Path) -> list[str]:
    return [path.name for path in (root / "signals").iterdir() if "damaged" in path.name]


def test_a_flipped_byte_is_found_when_a_small_recording_is_opened(tmp_path: Path) -> None:
    """One wrong bit of an exponent is a teacher with other opinions."""
    recording = build(tmp_path)
    flip(recording.folder / "shard-00001.safetensors")
    with pytest.warns(UserWarning, match=r"shard-00001.safetensors does not have the hash"):
        again = build(tmp_path)
    assert torch.equal(again.take(torch.arange(10)), VALUES)
    assert len(damaged(tmp_path)) == 1


def test_a_flipped_byte_of_a_large_recording_is_found_by_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening terabytes cannot hash them; verify does, and names the file."""
    monkeypatch.setattr(module, "HASHED", 0)
    recording = build(tmp_path)
    flip(recording.folder / "shard-00002.safetensors")
    found = Recordings(tmp_path)
    assert found.open(identity()) is not None
    ((file, text),) = found.verify(found.entries()[0])
    assert file == "shard-00002.safetensors"
    assert "sha256" in text


def test_a_cut_or_missing_shard_is_found_at_once_whatever_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that was cut short would end in a crash in the middle of an epoch."""
    monkeypatch.setattr(module, "HASHED", 0)
    path = build(tmp_path).folder / "shard-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="shard-00002"):
        path = build(tmp_path).folder / "shard-00000.safetensors"
    path.unlink()
    with pytest.warns(UserWarning, match="shard-00000"):
        assert torch.equal(build(tmp_path).take(torch.arange(10)), VALUES)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"not json", None])
def test_a_manifest_that_was_not_written_so_is_damage(tmp_path: Path, content: bytes | None) -> None:
    """Somebody edits "k" by hand; or the disk gives back zeros."""
    folder = build(tmp_path).folder
    manifest = json.loads((folder / MANIFEST).read_bytes())
    if content is None:
        manifest["identity"]["teacher"] = "v" * 64
        content = dump_json(manifest)
    (folder / MANIFEST).write_bytes(content)
    with pytest.warns(UserWarning, match=MANIFEST):
        assert Recordings(tmp_path).open(identity()) is None


def test_a_recording_of_another_schema_is_made_again(tmp_path: Path) -> None:
    """Columns of a later version may mean something else."""
    folder = build(tmp_path).folder
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest["sha256"]
    manifest["schema"] = 99
    (folder / MANIFEST).write_bytes(dump_json({**manifest, "sha256": manifest_hash(manifest)}))
    with pytest.warns(UserWarning, match=MANIFEST):
        assert build(tmp_path).manifest["schema"] == module.SCHEMA


# --- making -------------------------------------------------------------------------------------------------------


def _together(root: Path, started: Any) -> None:
    def slow(first: int, last: int) -> Columns:
        with open(root / "made", "a") as file:
            file.write(f"{first}\n")
        time.sleep(0.05)
        return rows(first, last)

    started.wait()
    assert torch.equal(build(root, slow).take(torch.arange(10)), VALUES)


def test_several_processes_make_it_once(tmp_path: Path) -> None:
    """All workers of a bench reach their first step at the same time."""
    context = mp.get_context("fork")
    started = context.Event()
    children = [context.Process(target=_together, args=(tmp_path, started)) for _ in range(4)]
    for child in children:
        child.start()
    started.set()
    for child in children:
        child.join(timeout=30)
    assert [child.exitcode for child in children] == [0] * 4
    assert (tmp_path / "made").read_text().split() == ["0", "4", "8"]
    assert [path.name for path in (tmp_path / "signals").iterdir()] == [identity().key]


def _killed(root: Path) -> None:
    def make(first: int, last: int) -> Columns:
        if first == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return rows(first, last)

    build(root, make)


@pytest.mark.parametrize("spoil", ["", "shard-00001.safetensors", "checkpoint-shards.json"])
def test_after_kill_9_only_what_is_missing_is_made(tmp_path: Path, spoil: str) -> None:
    """Begin again after a night's recording? Only what is not provably whole is made twice."""
    child = mp.get_context("fork").Process(target=_killed, args=(tmp_path / "cut",))
    child.start()
    child.join(timeout=30)
    assert child.exitcode == -signal.SIGKILL
    part = tmp_path / "cut" / "signals" / f"{identity().key}.part"
    if spoil:
        flip(part / spoil, 0)
    made: list[int] = []

    def make(first: int, last: int) -> Columns:
        made.append(first)
        return rows(first, last)

    went_on, whole = build(tmp_path / "cut", make), build(tmp_path / "whole")
    assert made == {"": [8], "shard-00001.safetensors": [4, 8]}.get(spoil, [0, 4, 8])
    hashes = [[shard["sha256"] for shard in one.manifest["shards"]] for one in (went_on, whole)]
    assert hashes[0] == hashes[1]
    assert torch.equal(went_on.take(torch.arange(10)), VALUES)
    assert sorted(path.name for path in went_on.folder.iterdir()) == sorted(
        path.name for path in whole.folder.iterdir()
    )


def test_a_failing_teacher_leaves_the_lock_to_the_next(tmp_path: Path) -> None:
    """A lock that stays behind would stop everybody for a minute."""

    def fails(first: int, last: int) -> Columns:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        build(tmp_path, fails)
    began = time.monotonic()
    build(tmp_path)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("home", ["/proc/kdzoo", "FILE"])
def test_a_home_that_cannot_be_written_is_a_message(home: str, tmp_path: Path) -> None:
    """A traceback about mkdir does not say what to do."""
    if home == "FILE":
        (tmp_path / "file").write_text("")
        home = str(tmp_path / "file")
    with pytest.raises(KdzooError, match="KDZOO_HOME"):
        build(Path(home))
    assert Recordings(Path(home)).entries() == []


def test_a_home_that_may_only_be_read_serves_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared cache on a read-only disk: no lock is needed to read, and the time of use cannot be noted."""
    build(tmp_path)

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(os, "open", refused)
    assert len(build(tmp_path, never)) == 10


# --- looking after them -------------------------------------------------------------------------------------------


def test_entries_say_what_lies_there(tmp_path: Path) -> None:
    """What is left of killed makers takes room, and what is being made must not be removed under its maker."""
    found = Recordings(tmp_path)
    whole = build(tmp_path)
    for name in ("a" * 32, "b" * 32):
        (found.store.root / f"{name}.part").mkdir()
    (found.store.root / ("c" * 32)).mkdir()
    with found.store.lock("a" * 32):
        states = {entry.folder.name[:1]: entry.state for entry in found.entries() if entry.recording is None}
        (entry,) = [entry for entry in found.entries() if entry.recording]
    assert states == {"a": "being made", "b": "unfinished", "c": "damaged"}
    assert entry.folder == whole.folder
    assert entry.bytes == sum(path.stat().st_size for path in whole.folder.iterdir())


def test_a_removed_recording_is_gone_and_can_be_made_again(tmp_path: Path) -> None:
    """Half of a removed folder would be a damaged recording to the next who opens it."""
    found = Recordings(tmp_path)
    build(tmp_path)
    found.remove(found.entries()[0])
    assert list(found.store.root.iterdir()) == []
    assert len(build(tmp_path)) == 10


# --- texts and scores ---------------------------------------------------------------------------------------------

WRITTEN = {
    "q1": [Generation("ja", [3, 1], "stop"), Generation("")],
    "q2": [],
    "ü/3": [Generation("naïve\n\x00 ✓", None, "length")],
}


def texts(root: Path, answers: dict[str, Any], **changes: Any) -> Texts:
    return record_texts(
        Recordings(root),
        identity(kind="text", part="rationale", ids=hash_ids(list(answers)), dtype="utf-8", **changes),
        list(answers),
        lambda ids: [answers[name] for name in ids],
        shard_rows=2,
    )


def test_texts_come_back_by_item(tmp_path: Path) -> None:
    """Several texts an item, none, empty ones, and letters that are no ASCII."""
    said = texts(tmp_path, WRITTEN, tokenizer="h" * 64, template="i" * 64)
    assert {name: said[name] for name in WRITTEN} == WRITTEN
    assert len(said) == 3
    assert said.recording.identity.tokenizer == "h" * 64
    with pytest.raises(KdzooError, match="'q9'"):
        said["q9"]


def test_paid_answers_are_not_asked_for_twice(tmp_path: Path) -> None:
    """Each answer of a hosted model costs money: after a crash only the shard in hand is asked again."""
    asked: list[str] = []

    def generate(ids: Any) -> list[list[Generation]]:
        asked.extend(ids)
        if asked == ["q1", "q2", "q3"]:
            raise ConnectionError("the line is dead")
        return [[Generation(name.upper())] for name in ids]

    ids = ["q1", "q2", "q3"]
    need = identity(kind="text", part="answer", ids=hash_ids(ids), dtype="utf-8")
    with pytest.raises(ConnectionError):
        record_texts(Recordings(tmp_path), need, ids, generate, shard_rows=2)
    said = record_texts(Recordings(tmp_path), need, ids, generate, shard_rows=2)
    assert asked == ["q1", "q2", "q3", "q3"]
    assert [said[name][0].text for name in ids] == ["Q1", "Q2", "Q3"]


def test_a_teacher_that_skips_an_item_is_refused(tmp_path: Path) -> None:
    """All answers after the gap would belong to other questions."""
    need = identity(kind="text", part="answer", dtype="utf-8")
    with pytest.raises(KdzooError, match="gave 1 lists of generations for 10 items"):
        record_texts(Recordings(tmp_path), need, IDS, lambda ids: [[Generation("x")]])


def test_scores_of_items(tmp_path: Path) -> None:
    """One number each, in the order asked for."""
    need = identity(kind="scores", part="item")
    scores = record_scores(
        Recordings(tmp_path), need, IDS, lambda ids: [float(name[5:]) / 3 for name in ids], shard_rows=4
    )
    found = scores.items(["pool/9", "pool/0", "pool/4"])
    assert torch.equal(found, torch.tensor([3.0, 0.0, 4 / 3]))
    with pytest.raises(KdzooError, match="one per item"):
        scores.candidates("pool/9")


def test_scores_of_pairs(tmp_path: Path) -> None:
    """Unequal numbers of candidates, in the order of the ranking, one query without any."""
    ranked = {"q1": {"d9": 2.5, "d1": -1.0}, "q2": {}, "q3": {"d1": 0.5}}
    need = identity(kind="scores", part="pair", ids=hash_ids(list(ranked)))
    scores = record_scores(
        Recordings(tmp_path), need, list(ranked), lambda ids: [ranked[name] for name in ids], shard_rows=2
    )
    assert scores.candidates("q1") == [Candidate("d9", 2.5), Candidate("d1", -1.0)]
    assert scores.candidates("q2") == []
    assert scores.candidates("q3") == [Candidate("d1", 0.5)]
    with pytest.raises(KdzooError, match="of pairs"):
        scores.items(["q1"])


def test_a_recording_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Logits read as texts would be bytes that happen to decode."""
    recording = build(tmp_path)
    for reader in (Texts, Scores):
        with pytest.raises(KdzooError, match="kind 'logits' was given"):
            reader(recording)
    with pytest.raises(KdzooError, match="part is 'logits', expected 'item' or 'pair'"):
        record_scores(Recordings(tmp_path), identity(kind="scores"), IDS, lambda ids: [0.0] * len(ids))


def test_texts_are_verified_like_all_others(tmp_path: Path) -> None:
    """A letter that changes in a rationale is as wrong as a bit in a logit."""
    flip(texts(tmp_path, WRITTEN).recording.folder / "shard-00000.safetensors")
    found = Recordings(tmp_path)
    assert [problem.file for problem in found.verify(found.entries()[0])] == ["shard-00000.safetensors"]


def test_shards_are_plain_safetensors(tmp_path: Path) -> None:
    """Whoever has no kdzoo must be able to read them, and nothing in them may be code."""
    from safetensors.torch import load_file

    columns = load_file(build(tmp_path).folder / "shard-00000.safetensors")
    assert set(columns) == {"values", "ids", "ids.ends"}
    value: Tensor = columns["values"]
    assert torch.equal(value, VALUES[:4])
