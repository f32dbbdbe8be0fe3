"""Word relations of WordNet (task `word-relations`): triples whose truth is known, for generating and judging them.

A head is one sense of a word, told apart by the first content words of its gloss; a relation is a phrase; a tail is a
word. The split is by the head's word, so val and test ask for words whose relations nobody has seen, and only spelling
and gloss say what they are.

    prompt   dog (member genus canis domesticated man prehistoric) is a kind of
    answer   animal

`is_true(head, relation, tail)` decides a triple by the whole of WordNet, all senses of both words and all steps of the
transitive relations: where a paper asks people whether a generated triple holds, this is who answers. `judged` gives
labelled triples, true ones and such false ones as a model would write. tools/build_relations.py makes the files;
Princeton's licence lies beside them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np

from kdzoo.errors import unknown
from kdzoo.rng import mix
from kdzoo.shipped import Shipped
from kdzoo_llm.data.draws import Draw, draws
from kdzoo_llm.examples import Example

FILES = Path(__file__).parent / "files"
SHIPPED = Shipped("word-relations", "build_relations.py", "kdzoo-llm")
SPLITS = ("train", "pool", "val", "test")
RELATIONS: Mapping[str, str] = MappingProxyType(
    {
        "hypernym": "is a kind of",
        "part_of": "is part of",
        "has_part": "has as a part",
        "member_of": "is a member of",
        "made_of": "is made of",
        "entails": "takes place with",
        "causes": "leads to",
        "similar": "is much like",
        "antonym": "is the opposite of",
        "attribute": "goes with",
    }
)
"""Relation -> how a prompt puts it. attribute joins a quality with its values, either way round."""

WRONG = ("sibling", "other relation", "reversed", "frequent")
"""How a false triple comes about: the word of a head with a tail in common; a tail of the same head in another
relation; head and tail exchanged; a tail that is frequent in this relation of this part of speech."""


@dataclass(frozen=True, slots=True)
class Head:
    """One sense of a word.

    Attributes:
        synset: WordNet's name of it, "n02084071".
        word: the lemma.
        hint: content words of its gloss.
        split: where it belongs.
        tails: relation -> words that WordNet links it to, nearest first.
    """

    synset: str
    word: str
    hint: tuple[str, ...]
    split: str
    tails: Mapping[str, tuple[str, ...]]

    @property
    def part(self) -> str:
        """Its part of speech: n, v, a or r."""
        return self.synset[0]


@dataclass(frozen=True, slots=True)
class Graph:
    """All that ships.

    Attributes:
        words: every word that may be a head or a tail, ascending.
        heads: all heads.
        true: relation -> set of (head's number, tail's number) in `words`.
        hashes: file name -> sha256, as verified.
    """

    words: tuple[str, ...]
    number: Mapping[str, int]
    heads: tuple[Head, ...]
    true: Mapping[str, frozenset[tuple[int, int]]]
    hashes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Judged:
    """A labelled triple: `kind` is "true" or how it is wrong, one of `WRONG`."""

    prompt: str
    head: str
    relation: str
    tail: str
    valid: bool
    kind: str


def prompt_of(head: Head, relation: str) -> str:
    """What a model reads: the word (a verb with "to"), its hint in brackets, the relation's phrase."""
    return f"{'to ' * (head.part == 'v')}{head.word} ({' '.join(head.hint)}) {RELATIONS[relation]}"


def examples(split: str, folder: Path = FILES) -> list[Example]:
    """Triples of one split.

    Args:
        split: "train" (one row a triple: what the teacher learned), "pool" (one row a head and relation: the seeds of
            generation, whose answers methods may not use), "val" or "test" (one row a head and relation).
        folder: where the files of tools/build_relations.py are.

    Returns:
        Examples whose answer is a tail, the nearest one outside train. facts: `head`, `relation`, `tails` (all that
        WordNet links directly), `synset`.

    Raises:
        KdzooError: no such split; a file that is missing, unreadable, or not the one in the manifest.
    """
    if split not in SPLITS:
        raise unknown("split of word-relations", split, SPLITS, f"It has {', '.join(SPLITS)}.")
    return list(_examples(split, folder))


@cache
def _examples(split: str, folder: Path) -> tuple[Example, ...]:
    found: list[Example] = []
    for head in read(folder).heads:
        if head.split != split:
            continue
        for relation, tails in head.tails.items():
            facts = {"head": head.word, "relation": relation, "tails": tails, "synset": head.synset}
            for tail in tails if split == "train" else tails[:1]:
                found.append(Example(f"{split}/{len(found)}", prompt_of(head, relation), tail, facts))
    return tuple(found)


def is_true(head: str, relation: str, tail: str, folder: Path = FILES) -> bool:
    """Whether the relation holds between two words in any of their senses, by the whole graph.

    hypernym, part_of, has_part and entails go on through any number of steps. A tail that is no word of `read().words`
    (no word at all, several words, a rare word) is in no relation.

    Raises:
        KdzooError: no such relation; damaged files.
    """
    if relation not in RELATIONS:
        raise unknown("relation", relation, RELATIONS, f"There are {', '.join(RELATIONS)}.")
    graph = _read(folder)
    pair = graph.number.get(head), graph.number.get(tail.strip())
    return pair in graph.true[relation]


def judged(split: str, folder: Path = FILES) -> list[Judged]:
    """Labelled triples about the heads of one split, half of them false in the four ways of `WRONG`.

    Every head and relation gives one true triple and, where one can be made, a false one.

    Raises:
        KdzooError: as `examples`.
    """
    if split not in SPLITS:
        raise unknown("split of word-relations", split, SPLITS, f"It has {', '.join(SPLITS)}.")
    return list(_judged(split, folder))


@cache
def _judged(split: str, folder: Path) -> tuple[Judged, ...]:
    own = [head for head in read(folder).heads if head.split == split]
    mistakes = _Mistakes(own)
    found = []
    for head in own:
        for relation, tails in head.tails.items():
            draw = draws(mix("word-relations", "judged", head.synset, relation))
            tail = tails[draw(0, len(tails) - 1)]
            found.append(Judged(prompt_of(head, relation), head.word, relation, tail, True, "true"))
            start = draw(0, len(WRONG) - 1)
            for step in range(len(WRONG)):  # the first way that gives a false triple
                kind = WRONG[(start + step) % len(WRONG)]
                wrong = mistakes.draw(kind, head, relation, tail, draw)
                if wrong is None or is_true(wrong[0].word, relation, wrong[1], folder):
                    continue
                asked, said = wrong
                found.append(Judged(prompt_of(asked, relation), asked.word, relation, said, False, kind))
                break
    return tuple(found)


class _Mistakes:
    """False triples, if all goes well, about some heads."""

    def __init__(self, heads: list[Head]) -> None:
        self.by_word: dict[str, Head] = {}
        self.frequent: dict[tuple[str, str], list[str]] = {}
        self.with_tail: dict[tuple[str, str], list[Head]] = {}
        for head in heads:
            self.by_word.setdefault(head.word, head)
            for relation, tails in head.tails.items():
                self.frequent.setdefault((head.part, relation), []).append(
                    tails[0]
                )  # drawn as often as it occurs
                for tail in tails:
                    self.with_tail.setdefault((relation, tail), []).append(head)

    def draw(self, kind: str, head: Head, relation: str, tail: str, draw: Draw) -> tuple[Head, str] | None:
        """(head, tail) that go wrong in this way, None where it cannot be done."""
        if kind == "reversed":
            other = self.by_word.get(tail)
            return (other, head.word) if other else None
        if kind == "sibling":
            words = [other.word for other in self.with_tail[relation, tail] if other.word != head.word]
        elif kind == "other relation":
            words = [word for other, tails in head.tails.items() if other != relation for word in tails]
        else:
            words = [word for word in self.frequent[head.part, relation] if word != head.word]
        return (head, words[draw(0, len(words) - 1)]) if words else None


def heads(split: str, folder: Path = FILES) -> list[Head]:
    """The heads of one split: what generation starts from.

    Raises:
        KdzooError: as `examples`.
    """
    if split not in SPLITS:
        raise unknown("split of word-relations", split, SPLITS, f"It has {', '.join(SPLITS)}.")
    return [head for head in read(folder).heads if head.split == split]


def read(folder: Path = FILES) -> Graph:
    """All that ships, verified against the manifest; read once a process.

    Raises:
        KdzooError: a file that is missing, unreadable, or not the one in the manifest.
    """
    return _read(folder)


@cache
def _read(folder: Path) -> Graph:
    path = folder / "relations-manifest.json"
    hashes = SHIPPED.parsed(path, SHIPPED.content(path), ("sha256",))["sha256"]
    names = ("relations.json", "relations-true.npz")
    if lacking := [name for name in names if name not in hashes]:
        raise SHIPPED.damaged(path, f"lacks the sha256 of {', '.join(lacking)}")
    content = {name: SHIPPED.content(folder / name, hashes[name]) for name in names}
    table = SHIPPED.parsed(folder / names[0], content[names[0]], ("words", "heads"))
    words = tuple(table["words"])
    found = []
    for synset, word, hint, split, tails in table["heads"]:
        linked = {
            relation: tuple(words[k] for k in tails[relation]) for relation in RELATIONS if relation in tails
        }
        found.append(Head(synset, words[word], tuple(hint.split()), split, MappingProxyType(linked)))
    with np.load(io.BytesIO(content[names[1]]), allow_pickle=False) as arrays:
        true = {relation: frozenset(map(tuple, arrays[relation].tolist())) for relation in RELATIONS}
    return Graph(words, {word: k for k, word in enumerate(words)}, tuple(found), true, dict(hashes))
