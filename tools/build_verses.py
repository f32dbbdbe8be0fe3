"""Rebuild the aligned English and Spanish Bible verses that kdzoo_llm ships (its verse tasks and tokenizers).

    apt-get download sword-text-web sword-text-sparv
    pip install pysword==0.2.8 scipy
    python tools/build_verses.py FOLDER

FOLDER holds the two Debian packages. Written to kdzoo_llm/data/files: `verses.tsv.xz` (split, reference, English,
Spanish; one verse a line) and `verses-manifest.json` (sources, rules, counts, sha256). The same packages and liblzma
give the same bytes; another liblzma may give other bytes of the same lines, whose sha256 the manifest holds too.

Text: footnotes, speakers, the Hebrew letters over the parts of Psalm 119 and markup go, white space is one blank, and
the capitals that open a Spanish chapter ("EN el principio") become small. Nothing else is changed.

Alignment: the two texts count verses alike in most chapters, not in all. A pair (same book, chapter and verse) stays
where
  - both sides have text, of at most `LONGEST` words each and of like length (`RATIO`);
  - its words belong together more (`association`) than the English verse's with each of the Spanish verses one and two
    places off, and at least `FIT`.

Splits: each book's chapters are cut into blocks of `BLOCK`; blocks go round to the splits by `ROUND`, through all books
without a new start. Verses repeat each other across books (Kings and Chronicles, the gospels, the psalms): test stays
whole; val loses what is nearly equal to a verse of test, train to one of test or val, pool to one of the other three.
"Nearly equal": at least `SAME` of the word pairs in common (Dice's coefficient) in English or in Spanish. Inside a
split, an English or Spanish text that occurs twice stays once.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import lzma
import re
import subprocess
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

FILES = Path(__file__).parents[1] / "plugins/llm/src/kdzoo_llm/data/files"
PACKAGES = {  # name of the SWORD module -> Debian package, sha256 of the module's compressed texts
    "engWEB2015eb": (
        "sword-text-web_426.0-1_all.deb",
        "d0adceefaa059e1078f95f1e5e3154ebaf1cab2f4578743d884cd78acb4bd36b",
    ),
    "spaRV1909eb": (
        "sword-text-sparv_2.60-1_all.deb",
        "03597fcf0b2aa5473c6e5c52bf86962f298bd41de1f4d27f2416dd41a804b65c",
    ),
}
LONGEST = 40  # words of either side
RATIO = 0.55, 1.6  # Spanish words per English word; the Spanish text has fewer words on the whole
SLACK = 3  # words by which a short verse may leave the ratio
FIT = 0.12  # mean association of a pair's words
BLOCK = 5  # chapters
ROUND = ("train", "train", "pool", "train", "val", "train", "train", "pool", "train", "test")
SPLITS = ("train", "pool", "val", "test")
ORDER = ("test", "val", "train", "pool")  # who keeps a text that two splits have
SAME = 0.5  # share of word pairs

Verse = tuple[str, int, int]  # book, chapter, verse

NOTES = re.compile(r"<note\b.*?</note>|<speaker\b.*?</speaker>", re.DOTALL)
BREAKS = re.compile(r"</?(?:l|lg|lb|div|title|p|milestone|transChange)\b[^>]*>")
TAGS = re.compile(r"<[^>]*>")
BEFORE = re.compile(r"\s+([,.;:!?)\]”’])")
AFTER = re.compile(r"([(\[“‘¡¿])\s+")
LETTER = re.compile(r"^[A-Z]{2,}\b\.?\s*")
CAPITALS = re.compile(r"\b[^\W\d_]{2,}\b")
WORD = re.compile(r"[^\W\d_]+(?:’[^\W\d_]+)?")


def clean(marked: str) -> str:
    """A verse's text without markup."""
    # A footnote stands where a blank would: "God<note/>created". Before punctuation the blank goes again.
    text = TAGS.sub("", BREAKS.sub(" ", NOTES.sub(" ", marked))).replace("¶", " ")
    text = " ".join(text.split())
    return AFTER.sub(r"\1", BEFORE.sub(r"\1", text))


def lowered(text: str, forms: Counter[str]) -> str:
    """Words of capitals as they are elsewhere: "Jehová", "el"; the first of a sentence keeps its first capital."""

    def small(found: re.Match[str]) -> str:
        word = found[0]
        if not word.isupper():
            return word
        opens = not text[: found.start()].rstrip("¡¿( ") or text[: found.start()].rstrip("¡¿( ")[-1] in ".!?"
        title = word[0] + word[1:].lower()
        return title if opens or forms[title] > forms[word.lower()] else word.lower()

    return CAPITALS.sub(small, text)


def openings(spanish: dict[Verse, str]) -> dict[Verse, str]:
    """The Spanish verses with ordinary capitals in the first verses of chapters."""
    forms = Counter(word for key, text in spanish.items() if key[2] > 1 for word in CAPITALS.findall(text))
    return {key: lowered(text, forms) if key[2] == 1 else text for key, text in spanish.items()}


def unlettered(verses: dict[Verse, str]) -> dict[Verse, str]:
    """Without "ALEPH", "BETH" and so on before each eighth verse of Psalm 119."""
    marked = {key for key in verses if key[:2] == ("Psalms", 119) and key[2] % 8 == 1}
    return {key: LETTER.sub("", text) if key in marked else text for key, text in verses.items()}


def read(folder: Path) -> tuple[dict[Verse, str], dict[Verse, str]]:
    """English and Spanish verses."""
    from pysword.bible import ZTextModule
    from pysword.modules import SwordModules

    # Else a book is decompressed again for each of its verses.
    ZTextModule._decompressed_text = cache(ZTextModule._decompressed_text)
    texts = []
    with tempfile.TemporaryDirectory() as place:
        for name, (package, expected) in PACKAGES.items():
            subprocess.run(["dpkg-deb", "-x", str(folder / package), place], check=True)
            digest = hashlib.sha256()
            for path in sorted(Path(place).glob(f"usr/share/sword/modules/texts/ztext/{name}/*.bzz")):
                digest.update(path.read_bytes())
            if digest.hexdigest() != expected:
                raise SystemExit(f"{package}: its texts have sha256 {digest.hexdigest()}, not {expected}")
        modules = SwordModules(f"{place}/usr/share/sword")
        modules.parse_modules()
        for name in PACKAGES:
            bible, verses = modules.get_bible_from_module(name), {}
            for books in bible.get_structure().get_books().values():
                for book in books:
                    for chapter, length in enumerate(book.chapter_lengths, 1):
                        for verse in range(1, length + 1):
                            marked = bible.get(
                                books=[book.name], chapters=[chapter], verses=[verse], clean=False
                            )
                            verses[book.name, chapter, verse] = clean(marked)
            texts.append(unlettered(verses))
    return texts[0], openings(texts[1])


def words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def occurrences(rows: list[list[str]], number: dict[str, int]) -> csr_matrix:
    """(rows, words) 1 where a word occurs."""
    at = [(row, number[word]) for row, found in enumerate(rows) for word in set(found) if word in number]
    places = np.array(at or np.empty((0, 2), int)).T
    return csr_matrix((np.ones(len(at), np.float32), places), shape=(len(rows), max(1, len(number))))


def numbered(rows: list[list[str]], least: int = 2) -> dict[str, int]:
    counts = Counter(word for row in rows for word in set(row))
    return {word: place for place, word in enumerate(sorted(w for w, n in counts.items() if n >= least))}


class Association:
    """How well an English and a Spanish verse fit: for each English word the best Dice coefficient, over all pairs of
    verses with equal reference, with a word of the Spanish verse; the mean over the English words.
    """

    def __init__(self, english: list[list[str]], spanish: list[list[str]]) -> None:
        self.english, self.spanish = numbered(english), numbered(spanish)
        left, right = occurrences(english, self.english), occurrences(spanish, self.spanish)
        both = (left.T @ right).toarray()  # 7,500 x 13,000: dense is quicker to look up, and fits
        self.dice = 2 * both / (np.asarray(left.sum(0)).T + np.asarray(right.sum(0)))

    def __call__(self, english: list[str], spanish: list[str]) -> float:
        left = [self.english[word] for word in english if word in self.english]
        right = [self.spanish[word] for word in spanish if word in self.spanish]
        if not left or not right:
            return 0.0
        return float(self.dice[np.ix_(left, right)].max(axis=1).mean())


def aligned(english: dict[Verse, str], spanish: dict[Verse, str]) -> tuple[list[Verse], dict[str, int]]:
    """The pairs that stay, and how many go for which reason."""
    of_english = {key: words(text) for key, text in english.items()}
    of_spanish = {key: words(text) for key, text in spanish.items()}
    both = [key for key in spanish if of_spanish[key] and of_english.get(key)]
    fit = Association([of_english[key] for key in both], [of_spanish[key] for key in both])
    kept, gone = [], Counter({"one side empty": len(spanish) - len(both)})
    for key in both:
        long_english, long_spanish = len(english[key].split()), len(spanish[key].split())
        book, chapter, verse = key
        here = fit(of_english[key], of_spanish[key])
        near = [
            fit(of_english[key], of_spanish.get((book, chapter, verse + step), [])) for step in (-2, -1, 1, 2)
        ]
        if max(long_english, long_spanish) > LONGEST:
            gone["longer than 40 words"] += 1
        elif not RATIO[0] * long_english - SLACK <= long_spanish <= RATIO[1] * long_english + SLACK:
            gone["unlike lengths"] += 1
        elif here < FIT or here <= max(near):
            gone["does not fit, or a neighbour fits better"] += 1
        else:
            kept.append(key)
    return kept, dict(gone)


def splits(books: list[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """(book, chapter) -> split."""
    found, block = {}, 0
    for book, chapters in books:
        for first in range(1, chapters + 1, BLOCK):
            for chapter in range(first, min(first + BLOCK, chapters + 1)):
                found[book, chapter] = ROUND[block % len(ROUND)]
            block += 1
    return found


def bigrams(text: str) -> list[str]:
    inside = ["<", *words(text), ">"]
    return [f"{a} {b}" for a, b in itertools.pairwise(inside)]


def repeats(rows: list[str], others: list[str]) -> np.ndarray:
    """(rows,) whether a text is nearly equal to one of the others."""
    left, right = [bigrams(text) for text in rows], [bigrams(text) for text in others]
    number = numbered(left + right, least=1)
    a, b = occurrences(left, number), occurrences(right, number)
    of_a, of_b = np.asarray(a.sum(1)).ravel(), np.asarray(b.sum(1)).ravel()
    found = np.zeros(len(rows), bool)
    for start in range(0, len(rows), 1024):
        common = (a[start : start + 1024] @ b.T).tocoo()
        dice = 2 * common.data / (of_a[start + common.row] + of_b[common.col])
        found[start + common.row[dice >= SAME]] = True
    return found


def parted(
    keys: list[Verse], english: dict[Verse, str], spanish: dict[Verse, str], split_of: dict
) -> tuple[dict[str, list[Verse]], dict[str, dict[str, int]]]:
    """The verses of each split without those that repeat another split, and how many went."""
    kept: dict[str, list[Verse]] = {}
    gone: dict[str, dict[str, int]] = {}
    for split in ORDER:
        seen: set[str] = set()
        rows = []
        mine = [key for key in keys if split_of[key[:2]] == split]
        for key in mine:
            texts = {" ".join(words(english[key])), " ".join(words(spanish[key]))}
            if not texts & seen:
                rows.append(key)
            seen |= texts
        others = [key for part in kept.values() for key in part]
        near = np.zeros(len(rows), bool)
        for text in (english, spanish):
            near |= repeats([text[key] for key in rows], [text[key] for key in others])
        gone[split] = {"twice in the split": len(mine) - len(rows), "repeats another split": int(near.sum())}
        kept[split] = [key for key, double in zip(rows, near.tolist(), strict=True) if not double]
    return kept, gone


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the two Debian packages are")
    parser.add_argument("--out", type=Path, default=FILES)
    given = parser.parse_args()
    english, spanish = read(given.folder)
    keys, dropped = aligned(english, spanish)
    books = list({key[0]: 0 for key in spanish})
    chapters = Counter(book for book, _ in {key[:2] for key in spanish})
    split_of = splits([(book, chapters[book]) for book in books])
    kept, repeated = parted(keys, english, spanish, split_of)
    lines = [
        f"{split}\t{key[0]} {key[1]}:{key[2]}\t{english[key]}\t{spanish[key]}\n"
        for split in SPLITS
        for key in kept[split]
    ]
    text = "".join(lines).encode()
    packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
    manifest = {
        "command": "python tools/build_verses.py FOLDER",
        "sources": {
            "english": "Debian package sword-text-web 426.0-1: World English Bible, eBible.org, public domain. "
            "The name is a trademark of eBible.org; this is a changed part and not to be called by it.",
            "spanish": "Debian package sword-text-sparv 2.60-1: Reina-Valera 1909, public domain",
        },
        "changes": "markup, footnotes and speakers removed; capitals that open a chapter lowered; a part of the verses",
        "longest": LONGEST,
        "ratio": RATIO,
        "fit": FIT,
        "block": BLOCK,
        "round": ROUND,
        "same": SAME,
        "not aligned": dropped,
        "repeated": repeated,
        "verses": {split: len(kept[split]) for split in SPLITS},
        "sha256_of_lines": hashlib.sha256(text).hexdigest(),
        "sha256": {"verses.tsv.xz": hashlib.sha256(packed).hexdigest()},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "verses.tsv.xz").write_bytes(packed)
    (given.out / "verses-manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: manifest[name] for name in ("verses", "not aligned", "repeated")}, indent=1))
    print(f"{len(packed):,} bytes of {len(text):,}")


if __name__ == "__main__":
    main()
