"""Rebuild the WordNet relations that kdzoo_llm ships (task `word-relations`).

    apt-get download wordnet-base
    python tools/build_relations.py --source wordnet-base_1%3a3.0-37_all.deb

Reads the graph out of the Debian package without installing it; the database files are checked against the sha256
below. Writes, under kdzoo_llm/data/files:
`relations.json`           words, head synsets with their hints and splits, and what WordNet says of them
`relations-true.npz`       all pairs of those words that stand in a relation, decided by the whole graph
`relations-manifest.json`  source, rules, counts, sha256
`relations-LICENSE.txt`    Princeton's licence, as in the package
The same package gives the same bytes.

Words are single lower-case lemmas that were tagged at least `LEAST` times in WordNet's corpora. A head is a synset that
was tagged in a sense of such a word; its lemma is the word that was tagged most often in it. Its hint is made of the
first content words of its gloss. Heads are split by lemma; a triple of train or pool goes if val or test join the same
two words.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdzoo.rng import mix
from kdzoo_llm.data.relations import RELATIONS

FILES = Path(__file__).parents[1] / "plugins/llm/src/kdzoo_llm/data/files"
FOLDER = "./usr/share/wordnet/"
COPYRIGHT = "./usr/share/doc/wordnet-base/copyright"
CONTENT = {  # sha256 of WordNet 3.0's files
    "data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "data.verb": "adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2",
    "data.adj": "c89120dfc1f046ddff4a631bf9b7e9fa1a36b5e86565a23bf82dbe14f30b88a7",
    "data.adv": "444a63bf3955080ab7524f5079cfc07ff9bc682cb98bdb1db73b0fb9829f1139",
    "cntlist.rev": "a198580b8f705fa02797bba8b13e5cbe4a9f9f40cb1697e774c7fc6a5865b035",
}
PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
KINDS = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "s"}  # of a sense key, as data files write them
LEAST = 2  # occurrences of a word in the tagged corpora
WORD = re.compile(r"[a-z]{2,12}")
POINTERS = {  # relation -> WordNet's pointer symbols, wninput(5)
    "hypernym": ("@", "@i"), "part_of": ("#p",), "has_part": ("%p",), "member_of": ("#m",), "made_of": ("%s",),
    "entails": ("*",), "causes": (">",), "similar": ("&",), "antonym": ("!",), "attribute": ("=",),
}  # fmt: skip
TRANSITIVE = ("hypernym", "part_of", "has_part", "entails")
KINDS_OF = 60  # a word is given as a hypernym if it is one of at least so many heads,
AT_MOST = {
    "n": 0.12,
    "v": 0.2,
}  # and of at most this share of them: an entity or an act is too general to be an answer
LIKE = 10  # a word is given as similar to a head if it is to at least so many
HINT = 8  # words
SHARES = {"train": 40, "pool": 38, "val": 8, "test": 14}  # percent of the head lemmas
FUNCTION_WORDS = frozenset(
    """
    a about after all also among an and another any anything are as at away be because been before being between
    but by can characterized could do does done each either especially etc even every everyone for form from has
    have having he her his how if in into is it its made make makes making may more most much no not of off
    often on one ones or other others out over own particular relating same several she so some someone
    something such than that the their them there these they thing things this those through to too typically up
    upon used usually very was way were what when where whether which while who whom whose will with within
    without would you your
    """.split()  # noqa: SIM905
)

LEFT_OUT = re.compile(
    r"\b(sex\w*|coit\w+|penis|vagina|genital\w*|breasts|slurs?|offensive|obscene|disparag\w+|vulgar)\b"
)
"""Glosses that nobody wants to meet in a bench."""


@dataclass(frozen=True)
class Synset:
    """One line of a data file.

    Attributes:
        lemmas: as written, without adjectives' markers.
        tags: how often each was tagged in this sense.
        pointers: (symbol, synset, our lemma's place or None, their lemma's place or None).
        gloss: definition and examples.
    """

    lemmas: tuple[str, ...]
    tags: tuple[int, ...]
    pointers: tuple[tuple[str, str, int | None, int | None], ...]
    gloss: str


Graph = dict[str, Synset]


def read(package: Path) -> tuple[dict[str, str], str]:
    """The database files' text by name, and the licence."""
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=True).stdout
    texts = {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for name, expected in CONTENT.items():
            content = member(archive, FOLDER + name)
            found = hashlib.sha256(content).hexdigest()
            if found != expected:
                raise SystemExit(f"{name} has sha256 {found}, not {expected}: another version of WordNet")
            texts[name] = content.decode("latin-1")
        licence = member(archive, COPYRIGHT).decode()
    return texts, licence


def member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    if stream is None:
        raise SystemExit(f"the package holds no {name}; expected wordnet-base 3.0")
    return stream.read()


def counts(text: str) -> tuple[Counter[str], Counter[tuple[str, str, int, int]]]:
    """Tagged occurrences of a lemma, and of (lemma, kind, lexicographer's file, its number there): senseidx(5)."""
    words: Counter[str] = Counter()
    senses: Counter[tuple[str, str, int, int]] = Counter()
    for line in text.splitlines():
        key, _, count = line.split(" ")
        lemma, rest = key.split("%")
        kind, file, number, *_ = rest.split(":")
        words[lemma] += int(count)
        senses[lemma, KINDS[kind], int(file), int(number)] += int(count)
    return words, senses


def parse(texts: dict[str, str], senses: Counter[tuple[str, str, int, int]]) -> Graph:
    """All synsets by "n02084071"; satellite adjectives count as adjectives: wndb(5)."""
    found = {}
    for name, part in PARTS.items():
        for line in texts[f"data.{name}"].splitlines():
            if line.startswith("  "):  # the licence
                continue
            fields, gloss = line.split(" | ", 1)
            row = fields.split()
            size = int(row[3], 16)
            lemmas = tuple(re.sub(r"\(\w+\)$", "", row[4 + 2 * k]) for k in range(size))
            tags = tuple(
                senses[lemma.lower(), row[2], int(row[1]), int(row[5 + 2 * k], 16)]
                for k, lemma in enumerate(lemmas)
            )
            start = 5 + 2 * size
            pointers = []
            for k in range(int(row[start - 1])):
                symbol, offset, kind, ends = row[start + 4 * k : start + 4 * k + 4]
                ours, theirs = int(ends[:2], 16), int(ends[2:], 16)
                target = ("a" if kind == "s" else kind) + offset
                pointers.append((symbol, target, ours - 1 if ours else None, theirs - 1 if theirs else None))
            found[part + row[0]] = Synset(lemmas, tags, tuple(pointers), gloss)
    return found


def neighbours(graph: Graph, relation: str, name: str) -> list[str]:
    """Synsets that stand in a relation to this one directly."""
    return [target for symbol, target, *_ in graph[name].pointers if symbol in POINTERS[relation]]


def closure(graph: Graph, relation: str, name: str) -> list[str]:
    """Synsets in a relation to this one, through others where it is transitive; nearest first.

    What a verb is a kind of does not count as entailed, but what that entails does, and what an entailed verb is a kind
    of. Parts and members are not handed down to kinds: WordNet's are not those of every kind.
    """
    if relation not in TRANSITIVE:
        return neighbours(graph, relation, name)
    if relation != "entails":
        return reached(graph, [relation], [name])[1:]
    kinds = reached(graph, ["hypernym"], [name])
    first = [target for kind in kinds for target in neighbours(graph, relation, kind)]
    return reached(graph, ["hypernym", relation], first)


def reached(graph: Graph, relations: list[str], front: list[str]) -> list[str]:
    """These synsets, and all that steps of the relations lead to from them; nearest first."""
    found = dict.fromkeys(front)
    while front:
        steps = [target for name in front for kind in relations for target in neighbours(graph, kind, name)]
        front = [target for target in dict.fromkeys(steps) if target not in found]
        found.update(dict.fromkeys(front))
    return list(found)


def true_pairs(graph: Graph, words: dict[str, int]) -> dict[str, np.ndarray]:
    """Relation -> (N, 2) uint16 numbers of all word pairs that stand in it in some senses, sorted."""
    found: dict[str, set[tuple[int, int]]] = {relation: set() for relation in RELATIONS}
    for name, synset in graph.items():
        heads = numbers(synset, words)
        if not heads:
            continue
        for relation in RELATIONS:
            if relation == "antonym":  # between lemmas
                for symbol, target, ours, theirs in synset.pointers:
                    if symbol == "!" and ours is not None and theirs is not None:
                        pair = synset.lemmas[ours], graph[target].lemmas[theirs]
                        if all(word in words for word in pair):
                            # Both ways: a few of WordNet 3.0's antonyms are written at one end alone.
                            found[relation].update(((words[a], words[b]) for a, b in (pair, pair[::-1])))
                continue
            for target in closure(graph, relation, name):
                found[relation].update((h, t) for h in heads for t in numbers(graph[target], words) if h != t)
    return {relation: np.array(sorted(pairs), np.uint16).reshape(-1, 2) for relation, pairs in found.items()}


def numbers(synset: Synset, words: dict[str, int]) -> list[int]:
    return [words[lemma] for lemma in synset.lemmas if lemma in words]


def best(synset: Synset, words: dict[str, int]) -> str | None:
    """The word that a synset is called by: the one tagged most often in this sense, the first of equals."""
    ranked = [
        (-tags, k)
        for k, (lemma, tags) in enumerate(zip(synset.lemmas, synset.tags, strict=True))
        if lemma in words
    ]
    return synset.lemmas[min(ranked)[1]] if ranked else None


def hint(synset: Synset) -> list[str]:
    """The first content words of the definition, without examples, brackets and the head's own lemmas."""
    text = re.sub(r"\([^)]*\)", " ", synset.gloss.split('; "')[0].split(' "')[0].lower())
    own = {part for lemma in synset.lemmas for part in lemma.lower().split("_")}
    found = [
        w for w in re.findall(r"[a-z]+", text) if len(w) > 1 and w not in FUNCTION_WORDS and w not in own
    ]
    return list(dict.fromkeys(found))[:HINT]


def tails(graph: Graph, name: str, words: dict[str, int], relation: str) -> list[str]:
    """The words that WordNet gives as a head's tails, nearest first; of hypernyms all steps."""
    synset, lemma = graph[name], best(graph[name], words)
    if relation == "antonym":
        found: list[str | None] = [
            graph[target].lemmas[theirs]
            for symbol, target, ours, theirs in synset.pointers
            if symbol == "!" and theirs is not None and ours is not None and synset.lemmas[ours] == lemma
        ]
    else:
        near = closure(graph, relation, name) if relation == "hypernym" else neighbours(graph, relation, name)
        found = [best(graph[target], words) for target in near]
    return [word for word in dict.fromkeys(found) if word and word in words and word != lemma]


def split_of(word: str) -> str:
    place = mix("word-relations", "head", word) % 100
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares sum to 100")


Row = tuple[str, str, list[str], str, dict[str, list[str]]]
"""(synset, word, hint, split, relation -> tails)."""


def choose(graph: Graph, words: dict[str, int]) -> list[Row]:
    """The heads with their tails, in the order of the data files."""
    rows: list[Row] = []
    for name, synset in graph.items():
        word = best(synset, words)
        if word is None or not synset.tags[synset.lemmas.index(word)] or len(hint(synset)) < 2:
            continue
        if LEFT_OUT.search(synset.gloss):
            continue
        linked = {relation: found for relation in RELATIONS if (found := tails(graph, name, words, relation))}
        rows.append((name, word, hint(synset), split_of(word), linked))
    rows = fitting(rows)
    held = {
        frozenset((word, tail))
        for _, word, _, split, linked in rows
        if split in ("val", "test")
        for found in linked.values()
        for tail in found
    }
    kept = []
    for name, word, content, split, linked in rows:
        if split in ("train", "pool"):
            linked = {
                r: [t for t in found if frozenset((word, t)) not in held] for r, found in linked.items()
            }
            linked = {relation: found for relation, found in linked.items() if found}
        if linked:
            kept.append((name, word, content, split, linked))
    return kept


def fitting(rows: list[Row]) -> list[Row]:
    """Heads without the tails that are too rare or too general to be asked for."""
    heads = Counter(name[0] for name, *_, linked in rows if "hypernym" in linked)
    count = Counter(
        (name[0], r, t) for name, *_, linked in rows for r, found in linked.items() for t in found
    )

    def fits(part: str, relation: str, tail: str) -> bool:
        times = count[part, relation, tail]
        if relation == "hypernym":
            return KINDS_OF <= times <= AT_MOST[part] * heads[part]
        return relation != "similar" or times >= LIKE

    kept = []
    for name, word, content, split, linked in rows:
        chosen = {r: [t for t in found if fits(name[0], r, t)] for r, found in linked.items()}
        chosen = {relation: found for relation, found in chosen.items() if found}
        if chosen:
            kept.append((name, word, content, split, chosen))
    return kept


def write(out: Path, graph: Graph, words: dict[str, int], licence: str, source: str) -> None:
    rows = choose(graph, words)
    true = true_pairs(graph, words)
    lines = ",\n".join(
        json.dumps(
            [
                name,
                words[word],
                " ".join(content),
                split,
                {r: [words[t] for t in found] for r, found in linked.items()},
            ],
            separators=(",", ":"),
        )
        for name, word, content, split, linked in rows
    )
    text = f'{{"words": {json.dumps(list(words), separators=(",", ":"))},\n"heads": [\n{lines}\n]}}\n'
    out.mkdir(parents=True, exist_ok=True)
    (out / "relations.json").write_text(text)
    np.savez_compressed(out / "relations-true.npz", allow_pickle=False, **true)
    (out / "relations-LICENSE.txt").write_text(licence)
    files = ("relations.json", "relations-true.npz")
    asked = {s: dict(Counter(r for row in rows if row[3] == s for r in row[4])) for s in SHARES}
    manifest = {
        "command": f"python tools/build_relations.py --source {source}",
        "source": f"Debian package {source}: WordNet 3.0, Copyright 2006 Princeton University",
        "content": CONTENT,
        "least": LEAST,
        "kinds_of": KINDS_OF,
        "at_most": AT_MOST,
        "like": LIKE,
        "shares": SHARES,
        "heads": {s: sum(row[3] == s for row in rows) for s in SHARES},
        "asked": asked,
        "true": {relation: len(pairs) for relation, pairs in true.items()},
        "sha256": {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in files},
    }
    (out / "relations-manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(json.dumps({key: manifest[key] for key in ("heads", "asked", "true")}, indent=1))
    print({name: (out / name).stat().st_size for name in files})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FILES)
    given = parser.parse_args()
    texts, licence = read(given.source)
    tagged, senses = counts(texts["cntlist.rev"])
    graph = parse(texts, senses)
    lemmas = {lemma for synset in graph.values() for lemma in synset.lemmas}
    known = sorted(word for word in lemmas if WORD.fullmatch(word) and tagged[word] >= LEAST)
    write(given.out, graph, {word: k for k, word in enumerate(known)}, licence, given.source.name)


if __name__ == "__main__":
    main()
