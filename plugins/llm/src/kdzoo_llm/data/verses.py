"""Bible verses in English and Spanish (tasks on continuation and translation).

    continuations   The heavens declare the glory   ->  of God. The expanse shows his handiwork.
    translations    Jesus wept.                     ->  Y lloró Jesús.
    phrases         Your first father sinned,       ->  Tu primer padre pecó,

The English text is of today, with "Yahweh" and quotation marks; the Spanish one of 1909, with "Jehová", "á", "díjole".
Splits are blocks of five chapters; a verse nearly equal to one in another split is in one of them only
(tools/build_verses.py). Both texts are in the public domain; "World English Bible" is a trademark, and since this is a
changed part of that text, it must not be called by the name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kdzoo.errors import KdzooError, unknown
from kdzoo.shipped import Shipped
from kdzoo_llm.data import packed
from kdzoo_llm.examples import Example

FILES = Path(__file__).parent / "files"
SHIPPED = Shipped("the verse tasks", "build_verses.py", "kdzoo-llm")
SPLITS = ("train", "pool", "val", "test")
SHORTEST = 8  # words of a verse that is continued: four to read and four to write
CONTINUED = 130  # characters of the longest verse that is continued
NAMES = 0.4  # share of words with a capital from which on a verse counts as a list of names
TRANSLATED = 16  # words of the longest side of a verse that is translated
PHRASE = 3, 8  # words of an English phrase; a Spanish one may have one less
ORDER = ("test", "val", "train", "pool")  # who keeps a phrase that several splits have
STOP = re.compile(r"(?<=[,.;:!?])[”’)]*\s+|—")
MARKS = " “”‘’()¡¿"  # English verses quote and Spanish ones do not


@dataclass(frozen=True, slots=True)
class Verse:
    """One verse in both languages.

    Attributes:
        split: where it belongs.
        reference: "I Kings 3:5".
        english: its English text.
        spanish: its Spanish text.
    """

    split: str
    reference: str
    english: str
    spanish: str

    @property
    def words(self) -> int:
        """Words of the longer side."""
        return max(len(self.english.split()), len(self.spanish.split()))


@cache
def verses(split: str, folder: Path = FILES) -> tuple[Verse, ...]:
    """All verses of a split, in the order of the books; none has more than 40 words in either language.

    Args:
        split: "train", "pool" (whose answers methods may not use), "val" or "test".
        folder: where the files of tools/build_verses.py are.

    Raises:
        KdzooError: no such split; a file that is missing or not the one in the manifest.
    """
    if split not in SPLITS:
        raise unknown("split of the verses", split, SPLITS, f"They have {', '.join(SPLITS)}.")
    return tuple(verse for verse in _read(folder) if verse.split == split)


@cache
def _read(folder: Path) -> tuple[Verse, ...]:
    rows, _ = packed.lines(SHIPPED, folder, "verses-manifest.json", "verses.tsv.xz")
    return tuple(Verse(*row.split("\t")) for row in rows)


@cache
def continuations(split: str, longest: int = CONTINUED) -> list[Example]:
    """English verses cut in the middle: the first half of the words to read, the rest to write.

    Lists of names are left out: nobody could go on with them, and they take two to three tokens a word.

    Args:
        split: as in `verses`.
        longest: characters of a verse at most, 60 or more. With 130, prompt, answer and three special tokens are at
            most 64 tokens of `verses-en-2k` or `verses-en-1k`.

    Returns:
        Examples with ids "train/Psalms 19:1" and facts reference.

    Raises:
        KdzooError: no such split, or `longest` too small.
    """
    if longest < 60:
        raise KdzooError(
            f"verses of at most {longest} characters are to be continued; expected 60 or more: few verses of "
            f"{SHORTEST} words are as short, and too few examples would be left."
        )
    found = []
    for verse in verses(split):
        words = verse.english.split(" ")
        capitals = sum(word.lstrip("“‘(")[:1].isupper() for word in words)
        if len(words) >= SHORTEST and len(verse.english) <= longest and capitals < NAMES * len(words):
            half = len(words) // 2
            prompt, answer = " ".join(words[:half]), " ".join(words[half:])
            found.append(_example(verse, prompt, answer))
    return found


@cache
def translations(split: str, longest: int = TRANSLATED) -> list[Example]:
    """English verses to be said in Spanish.

    Args:
        split: as in `verses`.
        longest: words of either side at most, 3 to 40.

    Returns:
        Examples with ids "train/John 11:35" and facts reference.

    Raises:
        KdzooError: no such split, or no verse is as short.
    """
    found = [
        _example(verse, verse.english, verse.spanish) for verse in verses(split) if verse.words <= longest
    ]
    if not found:
        raise KdzooError(
            f"no verse of {split} has at most {longest} words; expected 3 to 40: nothing would be left to translate."
        )
    return found


@cache
def phrases(split: str) -> list[Example]:
    """Parts of verses between stops, to be said in Spanish: what a model of a few ten thousand parameters can learn.

    A verse is cut at its stops where both languages have as many, and each part's Spanish has between half as many
    words as its English less one, and 1.7 times as many and one more. Parts of `PHRASE` words stay, each English and
    each Spanish text once: in test, else val, else train, else pool.

    Args:
        split: as in `verses`.

    Returns:
        Examples with ids "train/Isaiah 43:27/1" (which part of the verse) and facts reference.

    Raises:
        KdzooError: no such split.
    """
    if split not in SPLITS:
        raise unknown("split of the verses", split, SPLITS, f"They have {', '.join(SPLITS)}.")
    return _phrases()[split]


@cache
def _phrases() -> dict[str, list[Example]]:
    seen: set[tuple[str, str]] = set()
    found: dict[str, list[Example]] = {}
    for split in ORDER:
        found[split] = []
        for verse in verses(split):
            for place, (english, spanish) in enumerate(_parts(verse), 1):
                texts = {("english", _plain(english)), ("spanish", _plain(spanish))}
                least, most = PHRASE
                fits = least <= len(english.split()) <= most and least - 1 <= len(spanish.split()) <= most
                if fits and not texts & seen:
                    seen |= texts
                    name = f"{split}/{verse.reference}/{place}"
                    found[split].append(Example(name, english, spanish, {"reference": verse.reference}))
    return found


def _parts(verse: Verse) -> list[tuple[str, str]]:
    """The verse's phrases side by side; none where the languages are cut differently."""
    english, spanish = (
        [part for piece in STOP.split(text) if (part := piece.strip(MARKS))]
        for text in (verse.english, verse.spanish)
    )
    lengths = [(len(a.split()), len(b.split())) for a, b in zip(english, spanish, strict=False)]
    if len(english) != len(spanish) or not all(0.5 * a - 1 <= b <= 1.7 * a + 1 for a, b in lengths):
        return []
    return list(zip(english, spanish, strict=True))


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _example(verse: Verse, prompt: str, answer: str) -> Example:
    return Example(f"{verse.split}/{verse.reference}", prompt, answer, {"reference": verse.reference})
