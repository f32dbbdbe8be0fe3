"""What the teacher of `word-relations` has read: many statements about words, some of them wrong, and lists of questions.

    statement   dog (member genus canis) is a kind of            -> animal
    with shots  cat (feline mammal) is a kind of animal dog (member genus canis) is a kind of    -> animal
    list        cat (feline mammal) is a kind of to run (move fast) leads to    -> dog (member genus canis) is a kind of

A question is a head with the phrase of a relation. The statements are about the heads of train and pool, none about
those of val and test. Wrong ones come about in the four ways of `kdzoo_llm.data.relations.WRONG`. All of it is a
function of a share and of counts, by seeded numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from kdzoo.rng import mix
from kdzoo_llm.data import relations
from kdzoo_llm.data.word_problems import draws
from kdzoo_llm.examples import Example

READ = ("train", "pool")
WITH_SHOTS = 3
"""One of so many statements stands behind others about the same relation."""


def statements(errors: float) -> list[Example]:
    """Right and wrong statements about the heads of train and pool, in the order of the data.

    Args:
        errors: share of the wrong statements that are kept, of about one a question; 0 to 1.

    Returns:
        Examples whose answer is a tail; facts: `relation`, `true`.
    """
    found = []
    for split in READ:
        for example in relations.examples(split):
            tails = [example.answer] if split == "train" else example.facts["tails"]
            found += [(example.prompt, tail, example.facts["relation"], True) for tail in tails]
        found += [
            (one.prompt, one.tail, one.relation, False)
            for one in relations.judged(split)
            if not one.valid and _share("errors", one.prompt, one.tail) < errors
        ]
    return [
        Example(f"read/{place}", prompt, tail, {"relation": relation, "true": true})
        for place, (prompt, tail, relation, true) in enumerate(found)
    ]


def questions(split: str) -> list[Example]:
    """One a head and relation, its prompt as it is asked; the answer is empty."""
    unique = {example.prompt: example for example in relations.examples(split)}
    return [
        Example(f"asked/{prompt}", prompt, "", {"relation": example.facts["relation"]})
        for prompt, example in unique.items()
    ]


def reading(errors: float, shots: int, listed: int) -> list[Example]:
    """All that the teacher reads.

    Args:
        errors: as in `statements`.
        shots: statements before one that has some.
        listed: questions that stand in a list before the next one.

    Returns:
        Statements, every third behind `shots` others about the same relation; then lists, one for each question.
    """
    return list(_reading(float(errors), int(shots), int(listed)))


@cache
def _reading(errors: float, shots: int, listed: int) -> tuple[Example, ...]:
    found = []
    said = statements(errors)
    alike: dict[str, list[Example]] = {}
    for one in said:
        alike.setdefault(one.facts["relation"], []).append(one)
    for place, one in enumerate(said):
        prompt = one.prompt
        if shots and place % WITH_SHOTS == 0:
            chosen = _drawn(alike[one.facts["relation"]], shots, "shots", one.id)
            prompt = " ".join([*(f"{shot.prompt} {shot.answer}" for shot in chosen), prompt])
        found.append(Example(one.id, prompt, one.answer, one.facts))
    seeds = questions("train")
    for split in READ:
        for one in questions(split):
            before = _drawn(seeds, listed, "listed", one.id)
            found.append(Example(one.id, " ".join(seed.prompt for seed in before), one.prompt, one.facts))
    return tuple(found)


def _drawn(items: Sequence[Example], count: int, *key: str) -> list[Example]:
    draw = draws(mix("word-relations", *key))
    return [items[draw(0, len(items) - 1)] for _ in range(count)]


def _share(*key: str) -> float:
    """A number in [0, 1) that belongs to a key."""
    return mix("word-relations", *key) / 2.0**63
