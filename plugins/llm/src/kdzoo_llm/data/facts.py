"""Pages of invented facts, and questions about them: knowledge that no model can have before it reads them.

For "Knowledge Injection via Prompt Distillation" (2024, https://arxiv.org/abs/2412.14964; card prompt-distillation).
A small model first learns to answer from a page in its prompt (base pages); the facts of the target pages are then
to be moved into its weights. Entities have names of three syllables, and no two entities the same three, so that a new
name has no new word and pages can be told apart by their words alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from kdzoo.errors import KdzooError, unknown
from kdzoo_llm.data import fact_language
from kdzoo_llm.data.draws import Draws
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.fact_language import ATTRIBUTES, SYLLABLES

if TYPE_CHECKING:
    from kdzoo.speakers.scripted import Asked

SIZES = {"base": 3000, "base-val": 200, "target": 20}  # pages
FACTS = 3  # a page
NAME = 3  # syllables
Templates = Literal["train", "test", "all"]


class Fact(NamedTuple):
    attribute: str
    value: str


class Page(NamedTuple):
    """What is known of one entity.

    Attributes:
        id: ``<split>/<number>``.
        entity: its name, syllables with spaces between them.
        facts: in the order in which the text states them.
        text: one sentence a fact.
    """

    id: str
    entity: str
    facts: tuple[Fact, ...]
    text: str


@lru_cache(maxsize=8)
def pages(split: str) -> list[Page]:
    """The pages of "base", "base-val" or "target"; no entity is in two splits. Do not change the list.

    Raises:
        KdzooError: no such split.
    """
    if split not in SIZES:
        raise unknown("split of the invented facts", split, SIZES, f"It has {', '.join(SIZES)}.")
    return _all()[split]


@lru_cache(maxsize=1)
def _all() -> dict[str, list[Page]]:
    splits: dict[str, list[Page]] = {}
    seen: set[frozenset[str]] = set()
    for split in reversed(SIZES):  # the target first: more base pages then leave it as it is
        splits[split] = [_page(split, number, seen) for number in range(SIZES[split])]
    return splits


def _page(split: str, number: int, seen: set[frozenset[str]]) -> Page:
    """A page about somebody new; enters the name's syllables into `seen`."""
    attempt = 0
    while (
        name := frozenset(drawn := Draws("facts", "name", split, number, attempt).some(SYLLABLES, NAME))
    ) in seen:
        attempt += 1
    seen.add(name)
    draws, entity = Draws("facts", "page", split, number), " ".join(drawn)
    facts = tuple(
        Fact(kind, draws.one(ATTRIBUTES[kind].values)) for kind in draws.some(list(ATTRIBUTES), FACTS)
    )
    sentences = [draws.one(ATTRIBUTES[kind].statements).format(e=entity, v=value) for kind, value in facts]
    return Page(f"{split}/{number}", entity, facts, " ".join(sentences))


def questions(page: Page, templates: Templates = "train") -> list[Example]:
    """All questions about a page's facts, without the page.

    Args:
        page: of any split.
        templates: "train"; "test": paraphrases that "train" does not have; "all": both.

    Returns:
        Examples with ids ``<page>/<attribute>/<train|test>/<number>``, whose answer is the value.
    """
    kinds = ("train", "test") if templates == "all" else (templates,)
    return [
        Example(f"{page.id}/{fact.attribute}/{kind}/{number}", template.format(e=page.entity), fact.value)
        for fact in page.facts
        for kind in kinds
        for number, template in enumerate(getattr(ATTRIBUTES[fact.attribute], kind))
    ]


@lru_cache(maxsize=4)
def base(split: str, per_fact: int = 1, distractors: int = 0) -> list[Example]:
    """Rows that teach a model to read: a page in the prompt, a question behind it.

    Any template may ask: the test's are known as questions about other entities.

    Args:
        split: "base" or "base-val".
        per_fact: questions for each fact, drawn from all of its templates.
        distractors: so many other pages of the split are in the prompt too, in a drawn order, as after a retrieval.
    """
    rows = []
    for at, page in enumerate(pages(split)):
        asked = questions(page, "all")
        each = len(asked) // FACTS
        for number in range(FACTS):
            draws = Draws("facts", "base", page.id, number)
            chosen = draws.some(asked[number * each : (number + 1) * each], per_fact)
            shown = [page]
            if distractors:
                others = draws.some(range(1, SIZES[split]), distractors)
                shown = draws.some(
                    [page, *(pages(split)[(at + by) % SIZES[split]] for by in others)], distractors + 1
                )
            rows += [row._replace(prompt=with_page(shown, row.prompt)) for row in chosen]
    return rows


def with_page(page: Page | Sequence[Page], question: str | Example) -> str:
    """The prompt of the teacher: the page, or the pages that were retrieved, before the question."""
    read = [page] if isinstance(page, Page) else page
    return " ".join([*(one.text for one in read), closed_book(question)])


def closed_book(question: str | Example) -> str:
    """The prompt of the student: the question alone."""
    return question.prompt if isinstance(question, Example) else question


def is_correct(example: Example, text: str) -> bool:
    """Whether a text contains the answer as whole words, whatever the case and the punctuation."""
    return f" {_plain(example.answer)} " in f" {_plain(text)} "


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def retrieve(question: str | Example, pages: Sequence[Page], k: int = 1) -> list[Page]:
    """The k pages that fit a question best: BM25 over words, punctuation aside.

    score = sum over the question's words w of idf(w) f (K1 + 1) / (f + K1 (1 - B + B length / mean length)), with f
    how often the page has w, and idf(w) = ln(1 + (N - n + 1/2) / (n + 1/2)) where n of N pages have w.

    Source: Robertson and Zaragoza, "The probabilistic relevance framework: BM25 and beyond", 2009, equation 3.15;
    idf with 1 added, as Lucene has it, so that no word counts against a page. Equal scores: the earlier page first.
    """
    k1, b = 1.2, 0.75  # Lucene's defaults
    counts = [Counter(_plain(page.text).split()) for page in pages]
    lengths = [sum(count.values()) for count in counts]
    mean = sum(lengths) / max(len(lengths), 1)
    scores = [0.0] * len(pages)
    for word in _plain(closed_book(question)).split():
        have = sum(word in count for count in counts)
        idf = math.log(1 + (len(pages) - have + 0.5) / (have + 0.5))
        for number, count in enumerate(counts):
            f = count[word]
            scores[number] += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * lengths[number] / mean))
    return [pages[number] for number in sorted(range(len(pages)), key=lambda at: (-scores[at], at))[:k]]


def ask_script(asked: Asked) -> str:
    """A question about the page that is the prompt, with a training template; for a `ScriptedSpeaker`.

    Raises:
        KdzooError: the prompt is no page.
    """
    text = asked.prompt if isinstance(asked.prompt, str) else ""
    known = _stated(text)
    if not known:
        raise KdzooError(
            f"request {asked.request.id!r}: the prompt is no page of kdzoo_llm.data.facts, so there is nothing to ask "
            "about. Give it the text of a page and nothing else."
        )
    which, how = (float(draw) for draw in asked.uniforms(2))
    entity, attribute = known[int(which * len(known))]
    templates = ATTRIBUTES[attribute].train
    return templates[int(how * len(templates))].format(e=entity)


def _stated(text: str) -> list[tuple[str, str]]:
    """(entity, attribute) of each sentence of a page; empty where one is no statement."""
    found = []
    for sentence in re.findall(r"[^.]+\.", text):
        fits = [
            (match["e"], name)
            for name, attribute in ATTRIBUTES.items()
            for statement in attribute.statements
            if (match := re.fullmatch(_pattern(statement), sentence.strip()))
            and match["v"] in attribute.values
        ]
        if len(fits) != 1 or not set(fits[0][0].split()) <= set(SYLLABLES):
            return []
        found += fits
    return found


def _pattern(statement: str) -> str:
    """A statement's template as a regular expression."""
    return re.escape(statement).replace(r"\{e\}", r"(?P<e>\w+(?: \w+)*)").replace(r"\{v\}", r"(?P<v>\w+)")


def words() -> list[str]:
    """All words of pages, questions and answers, sorted."""
    return fact_language.words()
