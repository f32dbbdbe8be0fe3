"""Verses of the World English Bible, and of the Reina-Valera of 1909 beside them: real text, public domain.

Rebuilt by tools/build_verses.py. All text is in lower case, without quotation marks; phrases have none.
A chapter belongs to one split, so that neighbouring verses never do to two.

* `plain`: English verses, for language modelling.
* `endings`: the first words of a verse, and the rest of it.
* `phrases`: Spanish and English pieces of verses, at most `WORDS` words each, for translation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from kdzoo.errors import unknown
from kdzoo.rng import mix
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.packed import text

SHARES = {"train": 0.6, "pool": 0.25, "val": 0.05, "test": 0.1}  # of the chapters
POETRY = ("Job", "Ps", "Prov", "Eccl", "Song", "Lam")
LONGEST = 40  # words of a verse
WORDS = 10  # of a phrase
QUOTES = re.compile(r"[“”‘\"«»()]|’(?!\w)|(?<!\w)’")
MARKS = re.compile(r"([,.;:!?¡¿—-])")
CUTS = re.compile(r"[,;:.!?]+")


class Verse(NamedTuple):
    """One verse: its place, and its two texts as they are printed."""

    book: str
    chapter: int
    number: int
    english: str
    spanish: str

    @property
    def id(self) -> str:
        return f"{self.book}.{self.chapter}.{self.number}"


@lru_cache(maxsize=1)
def whole() -> list[Verse]:
    """All 31,077 verses that both texts have, in the order of the books. Do not change the list."""
    rows = text("verses", "build_verses.py", "verses.txt.xz").splitlines()
    cells = (row.split("\t") for row in rows)
    return [Verse(book, int(chapter), int(number), *texts) for book, chapter, number, *texts in cells]


@lru_cache(maxsize=8)
def verses(split: str) -> list[Verse]:
    """The verses of a split: train, pool, val, test."""
    if split not in SHARES:
        raise unknown("split of the verses", split, SHARES, f"There are {', '.join(SHARES)}.")
    return [verse for verse in whole() if split_of(verse.book, verse.chapter) == split]


@lru_cache(maxsize=2000)
def split_of(book: str, chapter: int) -> str:
    """The split of a chapter, a function of its name."""
    place = mix("verses", book, chapter) % 10_000 / 10_000
    for split, share in SHARES.items():
        place -= share
        if place < 0:
            return split
    return "test"


@lru_cache(maxsize=16)
def plain(split: str, kind: str = "all") -> list[Example]:
    """English verses of at most `LONGEST` words: prompt empty, the answer is the verse.

    Args:
        split: train, pool, val, test.
        kind: "all", "poetry" (the books `POETRY`) or "prose" (the others).
    """
    wanted = {"all": (True, False), "poetry": (True,), "prose": (False,)}
    if kind not in wanted:
        raise unknown("kind of verses", kind, wanted, f"There are {', '.join(wanted)}.")
    rows = (
        Example(f"{split}/{verse.id}", "", simple(verse.english))
        for verse in verses(split)
        if (verse.book in POETRY) in wanted[kind]
    )
    return [row for row in rows if len(row.answer.split()) <= LONGEST]


@lru_cache(maxsize=16)
def endings(split: str) -> list[Example]:
    """The first 8 words of a verse, and up to 12 more of it: what follows is open, and a teacher knows how open."""
    found = []
    for row in plain(split):
        words = row.answer.split()
        if len(words) >= 14:
            found.append(Example(row.id, " ".join(words[:8]), " ".join(words[8:20])))
    return found


@lru_cache(maxsize=16)
def phrases(split: str) -> list[Example]:
    """Spanish phrases (prompts) and their English ones (answers), 2 to `WORDS` words each, every pair once.

    A verse is cut at its punctuation marks; where both texts fall into equally
    many pieces, these are taken for translations of each other. That is not always so.
    """
    found: dict[tuple[str, str], Example] = {}
    for verse in verses(split):
        pairs = zip(pieces(verse.spanish), pieces(verse.english), strict=False)
        if len(pieces(verse.spanish)) != len(pieces(verse.english)):
            continue
        for number, (spanish, english) in enumerate(pairs):
            lengths = (len(spanish.split()), len(english.split()))
            if min(lengths) >= 2 and max(lengths) <= WORDS:
                found.setdefault(
                    (spanish, english), Example(f"{split}/{verse.id}/{number}", spanish, english)
                )
    if split == "train":
        return list(found.values())
    learnt = {(row.prompt, row.answer) for row in phrases("train")}
    return [row for pair, row in found.items() if pair not in learnt]


def part(rows: list[Example], number: int) -> list[Example]:
    """So many of the rows, the first in an order that their names draw; 0 for all, in their own order."""
    if not number or number >= len(rows):
        return rows
    return sorted(rows, key=lambda row: mix("verses", "part", row.id))[:number]


def pieces(text: str) -> list[str]:
    """A verse cut at its marks."""
    parts = (apart(part) for part in CUTS.split(simple(text)))
    return [part for part in parts if part]


def simple(text: str) -> str:
    """Lower case, no quotation marks, single blanks."""
    return " ".join(QUOTES.sub(" ", text.lower()).split())


def apart(text: str) -> str:
    """Punctuation as words of their own; none at either end."""
    return " ".join(MARKS.sub(r" \1 ", text).split()).strip(" ,-—¡¿")


def texts() -> Iterable[str]:
    """The English training text, for tokenizers."""
    return (row.answer for row in plain("train"))
