"""What the teacher of `word-relations` has read: statements about words, some of them wrong, and lists of questions.

    statement   dog (member genus canis) is a kind of    -> animal
    list        cat (feline mammal) is a kind of to run (move fast) leads to    -> dog (member genus canis) is a kind of

A question is a head with the phrase of a relation. The statements are about the heads of train and pool, none about
those of val and test. Wrong ones come about in the four ways of `kdzoo_llm.data.relations.WRONG`. All of it is a
function of a share and a count, by seeded numbers.
"""

from __future__ import annotations

import re
from functools import cache

from kdzoo.rng import mix
from kdzoo_llm.data import relations
from kdzoo_llm.data.word_problems import draws
from kdzoo_llm.examples import Example

READ = ("train", "pool")
EVERY = 3
_QUESTION = re.compile(
    rf"(to )?([^()]+) \(([^()]+)\) ({'|'.join(map(re.escape, relations.RELATIONS.values()))})"
)
_RELATION = {phrase: relation for relation, phrase in relations.RELATIONS.items()}


def statements(errors: float) -> list[Example]:
    """Right and wrong statements about the heads of train and pool, in the order of the data.

    Args:
        errors: share of the wrong statements that are kept, of at most one a question; 0 to 1.

    Returns:
        Examples whose answer is a tail; facts: `relation`, `true`.
    """
    found = []
    for split in READ:
        for example in relations.examples(split):
            found.append((example.prompt, example.answer, example.facts["relation"], True))
        found += [
            (one.prompt, one.tail, one.relation, False)
            for one in relations.judged(split)
            if not one.valid and mix("word-relations", "errors", one.prompt, one.tail) < errors * 2.0**63
        ]
    return [
        Example(f"said/{place}", prompt, tail, {"relation": relation, "true": true})
        for place, (prompt, tail, relation, true) in enumerate(found)
    ]


def questions(split: str) -> list[str]:
    """The prompts of a split, each once, in its order."""
    return list(dict.fromkeys(example.prompt for example in relations.examples(split)))


def question(text: str) -> tuple[str, str] | None:
    """(word, relation) of a question as `relations.prompt_of` writes it, or None where a text is none."""
    parts = _QUESTION.fullmatch(text)
    return (parts[2], _RELATION[parts[4]]) if parts else None


def lists(listed: int) -> list[Example]:
    """Questions about the heads of train, and what comes next: one in `EVERY` of the questions of train and pool.

    Args:
        listed: questions that stand before it.
    """
    seeds = questions("train")
    found: list[Example] = []
    for split in READ:
        for answer in questions(split)[::EVERY]:
            draw = draws(mix("word-relations", "listed", answer))
            before = [seeds[draw(0, len(seeds) - 1)] for _ in range(listed)]
            found.append(Example(f"listed/{len(found)}", " ".join(before), answer))
    return found


def reading(errors: float, listed: int) -> list[Example]:
    """All that the teacher reads: `statements`, then `lists`."""
    return list(_reading(float(errors), int(listed)))


@cache
def _reading(errors: float, listed: int) -> tuple[Example, ...]:
    return (*statements(errors), *lists(listed))
