"""Compound nouns in five relations, from WordNet 3.0: a closed world whose every triple can be judged.

Rebuilt by tools/build_relations.py, which says what is a head, a tail and true. A head belongs to one split. A row asks
for one tail of a head in a relation that has any; the reference is the one that a person would name, here drawn from
the true ones, near ones more often.
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from kdzoo.errors import KdzooError, unknown
from kdzoo.rng import mix
from kdzoo_llm.data import triple_prompts
from kdzoo_llm.data.draws import Draws
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.packed import text

SHARES = {"train": 0.2, "pool": 0.62, "val": 0.065, "test": 0.115}  # of the heads

PHRASES = {
    "kind-of": ("is a kind of", "is a type of", "is a sort of", "is one kind of"),
    "has-part": ("has the part", "has as a part", "includes the part", "has a part called"),
    "part-of": ("is a part of", "is one part of", "belongs as a part to", "is found as a part of"),
    "made-of": ("is made of", "consists of", "has the substance", "contains the substance"),
    "field": ("belongs to the field of", "is a term of", "is a word from", "is used in the field of"),
}
"""Relation -> ways to say it, of equal meaning. Students read the relation's name, as those of the paper do."""


class Known(NamedTuple):
    """What is known of a head in a relation: its true tails, the nearest first, each with its synonyms."""

    head: str
    relation: str
    tails: tuple[tuple[str, ...], ...]


@lru_cache(maxsize=1)
def world() -> dict[tuple[str, str], Known]:
    """Every (head, relation) that has true tails. Do not change it."""
    listed, _, rows = text("relations", "build_relations.py", "relations.txt.xz").partition("\n\n")
    tails = [tuple(line.split(",")) for line in listed.splitlines()]
    found = {}
    for row in rows.splitlines():
        head, *parts = row.split("\t")
        for part in parts:
            relation, _, places = part.partition(":")
            known = tuple(tails[int(place)] for place in places.split(","))
            found[head, relation] = Known(head, relation, known)
    return found


@lru_cache(maxsize=20_000)
def split_of(head: str) -> str:
    """The split of a head, a function of its name."""
    place = mix("relations", head) % 10_000 / 10_000
    for split, share in SHARES.items():
        place -= share
        if place < 0:
            return split
    return "test"


@lru_cache(maxsize=8)
def known(split: str) -> list[Known]:
    """All that is known of the heads of a split: train, pool, val, test. Do not change the list."""
    if split not in SHARES:
        raise unknown("split of the relations", split, SHARES, f"There are {', '.join(SHARES)}.")
    return [row for row in world().values() if split_of(row.head) == split]


def heads(split: str) -> list[str]:
    """The heads of a split, in alphabetical order."""
    return list(dict.fromkeys(row.head for row in known(split)))


def relations_of(head: str) -> list[str]:
    """The relations in which something is known of a head; none for a head that the world has not."""
    return [relation for relation in PHRASES if (head, relation) in world()]


@lru_cache(maxsize=8)
def triples(split: str) -> list[Example]:
    """One row for each head and relation: the prompt of `prompt_of`, and one true tail."""
    rows = []
    for row in known(split):
        draws = Draws("relations", "reference", row.head, row.relation)
        place = 0
        while place < len(row.tails) - 1 and not draws.chance(0.6):
            place += 1
        identity = f"{split}/{row.head}/{row.relation}"
        rows.append(Example(identity, prompt_of(row.head, row.relation), row.tails[place][0]))
    return rows


def part(rows: list[Example], number: int) -> list[Example]:
    """So many of the rows, the first in an order that their names draw; 0 for all, in their own order."""
    if not number or number >= len(rows):
        return rows
    return sorted(rows, key=lambda row: mix("relations", "part", row.id))[:number]


def prompt_of(head: str, relation: str) -> str:
    """What a student reads before it writes a tail."""
    phrase(relation)  # refuses an unknown one
    return triple_prompts.prompt_of(head, relation)


def asked(prompt: str) -> tuple[str, str]:
    """Head and relation of a prompt of `prompt_of`.

    Raises:
        KdzooError: it is none, or of another relation.
    """
    head, relation = triple_prompts.asked(prompt)
    phrase(relation)
    return head, relation


def phrase(relation: str, way: int = 0) -> str:
    """One of the ways to say a relation."""
    if relation not in PHRASES:
        raise unknown("relation", relation, PHRASES, f"There are {', '.join(PHRASES)}.")
    return PHRASES[relation][way]


def is_true(head: str, relation: str, tail: str) -> bool:
    """Closed-world truth: whether the tail is a true one, or a synonym of one. Case and outer blanks do not count."""
    row = world().get((head, relation))
    said = tail.strip().lower()
    return row is not None and any(said in synonyms for synonyms in row.tails)


@lru_cache(maxsize=8)
def frequent(relation: str) -> tuple[list[str], list[int]]:
    """The tails that the training heads have in a relation, and how many have each; the most frequent first."""
    phrase(relation)
    counts = Counter(
        synonyms[0] for row in known("train") if row.relation == relation for synonyms in row.tails
    )
    tails = sorted(counts, key=lambda tail: (-counts[tail], tail))
    return tails, [counts[tail] for tail in tails]


def plausible_false(head: str, relation: str, draws: Draws) -> str:
    """A tail that is true of other heads but not of this one, drawn in proportion to how many it is true of."""
    tails, counts = frequent(relation)
    sums = list(accumulate(counts))
    for _ in range(200):
        tail = tails[bisect(sums, draws.below(sums[-1]))]
        if not is_true(head, relation, tail):
            return tail
    raise KdzooError(
        f"every frequent tail of {relation!r} is true of {head!r}: there is no false one to draw."
    )


def texts() -> list[str]:
    """The training text, for tokenizers."""
    return [f"{row.prompt} {tail}" for row, one in zip(triples("train"), known("train"), strict=True)
            for (tail, *_) in one.tails]  # fmt: skip


def words() -> list[str]:
    """All words of heads, relations and the first names of tails, sorted; the marks of a prompt are words too."""
    marks = ("<head>", "</head>", "<relation>", "</relation>", "[GEN]", *PHRASES)
    said = {word for ways in PHRASES.values() for way in ways for word in way.split()}
    for row in world().values():
        said.update(row.head.split())
        said.update(word for synonyms in row.tails for word in synonyms[0].split())
    return [*marks, *sorted(said)]
