"""Rebuild ``relations.txt.xz`` of kdzoo-llm: what WordNet 3.0 says of compound nouns, in five relations.

    apt-get download wordnet-base; dpkg-deb -x it into a folder WORDNET
    python tools/build_relations.py WORDNET/usr/share/wordnet WORDNET/usr/share/doc/wordnet-base/copyright

A head is a noun of two words in lower case with one or two senses, each of whose words is in at least `COMMON` such
nouns. A tail is a synset that is true of at least `SHARED` heads, with its lemmas in lower case of at most three words.
"is a kind of" is followed up to four steps, without what has more than `BROAD` synsets below it; the parts, wholes,
substances and fields of whatever a head is a kind of in at most two steps are its own too.

The file: a line for each tail (lemmas with commas between them), an empty line, and a line for each head: the head and
its relations, with tabs between them, each as ``relation:tail,tail``, the tails by line number, the nearest first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FILES = Path(__file__).parents[1] / "plugins/llm/src/kdzoo_llm/data/files"
SOURCE = "Debian package wordnet-base 1:3.0-37 (WordNet 3.0)"
LICENCE_OF = "The file relations.txt.xz is a part of WordNet 3.0, under the following licence."
COMMAND = (
    "python tools/build_relations.py WORDNET/usr/share/wordnet WORDNET/usr/share/doc/wordnet-base/copyright"
)
HEAD = re.compile(r"[a-z]+_[a-z]+")
LEMMA = re.compile(r"[a-z]+(_[a-z]+){0,2}")
UP = ("@", "@i")
INHERITED = {"part-of": "#p", "has-part": "%p", "made-of": "%s", "field": ";c"}
COMMON, BROAD = 14, 5000
SHARED = 8  # heads that a tail must be true of, to be in the world
FAR, NEAR = 4, 2  # steps up: for kinds, and for what is inherited


class Synset(NamedTuple):
    lemmas: tuple[str, ...]
    pointers: tuple[tuple[str, str], ...]


def read_synsets(path: Path) -> dict[str, Synset]:
    """By offset; pointers to nouns only, as (symbol, offset)."""
    found = {}
    for fields in lines(path):
        words = int(fields[3], 16)
        lemmas = tuple(fields[4 : 4 + 2 * words : 2])
        first = 5 + 2 * words
        pointers = tuple(
            (fields[at], fields[at + 1])
            for at in range(first, first + 4 * int(fields[first - 1]), 4)
            if fields[at + 2] == "n"
        )
        found[fields[0]] = Synset(lemmas, pointers)
    return found


def lines(path: Path) -> Iterator[list[str]]:
    """The fields of a file's lines; its licence, at the top, and the glosses are left out."""
    for line in path.read_text(encoding="ascii").splitlines():
        if not line.startswith("  "):
            yield line.split(" | ")[0].split()


class WordNet:
    """The nouns."""

    def __init__(self, folder: Path) -> None:
        self.synsets = read_synsets(folder / "data.noun")
        self.senses = {fields[0]: fields[-int(fields[2]) :] for fields in lines(folder / "index.noun")}
        below: dict[str, set[str]] = {}
        for offset in self.synsets:
            for above in self.up(offset, 99):
                below.setdefault(above, set()).add(offset)
        self.broad = {offset for offset, under in below.items() if len(under) > BROAD}

    def to(self, offset: str, *symbols: str) -> list[str]:
        return [target for symbol, target in self.synsets[offset].pointers if symbol in symbols]

    def up(self, offset: str, steps: int) -> list[str]:
        """What a synset is a kind of, the nearest first."""
        found: dict[str, int] = {offset: 0}
        for one in (queue := [offset]):
            if found[one] < steps:
                for target in self.to(one, *UP):
                    if target not in found:
                        found[target] = found[one] + 1
                        queue.append(target)
        return queue[1:]

    def heads(self) -> list[str]:
        """Compounds of common words; of two senses at most."""
        pairs = [
            name for name, senses in self.senses.items() if HEAD.fullmatch(name) and len(senses) <= 2
            and any(name in self.synsets[sense].lemmas for sense in senses)
        ]  # fmt: skip
        words = Counter(word for name in pairs for word in name.split("_"))
        return [name for name in pairs if all(words[word] >= COMMON for word in name.split("_"))]

    def lemmas(self, offset: str) -> tuple[str, ...]:
        return tuple(word.replace("_", " ") for word in self.synsets[offset].lemmas if LEMMA.fullmatch(word))

    def tails(self, head: str) -> dict[str, list[str]]:
        """Relation -> offsets, the nearest first; the head's own synsets and broad ones left out."""
        found: dict[str, dict[str, None]] = {"kind-of": {}, **{name: {} for name in INHERITED}}
        for sense in self.senses[head]:
            found["kind-of"].update(dict.fromkeys(self.up(sense, FAR)))
            for one in (sense, *self.up(sense, NEAR)):
                for name, symbol in INHERITED.items():
                    found[name].update(dict.fromkeys(self.to(one, symbol)))
        own = set(self.senses[head]) | self.broad
        kept = {
            name: [o for o in offsets if o not in own and self.lemmas(o)] for name, offsets in found.items()
        }
        return {name: offsets for name, offsets in kept.items() if offsets}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wordnet", type=Path)
    parser.add_argument("copyright", type=Path)
    given = parser.parse_args()
    net = WordNet(given.wordnet)
    found = {head: net.tails(head) for head in sorted(net.heads())}
    counts = Counter(o for tails in found.values() for o in {o for some in tails.values() for o in some})
    known = {}
    for head, tails in found.items():
        common = {name: [o for o in some if counts[o] >= SHARED] for name, some in tails.items()}
        if kept := {name: some for name, some in common.items() if some}:
            known[head] = kept
    offsets = sorted({offset for tails in known.values() for some in tails.values() for offset in some})
    place = {offset: number for number, offset in enumerate(offsets)}
    rows = [",".join(net.lemmas(offset)) for offset in offsets]
    rows.append("")
    for head, tails in known.items():
        parts = (f"{name}:{','.join(str(place[o]) for o in some)}" for name, some in tails.items())
        rows.append("\t".join((head.replace("_", " "), *parts)))
    content = ("\n".join(rows) + "\n").encode()
    path = FILES / "relations.txt.xz"
    path.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    terms = given.copyright.read_text(encoding="utf-8").split("Files: debian/*")[0].rstrip()
    (FILES / "relations-LICENSE.txt").write_text(f"{LICENCE_OF}\n\n{terms}\n", encoding="utf-8")
    manifest = {
        "source": SOURCE,
        "licence": "WordNet 3.0 licence, relations-LICENSE.txt",
        "heads": len(known),
        "tails": len(offsets),
        "sha256_of_text": hashlib.sha256(content).hexdigest(),
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()},
        "command": COMMAND,
    }
    (FILES / "relations-manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(len(known), "heads,", len(offsets), "tails,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
