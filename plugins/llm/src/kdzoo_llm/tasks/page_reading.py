"""Pages of invented facts: the teacher reads them, the student has to know them; the settings are in the card.

Beside the hooks of a task there is what a method that generates its own training text asks for: `documents` (the new
knowledge), `asker` and `question_prompt` (who asks about it), `reserved` (what must not be asked). The id of a row
that is about a document begins with the document's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.speakers.scripted import ScriptedSpeaker
from kdzoo.speakers.speech import Message, Speaker
from kdzoo.task import Data
from kdzoo_llm.data import facts
from kdzoo_llm.data.examples import Example
from kdzoo_llm.decoding import Way, write
from kdzoo_llm.engine import fit
from kdzoo_llm.language import build_model, check_pair, loss_terms, measure, readings, share
from kdzoo_llm.models import LanguageModel
from kdzoo_llm.sequences import TEXT, Rows, data_of

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = [
    "asker",
    "build_model",
    "check_pair",
    "data",
    "documents",
    "evaluate",
    "fit",
    "loss_terms",
    "question_prompt",
    "reserved",
    "teacher_prompt",
]

VALIDATED = 1
"""Of the paraphrases that no training question has, the first so many are for choices, the others for the test."""

READ_AT_ONCE = 128


def teacher_prompt(example: Example) -> str:
    """The page that a question is about, then the question; rows of other pages have what is to be read in them."""
    page = _pages().get("/".join(example.id.split("/")[:2]))
    return f"{page} {example.prompt}" if page is not None and example.prompt else example.prompt


def documents(run: Run) -> Mapping[str, str]:
    """The new knowledge: id of a page -> its text."""
    return _pages()


@lru_cache(maxsize=1)
def _pages() -> Mapping[str, str]:
    return {page.id: page.text for page in facts.pages("target")}


def asker(run: Run) -> Speaker:
    """Who asks where no language model does: a program, since a model of this size writes no questions."""
    return ScriptedSpeaker(facts.ask_script, "questions about invented facts")


def question_prompt(text: str) -> tuple[Message, ...]:
    """What a hosted model is told that is to ask about a page."""
    return (
        Message(
            "user",
            f"Text: {text}\n\nWrite one question about a fact that is stated in the text. The one who will answer it "
            "does not see the text, so name whom you ask about. Write in lower case with blanks around punctuation, "
            "and nothing but the question.",
        ),
    )


def reserved(run: Run) -> frozenset[str]:
    """Questions of val and test; nothing that is trained on may ask them."""
    return frozenset(question.prompt for split in ("val", "test") for question in _questions(split))


def _questions(split: str) -> list[Example]:
    """The paraphrases of one split, about every fact of the target pages."""
    every = [question for page in facts.pages("target") for question in facts.questions(page, "test")]
    number = {question.id: int(question.id.rpartition("/")[2]) for question in every}
    return [question for question in every if (number[question.id] < VALIDATED) == (split == "val")]


@lru_cache(maxsize=8)
def _examples(split: str, corpus: str) -> list[Example]:
    if split != "train":
        return _questions(split)
    if corpus == "pages":
        return [Example(f"{page.id}/text", "", page.text) for page in facts.pages("target")]
    return [*facts.base("base", per_fact=1), *facts.base("base", per_fact=1, distractors=1)]


def data(run: Run, split: str) -> Data:
    """Train: the target pages as they are, or (what the base learns from) questions behind other pages. Val and test:
    paraphrased questions about the target pages, at the end behind what was retrieved, if that is asked for."""
    retrieved = int(run.cfg["eval.retrieve"]) if getattr(run, "stage", "") == "evaluate" else 0
    settings = ("vocabulary", "teacher_vocabulary", "prompt_length", "answer_length", "pad")
    return _data(split, str(run.cfg["corpus"]), retrieved, tuple((name, run.cfg[name]) for name in settings))


@lru_cache(maxsize=16)
def _data(split: str, corpus: str, retrieved: int, settings: tuple[tuple[str, Any], ...]) -> Data:
    seen: Callable[[Example], str] | None = None
    if retrieved and split != "train":
        seen = _after_retrieval(retrieved)
    views = readings(dict(settings), teacher_prompt=teacher_prompt, student_prompt=seen)
    return data_of(_examples(split, corpus), views)


def _after_retrieval(k: int) -> Callable[[Example], str]:
    """A question behind the k pages that BM25 finds for it among the target pages and those that nobody asks about."""
    among = [*facts.pages("target"), *facts.pages("base-val")]
    return lambda example: facts.with_page(facts.retrieve(example, among, k), example)


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """Answers without the page; at the end, too, whether a page in the prompt is still read."""
    found = measure(run, split, judge)
    if run.stage == "evaluate":
        for role, suffix in run.shipped():
            found[f"reading{suffix}"] = reading(run, role)
    return found


def judge(run: Run, texts: Sequence[str], split: str) -> dict[str, Metric]:
    """Whether an answer holds the value that was asked for."""
    asked = _questions(split)[: len(texts)]  # a split may list its first rows only
    right = [facts.is_correct(example, text) for example, text in zip(asked, texts, strict=True)]
    return {"accuracy": share(right)}


def reading(run: Run, role: str) -> Metric:
    """How often a model answers from a page in its prompt: a question about each page of base-val."""
    model = run.models[role]
    assert isinstance(model, LanguageModel)
    rows = Rows(facts.base("base-val")[:: facts.FACTS], readings(run.cfg))
    way, right = Way(int(run.cfg["answer_length"])), []
    for first in range(0, len(rows), READ_AT_ONCE):
        asked = rows.examples[first : first + READ_AT_ONCE]
        prompts = [row.prompt for row in rows.encoded(TEXT)[first : first + READ_AT_ONCE]]
        said = [model.vocabulary.decode(ids) for ids in write(model, prompts, way).ids]
        right += [facts.is_correct(example, text) for example, text in zip(asked, said, strict=True)]
    return share(right)
