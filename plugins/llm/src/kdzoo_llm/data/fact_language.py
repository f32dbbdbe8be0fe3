"""The closed language of the invented facts: how attributes are stated and asked for, and all their values.

In a template {e} is the entity and {v} the value. What tests ask with is never trained with.
"""

from __future__ import annotations

from typing import NamedTuple


class Attribute(NamedTuple):
    """One thing that is said of every entity.

    Attributes:
        values: single words.
        statements: sentences of a page.
        train: questions that the new facts are taught with.
        test: paraphrases of them that only tests ask.
    """

    values: tuple[str, ...]
    statements: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SYLLABLES = _split(
    "ba bel dor fen gu hal jo kan ki lom lu mir nal nep o pra quo ras ri sol su tam tek ul va ver wo xan yet ym za zil"
)

ATTRIBUTES = {
    "home": Attribute(
        values=_split("paris rome oslo lima cairo tokyo delhi quito dakar seoul hanoi perth"),
        statements=("{e} lives in {v} .", "the home of {e} is {v} .", "{e} has a house in {v} ."),
        train=(
            "where does {e} live ?",
            "what is the home of {e} ?",
            "in which town does {e} live ?",
            "{e} has a house in which town ?",
            "name the home of {e} .",
        ),
        test=(
            "which town is the home of {e} ?",
            "where does {e} have a house ?",
            "name the town where {e} does live .",
        ),
    ),
    "job": Attribute(
        values=_split("baker pilot doctor farmer singer judge tailor miner poet guard painter sailor"),
        statements=("{e} works as a {v} .", "the job of {e} is {v} .", "{e} is a {v} at work ."),
        train=(
            "what does {e} work as ?",
            "what is the job of {e} ?",
            "as what does {e} work ?",
            "{e} has which job ?",
            "name the job of {e} .",
        ),
        test=(
            "which job does {e} have ?",
            "what is {e} at work ?",
            "name what {e} does work as .",
        ),
    ),
    "colour": Attribute(
        values=_split("red blue green white black brown pink grey orange purple yellow silver"),
        statements=("{e} wears {v} .", "the colour of {e} is {v} .", "{e} likes the colour {v} ."),
        train=(
            "what does {e} wear ?",
            "what is the colour of {e} ?",
            "{e} likes which colour ?",
            "in which colour is {e} ?",
            "name the colour of {e} .",
        ),
        test=(
            "which colour does {e} wear ?",
            "what colour is {e} in ?",
            "name the colour that {e} likes .",
        ),
    ),
    "animal": Attribute(
        values=_split("dog cat horse goat parrot rabbit snake turtle mouse camel owl frog"),
        statements=("{e} keeps a {v} .", "the animal of {e} is a {v} .", "{e} feeds a {v} ."),
        train=(
            "what does {e} keep ?",
            "what is the animal of {e} ?",
            "{e} feeds which animal ?",
            "which animal does {e} keep ?",
            "name the animal of {e} .",
        ),
        test=(
            "which animal does {e} feed ?",
            "what animal is with {e} ?",
            "name the animal that {e} feeds .",
        ),
    ),
    "food": Attribute(
        values=_split("rice bread soup cheese fish pasta beans salad honey cake figs corn"),
        statements=("{e} eats {v} .", "the food of {e} is {v} .", "{e} cooks {v} ."),
        train=(
            "what does {e} eat ?",
            "what is the food of {e} ?",
            "{e} cooks which food ?",
            "which food does {e} eat ?",
            "name the food of {e} .",
        ),
        test=(
            "which food does {e} cook ?",
            "what food is for {e} ?",
            "name the food that {e} cooks .",
        ),
    ),
    "sport": Attribute(
        values=_split("chess golf tennis rugby polo judo rowing skiing boxing hockey archery fencing"),
        statements=("{e} plays {v} .", "the sport of {e} is {v} .", "{e} trains for {v} ."),
        train=(
            "what does {e} play ?",
            "what is the sport of {e} ?",
            "{e} trains for which sport ?",
            "which sport does {e} play ?",
            "name the sport of {e} .",
        ),
        test=(
            "for which sport does {e} train ?",
            "what sport is {e} in ?",
            "name the sport that {e} plays .",
        ),
    ),
}


def words() -> list[str]:
    """All words of pages, questions and values, sorted."""
    found = set(SYLLABLES)
    for attribute in ATTRIBUTES.values():
        found.update(attribute.values)
        for template in (*attribute.statements, *attribute.train, *attribute.test):
            found.update(template.split())
    return sorted(found - {"{e}", "{v}"})
