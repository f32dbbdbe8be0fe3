"""Short verses from English into Spanish; the settings are in the card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.task import Data
from kdzoo_llm.data import verses
from kdzoo_llm.engine import fit
from kdzoo_llm.examples import Example
from kdzoo_llm.language import Scores, build_model, check_pair, evaluate, loss_terms, served
from kdzoo_llm.translations import corpus_scores

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "examples", "fit", "judge", "loss_terms"]


def examples(run: Run, split: str) -> list[Example]:
    """Verses of at most 16 words on either side."""
    return verses.translations(split)


def data(run: Run, split: str) -> Data:
    """The pool's translations are hidden."""
    return served(run, examples(run, split), labelled=split != "pool")


def judge(run: Run, asked: list[Example], answers: list[str]) -> Scores:
    """BLEU and chrF of the corpus."""
    return corpus_scores(answers, [example.answer for example in asked])
