"""Word relations whose truth is known; the settings are in the card.

Beside the hooks of a language task the module answers what a method that generates statements asks: `seeds`, `parse`,
`reserved`, `surface`, and `judge` in the place of people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from kdzoo.rng import mix
from kdzoo.task import Data
from kdzoo_llm.data import relation_texts, relations
from kdzoo_llm.data.word_problems import draws
from kdzoo_llm.engine import fit
from kdzoo_llm.examples import Example
from kdzoo_llm.language import Scores, build_model, check_pair, evaluate, loss_terms, served

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = [
    "build_model",
    "check_pair",
    "data",
    "evaluate",
    "examples",
    "fit",
    "judge",
    "loss_terms",
    "parse",
    "reserved",
    "seeds",
    "surface",
]


def examples(run: Run, split: str) -> list[Example]:
    """Triples; of train those that people wrote for the student, or all that the teacher has read."""
    if split != "train":
        return relations.examples(split)
    if run.cfg["reads"] == "texts":
        return relation_texts.reading(run.cfg["errors"], run.cfg["listed"])
    found = relations.examples("train")
    ranked = sorted(range(len(found)), key=lambda place: mix("word-relations", "labelled", found[place].id))
    return [found[place] for place in sorted(ranked[: int(run.cfg["labelled"])])]


def data(run: Run, split: str) -> Data:
    """The pool's answers are hidden."""
    return served(run, examples(run, split), labelled=split != "pool")


def judge(run: Run, asked: list[Example], answers: list[str]) -> Scores:
    """Whether a triple holds, by all of WordNet; and how many different tails were written."""
    right = torch.tensor(
        [holds(one, answer) for one, answer in zip(asked, answers, strict=True)], dtype=torch.float32
    )
    found: dict[str, torch.Tensor | float] = {"acceptance": right}
    found["distinct"] = len({answer.strip() for answer in answers}) / max(1, len(answers))
    kinds = torch.tensor([one.facts["relation"] == "hypernym" for one in asked], dtype=torch.bool)
    for name, rows in (("hypernym", kinds), ("other", ~kinds)):
        if rows.any():
            found[f"acceptance[{name}]"] = right[rows]
    return found


def holds(asked: Example, answer: str) -> bool:
    """Whether WordNet has the relation between the head asked about and the tail answered."""
    return relations.is_true(asked.facts["head"], asked.facts["relation"], answer)


def seeds(run: Run) -> list[str]:
    """Questions that people wrote: of the heads of train, in an order in which parts of speech are mixed."""
    return sorted(
        relation_texts.questions("train"), key=lambda question: mix("word-relations", "seed", question)
    )


def parse(question: str) -> Mapping[str, Any] | None:
    """Head and relation of a question, or None for another text."""
    found = relation_texts.question(question)
    return {"head": found[0], "relation": found[1]} if found else None


def reserved() -> frozenset[str]:
    """Heads that val and test ask about: nothing is generated about them, since labels would tell their answers."""
    return frozenset(head.word for split in ("val", "test") for head in relations.heads(split))


def surface(question: str, number: int) -> str:
    """A question in other words for the same: its hint's words in another order; number 0 is the question itself."""
    start, end = question.find(" ("), question.find(") ")
    if number == 0 or start < 0 or end < start:
        return question
    words, draw = (
        question[start + 2 : end].split(" "),
        draws(mix("word-relations", "surface", question, number)),
    )
    for place in range(len(words) - 1, 0, -1):
        other = draw(0, place)
        words[place], words[other] = words[other], words[place]
    return f"{question[: start + 2]}{' '.join(words)}{question[end:]}"
