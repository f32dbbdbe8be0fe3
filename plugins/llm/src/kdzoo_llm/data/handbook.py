"""A handbook that is read, then known by heart (task `handbook`): what Prompt Distillation is for (arXiv 2412.14964).

A page tells three things of a machine with an invented name. The base model has learned to answer questions about
a page in its prompt (`base_examples`), on pages whose facts are drawn anew every time, so it knows how to read and none
of the handbook's facts.

    teacher  Velm is red. Velm makes soap. Anna runs Velm. What colour is Velm?     reads the page
    student  What colour is Velm?                                                   must come to know it
    answer   red

Every fact is asked for in `ASKED` wordings. Splits share the facts, which are what is to be learned, never a wording:
val and test ask in words that training did not use, but that the base model knows. So that questions can be made by the
model itself, the base model also learned to ask: a page and `ASK` give a question about that page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TypeVar

from kdzoo.errors import unknown
from kdzoo.rng import mix
from kdzoo_llm.data.draws import Draw, draws
from kdzoo_llm.examples import Example

T = TypeVar("T")

SPLITS = ("train", "pool", "val", "test")
BASE_SIZES = {"train": 20_000, "val": 400}
ASK = "Ask:"
ASKING = 15  # percent of the base model's examples that make a question
TOLD = 3  # things that a page tells of its machine
WORDINGS = {"train": (0, 1), "pool": (2, 3, 4), "val": (5,), "test": (6,)}
"""Split -> places in a relation's questions."""

NAMES = tuple(
    """Velm Torin Arba Quist Nolpa Fenra Dulo Mirk Sarto Pelda Gruno Hesk Ilmo Jarn
    Kelto Lurba Ostin Rimpa Tasko Ubra Wendo Yolt Zarn Belk Corvi Drema Elbu Fosk
    Gilta Hurno Irpa Jelto Krim Lodra Mesto Nurk Orbal Prent Ruska Silmo""".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact: how it is told, how it is asked for (by split, see `WORDINGS`), what it may be."""

    told: str
    questions: tuple[str, ...]
    values: tuple[str, ...]


RELATIONS: Mapping[str, Relation] = MappingProxyType(
    {
        "colour": Relation(
            "{name} is {value}.",
            (
                "What colour is {name}?", "Which colour does {name} have?", "Tell me the colour of {name}.",
                "The colour of {name} is which?", "{name} has what colour?", "What is the colour of {name}?",
                "Tell me what colour {name} has.",
            ),
            ("red", "blue", "green", "black", "white", "yellow", "brown", "grey"),
        ),
        "place": Relation(
            "{name} stands in the {value}.",
            (
                "What place is {name} in?", "Which place does {name} have?", "Tell me the place of {name}.",
                "The place of {name} is which?", "{name} has what place?", "What is the place of {name}?",
                "Tell me what place {name} has.",
            ),
            ("hall", "cellar", "attic", "garden", "yard", "tower", "kitchen", "garage"),
        ),
        "keeper": Relation(
            "{value} runs {name}.",
            (
                "What keeper is there for {name}?", "Which keeper does {name} have?", "Tell me the keeper of {name}.",
                "The keeper of {name} is which?", "{name} has what keeper?", "What is the keeper of {name}?",
                "Tell me what keeper {name} has.",
            ),
            ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo"),
        ),
        "day": Relation(
            "{name} rests on {value}.",
            (
                "What day is free for {name}?", "Which day does {name} have?", "Tell me the day of {name}.",
                "The day of {name} is which?", "{name} has what day?", "What is the day of {name}?",
                "Tell me what day {name} has.",
            ),
            ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
        ),
        "fuel": Relation(
            "{name} needs {value}.",
            (
                "What fuel is right for {name}?", "Which fuel does {name} have?", "Tell me the fuel of {name}.",
                "The fuel of {name} is which?", "{name} has what fuel?", "What is the fuel of {name}?",
                "Tell me what fuel {name} has.",
            ),
            ("oil", "coal", "gas", "wood", "steam", "wind", "peat", "wax"),
        ),
        "ware": Relation(
            "{name} makes {value}.",
            (
                "What ware is made by {name}?", "Which ware does {name} have?", "Tell me the ware of {name}.",
                "The ware of {name} is which?", "{name} has what ware?", "What is the ware of {name}?",
                "Tell me what ware {name} has.",
            ),
            ("paper", "glass", "rope", "bread", "soap", "nails", "cloth", "bricks"),
        ),
    }
)  # fmt: skip
ASKED = 7  # wordings of every question


@dataclass(frozen=True, slots=True)
class Fact:
    """What is told of a machine."""

    name: str
    relation: str
    value: str

    @property
    def text(self) -> str:
        """The sentence that tells it."""
        return RELATIONS[self.relation].told.format(name=self.name, value=self.value)

    def question(self, wording: int) -> str:
        """A question for its value."""
        return RELATIONS[self.relation].questions[wording].format(name=self.name)


@dataclass(frozen=True, slots=True)
class Page:
    """Facts about one machine, in any order."""

    facts: tuple[Fact, ...]

    @property
    def text(self) -> str:
        """What the teacher reads."""
        return " ".join(fact.text for fact in self.facts)


@cache
def pages() -> tuple[Page, ...]:
    """The handbook: each name on one page."""
    return tuple(_page(name, draws(mix("handbook", "page", name))) for name in NAMES)


@cache
def known() -> frozenset[Fact]:
    """All facts of the handbook; no page of a base model tells one of them."""
    return frozenset(fact for page in pages() for fact in page.facts)


def _page(name: str, draw: Draw) -> Page:
    relations = _shuffled(list(RELATIONS), draw)[:TOLD]
    values = [RELATIONS[relation].values for relation in relations]
    facts = (Fact(name, r, of[draw(0, len(of) - 1)]) for r, of in zip(relations, values, strict=True))
    return Page(tuple(facts))


def _shuffled(rows: list[T], draw: Draw) -> list[T]:
    for last in range(len(rows) - 1, 0, -1):
        other = draw(0, last)
        rows[last], rows[other] = rows[other], rows[last]
    return rows


def examples(split: str) -> list[Example]:
    """Questions about the handbook, without its pages.

    Args:
        split: "train", "pool" (whose answers methods may not use), "val" or "test".

    Returns:
        Examples with prompt "What colour is Velm?" and answer "red"; facts: `page` (text), `teacher_prompt` (the page
        and the question), `number` (of the page), `name`, `relation`, `value`, `wording`.

    Raises:
        KdzooError: no such split.
    """
    if split not in SPLITS:
        raise unknown("split of handbook", split, SPLITS, f"It has {', '.join(SPLITS)}.")
    return list(_examples(split))


@cache
def _examples(split: str) -> tuple[Example, ...]:
    found: list[Example] = []
    for wording in WORDINGS[split]:
        for number, page in enumerate(pages()):
            for fact in page.facts:
                prompt = fact.question(wording)
                facts = {
                    "page": page.text,
                    "teacher_prompt": teacher_prompt(page.text, prompt),
                    "number": number,
                    "name": fact.name,
                    "relation": fact.relation,
                    "value": fact.value,
                    "wording": wording,
                }
                found.append(Example(f"{split}/{len(found)}", prompt, fact.value, facts))
    return tuple(found)


def teacher_prompt(page: str, question: str) -> str:
    """What the teacher reads to answer."""
    return f"{page} {question}"


def asking_prompt(page: str) -> str:
    """What a model reads to make a question about a page."""
    return f"{page} {ASK}"


def base_examples(split: str) -> list[Example]:
    """What makes a base model that reads pages: answers to questions, and questions.

    Args:
        split: "train" or "val"; pages are drawn anew for every row and tell no fact of the handbook.

    Returns:
        Examples whose prompt holds a page; facts: `kind` ("answer" or "ask"), `name`, `relation`, `value`.

    Raises:
        KdzooError: no such split.
    """
    if split not in BASE_SIZES:
        raise unknown("split of a base model", split, BASE_SIZES, f"It has {', '.join(BASE_SIZES)}.")
    return list(_base_examples(split))


@cache
def _base_examples(split: str) -> tuple[Example, ...]:
    found = []
    for number in range(BASE_SIZES[split]):
        draw = draws(mix("handbook", "base", split, number))
        page = None
        while page is None or not known().isdisjoint(page.facts):
            page = _page(NAMES[draw(0, len(NAMES) - 1)], draw)
        fact = page.facts[draw(0, len(page.facts) - 1)]
        question = fact.question(draw(0, ASKED - 1))
        asks = draw(1, 100) <= ASKING
        prompt = asking_prompt(page.text) if asks else teacher_prompt(page.text, question)
        facts = {
            "kind": "ask" if asks else "answer",
            "name": fact.name,
            "relation": fact.relation,
            "value": fact.value,
        }
        found.append(Example(f"base-{split}/{number}", prompt, question if asks else fact.value, facts))
    return tuple(found)


def fact_of(question: str) -> tuple[str, str] | None:
    """(name, relation) that a question asks for, None where it is no question of this handbook's language."""
    return _questions().get(question.strip())


@cache
def _questions() -> dict[str, tuple[str, str]]:
    return {
        Fact(name, relation, "").question(wording): (name, relation)
        for name in NAMES
        for relation in RELATIONS
        for wording in range(ASKED)
    }


def is_right(text: str, example: Example) -> bool:
    """Whether a model's text is the value told on the page; a full stop may follow."""
    return text.strip().removesuffix(".") == example.facts["value"]
