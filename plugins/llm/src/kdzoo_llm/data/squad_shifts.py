"""SquadShifts: questions on new passages of four kinds, in the files of its authors (Miller et al., ICML 2020)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from kdzoo.data_layout import layout_error
from kdzoo.errors import unknown
from kdzoo_llm.data.examples import Example

FILES = {
    "new-wiki": "new_wiki_v1.0.json",
    "nyt": "nyt_v1.0.json",
    "reddit": "reddit_v1.0.json",
    "amazon": "amazon_reviews_v1.0.json",
}


@dataclass(frozen=True, slots=True)
class _Info:
    title: str = "SquadShifts"
    layout: str = "squadshifts/\n" + "\n".join(f"  {name}" for name in FILES.values())
    folders: tuple[str, ...] = ("squadshifts", "datasets")
    home: str = "https://modestyachts.github.io/squadshifts-website/"
    terms: str = (
        "no licence is stated on its site; passages are of Wikipedia, the New York Times, Reddit and Amazon"
    )
    gigabytes: float = 0.07


INFO = _Info()


class Asked(NamedTuple):
    """The first questions of a subset, and what they are about.

    Attributes:
        passages: id of a passage (``nyt/17``) -> its text, in the order of the file.
        questions: rows whose id begins with the passage's and whose answer is the first reference.
        references: id of a row -> all its references.
    """

    passages: dict[str, str]
    questions: list[Example]
    references: dict[str, tuple[str, ...]]


@lru_cache(maxsize=4)
def first_questions(root: Path, subset: str, count: int) -> Asked:
    """The first `count` questions of a subset and the passages they refer to.

    Args:
        root: folder that holds ``squadshifts/``, or the files themselves.
        subset: a key of `FILES`.
        count: questions; all, where there are fewer.

    Raises:
        KdzooError: no such subset; the file is missing or no file of SQuAD's form.
    """
    if subset not in FILES:
        raise unknown("subset of SquadShifts", subset, FILES, f"It has {', '.join(FILES)}.")
    places = [*(root / folder / FILES[subset] for folder in INFO.folders), root / FILES[subset]]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise layout_error(INFO, root, f"{FILES[subset]} is missing")
    passages: dict[str, str] = {}
    questions: list[Example] = []
    references: dict[str, tuple[str, ...]] = {}
    try:
        content = json.loads(path.read_bytes())["data"]
        paragraphs = [paragraph for article in content for paragraph in article["paragraphs"]]
        for number, paragraph in enumerate(paragraphs):
            for asked in paragraph["qas"]:
                if len(questions) == count:
                    return Asked(passages, questions, references)
                passage = f"{subset}/{number}"
                passages[passage] = paragraph["context"].strip()
                row = f"{passage}/{asked['id']}"
                references[row] = tuple(dict.fromkeys(one["text"].strip() for one in asked["answers"]))
                questions.append(Example(row, asked["question"].strip(), references[row][0]))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise layout_error(
            INFO, root, f"{path.name} is not of SQuAD's form ({type(error).__name__}: {error})"
        ) from error
    return Asked(passages, questions, references)
