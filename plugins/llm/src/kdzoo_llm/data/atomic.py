"""What people know and say of events: the references of ATOMIC 2020, and triples that people have judged.

The judgements are those of the ATOMIC-10X release: either its labelled corpus, or the whole corpus, of which a few
triples have a label. Labels are 2, 1, 0, -1, -2 and -9; above 0 is valid.

Source: peterwestai2/symbolic-knowledge-distillation@7fa8cbf README.md, purification_code/README.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec

from kdzoo.artefacts import file_hash
from kdzoo.data_layout import layout_error
from kdzoo.errors import KdzooError
from kdzoo_llm.data import paper_files
from kdzoo_llm.data.events import RELATIONS

LABELLED, CORPUS = "purification_dataset.jsonl", "ATOMIC10X.jsonl"
PARTS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class _Info:
    title: str = "Judged triples of ATOMIC-10X"
    layout: str = (
        f"symbolic-knowledge-distillation/\n  {LABELLED}    a line: "
        '{"head": ..., "relation": "xWant", "tail": ..., "split": "train", "valid": 1}\n'
        f"  {CORPUS}    instead of it: the whole corpus, of which judged lines have valid"
    )
    folders: tuple[str, ...] = ("symbolic-knowledge-distillation", "downloaded")
    home: str = "https://github.com/peterwestai2/symbolic-knowledge-distillation"
    terms: str = "no licence is stated in its repository"
    gigabytes: float = 0.01


INFO = _Info()


class Line(msgspec.Struct, frozen=True):
    """A line of either file, as far as it is read; what people have not judged has no `valid`, or null."""

    head: str
    relation: str
    tail: str
    split: str = ""
    valid: int | float | None = None


class Judgement(msgspec.Struct, frozen=True):
    """What people said of a triple: `part` is train, val or test; `valid` whether they take it for true."""

    head: str
    relation: str
    tail: str
    part: str
    valid: bool


def judgements_file(root: Path) -> Path:
    """Where the judged triples are: the labelled corpus, or else the whole one.

    Args:
        root: holds a folder of `INFO`, or the file itself.

    Raises:
        KdzooError: neither is there.
    """
    folders = [*(root / name for name in INFO.folders), root]
    for name in (LABELLED, CORPUS):
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    raise layout_error(
        INFO,
        root,
        f"neither {LABELLED} nor {CORPUS} is there, so nobody has said which triples are valid: the critic would have "
        "nothing to learn",
        f"get one of them from the release, or have triples judged by people and write {LABELLED} in this form; put "
        f"it into {INFO.folders[0]}/ beside the folder of ATOMIC 2020",
    )


def judgements(root: Path) -> list[Judgement]:
    """All triples that people have judged, in the order of the file. Do not change the list.

    Raises:
        KdzooError: no file, a line that is not of its form, or a part without a valid and an invalid triple.
    """
    return _judgements(judgements_file(root))


@lru_cache(maxsize=2)
def _judgements(path: Path) -> list[Judgement]:
    found = []
    for number, line in _lines(path):
        if line.valid is None or line.relation not in RELATIONS:
            continue
        if line.split not in PARTS:
            raise _broken(path, number, f"split is {line.split!r}, expected one of {', '.join(PARTS)}")
        found.append(
            Judgement(line.head.strip(), line.relation, line.tail.strip(), line.split, line.valid > 0)
        )
    for part in PARTS:
        kinds = {row.valid for row in found if row.part == part}
        if len(kinds) < 2:
            known = (
                "no judged triple" if not kinds else f"only {'valid' if True in kinds else 'invalid'} ones"
            )
            raise layout_error(
                INFO,
                path.parent,
                f"{path.name} has {known} in the split {part!r}, so a critic could neither be trained nor its cut-off "
                "be set",
            )
    return found


@lru_cache(maxsize=2)
def judgements_hash(root: Path) -> str:
    """sha256 of the file of `judgements_file`."""
    return file_hash(judgements_file(root))


def accepted(path: Path) -> dict[tuple[str, str, str], bool]:
    """Judgements of what students wrote, from a user's file of lines like those of the labelled corpus, without split.

    Returns:
        (head, relation, tail) -> whether people take it for true; lines without `valid` are left out.

    Raises:
        KdzooError: no such file, or a line that is not of its form.
    """
    if not path.is_file():
        raise KdzooError(
            f"eval.judgements names {str(path)!r}, and there is no such file: nobody has judged what was written. Take "
            "written.jsonl of the last stages, fill in valid, and give that file."
        )
    return {
        (line.head, line.relation, line.tail): line.valid > 0
        for _, line in _lines(path)
        if line.valid is not None
    }


def _lines(path: Path) -> Iterator[tuple[int, Line]]:
    decoder = msgspec.json.Decoder(Line)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, decoder.decode(line)
                except msgspec.DecodeError as error:
                    raise _broken(path, number, str(error)) from error


def _broken(path: Path, number: int, problem: str) -> KdzooError:
    return layout_error(
        INFO,
        path.parent,
        f"line {number:,} of {path.name} is not of its form ({problem}); it expects head, relation and tail as text, "
        "split as train, val or test, and valid as a number above 0 for valid triples",
        "get the file again, or put the line right",
    )


@lru_cache(maxsize=4)
def references(root: Path, split: str) -> dict[str, frozenset[str]]:
    """Prompt of a split's row -> all tails that people gave for it, in small letters.

    Args:
        root: as for `paper_files.load`.
        split: train, val or test.
    """
    found: dict[str, set[str]] = {}
    for row in paper_files.load("atomic-2020", split, root):
        found.setdefault(row.prompt, set()).add(row.answer.lower())
    return {prompt: frozenset(tails) for prompt, tails in found.items()}
