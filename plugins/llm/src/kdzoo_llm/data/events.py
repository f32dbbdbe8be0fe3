"""Events of everyday life and what is said of them in seven relations: phrases, names of persons, prompts.

An event is a short sentence about PersonX and perhaps PersonY. Whoever reads one that is to be judged, or continues a
list of examples, is given first names in their place, since real text has names.

Source: peterwestai2/symbolic-knowledge-distillation@7fa8cbf, unless called ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from kdzoo_llm.data.draws import Draws
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.triple_prompts import asked

PERSON_X, PERSON_Y = "PersonX", "PersonY"


class Relation(NamedTuple):
    """How a relation is put into words.

    Attributes:
        phrase: what the critic reads between the head and the tail (purification_code/classify.py).
        question: what stands above the teacher's examples; ours, of the official sense.
        frame: the line that the teacher continues with a tail, after the head; ours, of the official sense.
    """

    phrase: str
    question: str
    frame: str


RELATIONS = {
    "xAttr": Relation(
        "so, PersonX is seen as",
        "How are people seen when something happens?",
        "So people think that PersonX is",
    ),
    "xReact": Relation(
        "as a result, PersonX feels",
        "How do people feel after something happens?",
        "As a result, PersonX feels",
    ),
    "xEffect": Relation(
        "as a result, PersonX",
        "What happens to people after an event?",
        "As a result, PersonX",
    ),
    "xIntent": Relation(
        "because PersonX wanted",
        "Why do people do what they do?",
        "This is because PersonX wanted",
    ),
    "xWant": Relation(
        "as a result, PersonX wants",
        "What do people want after an event?",
        "As a result, PersonX wants",
    ),
    "xNeed": Relation(
        "but before, PersonX needed",
        "What do people need before an event can happen?",
        "But before, PersonX needed",
    ),
    "HinderedBy": Relation(
        "can be hindered by",
        "What can keep an event from happening?",
        "This is hindered if",
    ),
}

OPEN_NAMES = ("Alex", "Chris")
"""PersonX and PersonY in the line that the teacher is to complete."""

NAMES = (
    "Adrian", "Ali", "Avery", "Blake", "Casey", "Charlie", "Dana", "Devin", "Drew", "Emerson", "Finley", "Glen",
    "Hunter", "Jamie", "Jean", "Jesse", "Jordan", "Kelly", "Lee", "Leslie", "Lindsay", "Max", "Morgan", "Nicky", "Noel",
    "Pat", "Riley", "Robin", "Rowan", "Ryan", "Sam", "Sydney", "Taylor", "Wyatt",
)  # fmt: skip
"""First names that women and men have; the official prompts have 30 such, its critic any first name."""


def named(text: str, x: str, y: str) -> str:
    """The text with names in the place of PersonX and PersonY."""
    return text.replace(PERSON_X, x).replace(PERSON_Y, y)


def unnamed(text: str) -> str:
    """The names of the teacher's open line turned back; whole words only, so that "Alexander" stays."""
    for name, person in zip(OPEN_NAMES, (PERSON_X, PERSON_Y), strict=True):
        text = re.sub(rf"\b{name}\b", person, text)
    return text


def head_prompt(seeds: Sequence[str]) -> str:
    """A numbered list of events, its last number open (generate_events.ipynb)."""
    listed = [f"{number}. Event: {seed}" for number, seed in enumerate(seeds, 1)]
    return "\n".join([*listed, f"{len(seeds) + 1}. Event:"])


def tail_prompt(head: str, relation: str, shown: Sequence[Example]) -> str:
    """A question, worked examples of one relation under drawn names, and the same line begun for `head`.

    Args:
        head: an event.
        relation: a key of `RELATIONS`.
        shown: rows of this relation; at most 17, each takes two names.
    """
    how = RELATIONS[relation]
    names = Draws("events", "shown", head).some(NAMES, 2 * len(shown))
    lines = [how.question]
    for number, example in enumerate(shown, 1):
        told = f"{number}. {asked(example.prompt)[0]}. {how.frame} {example.answer}."
        lines.append(named(told, *names[2 * number - 2 : 2 * number]))
    lines.append(named(f"{len(shown) + 1}. {head}. {how.frame}", *OPEN_NAMES))
    return "\n".join(lines)


def said_in_ways(head: str, relation: str, tail: str, number: int) -> list[tuple[str, str]]:
    """The pair that a critic reads, under `number` drawn pairs of names: the event, and what is said of it."""
    found = []
    for way in range(number):
        x, y = Draws("events", "judged", head, relation, tail, way).some(NAMES, 2)
        found.append((named(head, x, y), named(f"{RELATIONS[relation].phrase} {tail}", x, y)))
    return found
