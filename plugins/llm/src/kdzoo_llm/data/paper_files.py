"""The papers' own text, from the files under ``--data-root``: which files are expected, and how they are read.

Every reader takes the data set's folder and a split, and gives `Example`s. A split that the data set has not got is
cut from the training rows by the names of the rows, so that it is the same in every run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdzoo.data_layout import layout_error
from kdzoo.errors import KdzooError
from kdzoo.rng import mix
from kdzoo_llm.data.events import RELATIONS
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.triple_prompts import prompt_of

Reader = Callable[[Path, str], Iterator[Example]]


@dataclass(frozen=True)
class DataSet:
    """A data set of the papers; the first fields are those of `kdzoo.data_layout.Layout`.

    Attributes:
        splits: core's name of a split -> the file's part of the name; a missing one is cut from train.
        cut: split -> share of the training rows that becomes it.
        read: (folder, part) -> examples.
    """

    title: str
    layout: str
    folders: tuple[str, ...]
    home: str
    terms: str
    gigabytes: float
    splits: dict[str, str]
    cut: dict[str, float]
    read: Reader


def load(name: str, split: str, root: Path) -> list[Example]:
    """A split of a data set.

    Args:
        name: a key of `DATASETS`.
        split: train, val or test.
        root: holds the data set's folder, or is it.

    Raises:
        KdzooError: files that are missing, or that cannot be read.
    """
    return _load(name, split, root)


@lru_cache(maxsize=6)
def _load(name: str, split: str, root: Path) -> list[Example]:
    info = DATASETS[name]
    folder = next((root / part for part in info.folders if (root / part).is_dir()), root)
    part = info.splits.get(split)
    source = info.splits["train"] if part is None else part
    try:
        rows = list(info.read(folder, source))
    except FileNotFoundError as error:
        raise layout_error(info, root, f"the file {Path(error.filename).name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise layout_error(
            info, root, f"the files of {source!r} cannot be read ({type(error).__name__}: {error})"
        ) from error
    rows = [row._replace(id=f"{source}/{row.id}") for row in rows]
    if split == "train" or part is None:
        rows = [row for row in rows if _side(info, row.id) == split]
    if not rows:
        raise layout_error(info, root, f"the split {split!r} has no row")
    return rows


def _side(info: DataSet, name: str) -> str:
    """Which split a training row belongs to."""
    place = mix("paper", info.title, name) % 10_000 / 10_000
    for split, share in info.cut.items():
        place -= share
        if place < 0:
            return split
    return "train"


# --- readers ------------------------------------------------------------------------------------------------------


def parallel(folder: Path, part: str, sides: tuple[str, str] = ("en", "de")) -> Iterator[Example]:
    """Two files of lines that are translations of each other."""
    source, target = (folder / f"{part}.{side}" for side in sides)
    with source.open(encoding="utf-8") as asked, target.open(encoding="utf-8") as told:
        for number, (left, right) in enumerate(zip(asked, told, strict=True)):
            if left.strip() and right.strip():
                yield Example(str(number), left.strip(), right.strip())


def squad(folder: Path, part: str) -> Iterator[Example]:
    """SQuAD 1.1: a passage and a question, the first answer; several files of one layout are one split."""
    for path in _several(folder, part):
        for article in json.loads(path.read_bytes())["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    prompt = f"{paragraph['context']}\n\nQuestion: {asked['question'].strip()}\nAnswer:"
                    yield Example(str(asked["id"]), prompt, asked["answers"][0]["text"])


def conversations(folder: Path, part: str) -> Iterator[Example]:
    """JSON lines with conversations: the first turn of a person, and the answer to it."""
    for path in _several(folder, part):
        for number, row in enumerate(_lines(path)):
            turns = [turn for turn in row["conversations"] if turn["from"] != "system"]
            if len(turns) >= 2 and turns[0]["from"] == "human":
                yield Example(f"{path.stem}/{number}", turns[0]["value"], turns[1]["value"])


def questions(folder: Path, part: str) -> Iterator[Example]:
    """JSON lines with a question and an answer, as GSM8K has them."""
    for number, row in enumerate(_lines(folder / f"{part}.jsonl")):
        yield Example(str(number), row["question"], row["answer"])


def triples(folder: Path, part: str) -> Iterator[Example]:
    """Tab-separated head, relation, tail, as ATOMIC 2020 has them: the relations of `events.RELATIONS`, without tails
    that say "none"."""
    path = folder / f"{part}.tsv"
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            cells = line.rstrip("\n").split("\t")
            if len(cells) != 3:
                raise ValueError(
                    f"line {number} of {path.name} has {len(cells)} cells, expected head, relation and tail"
                )
            head, relation, tail = (cell.strip() for cell in cells)
            if relation in RELATIONS and tail and tail != "none":
                yield Example(str(number), prompt_of(head, relation), tail)


def _several(folder: Path, part: str) -> list[Path]:
    found = sorted(folder.glob(part))
    if not found:
        raise FileNotFoundError(2, "no such file", part)
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


DATASETS: dict[str, DataSet] = {
    "wmt14-en-de": DataSet(
        title="WMT14 English-German",
        layout="wmt14-en-de/\n  train.en  train.de    about 4.5 million lines\n  valid.en  valid.de    newstest2013\n"
        "  test.en   test.de     newstest2014",
        folders=("wmt14-en-de",),
        home="https://www.statmt.org/wmt14/translation-task.html",
        terms="of each corpus, see the home page; for research",
        gigabytes=1.5,
        splits={"train": "train", "val": "valid", "test": "test"},
        cut={},
        read=parallel,
    ),
    "squad": DataSet(
        title="SQuAD 1.1",
        layout="squad/\n  train-v1.1.json\n  dev-v1.1.json",
        folders=("squad",),
        home="https://rajpurkar.github.io/SQuAD-explorer/",
        terms="CC BY-SA 4.0",
        gigabytes=0.04,
        splits={"train": "train-v1.1.json", "test": "dev-v1.1.json"},
        cut={"val": 0.02},
        read=squad,
    ),
    "infinity-instruct": DataSet(
        title="Infinity-Instruct 0625",
        layout='Infinity-Instruct/\n  *.jsonl    a line: {"conversations": [{"from": "human", "value": ...}, ...]}',
        folders=("Infinity-Instruct", "0625"),
        home="https://huggingface.co/datasets/BAAI/Infinity-Instruct",
        terms="CC BY-SA 4.0; access on request",
        gigabytes=2.0,
        splits={"train": "*.jsonl"},
        cut={"val": 0.01, "test": 0.01},
        read=conversations,
    ),
    "gsm8k": DataSet(
        title="GSM8K",
        layout='gsm8k/\n  train.jsonl    a line: {"question": ..., "answer": "... #### 18"}\n  test.jsonl',
        folders=("gsm8k",),
        home="https://github.com/openai/grade-school-math",
        terms="MIT",
        gigabytes=0.01,
        splits={"train": "train", "test": "test"},
        cut={"val": 0.1},
        read=questions,
    ),
    "atomic-2020": DataSet(
        title="ATOMIC 2020",
        layout="atomic2020_data-feb2021/\n  train.tsv    a line: head, relation and tail, with tabs between them\n"
        "  dev.tsv\n  test.tsv",
        folders=("atomic2020_data-feb2021", "atomic2020"),
        home="https://allenai.org/data/atomic-2020",
        terms="CC BY 4.0",
        gigabytes=0.1,
        splits={"train": "train", "val": "dev", "test": "test"},
        cut={},
        read=triples,
    ),
}


def missing_root(name: str) -> KdzooError:
    """The message for a run without ``--data-root``."""
    info = DATASETS[name]
    return KdzooError(
        f"{info.title} does not ship with this package: name the folder that holds {info.folders[0]}/ with "
        f"--data-root DIR. It is had at {info.home}; terms: {info.terms}."
    )
