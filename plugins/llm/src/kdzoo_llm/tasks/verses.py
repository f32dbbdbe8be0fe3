"""Verses, to be continued; the settings are in the card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.task import Data
from kdzoo_llm.data import verses
from kdzoo_llm.engine import fit
from kdzoo_llm.examples import Example
from kdzoo_llm.language import build_model, check_pair, evaluate, loss_terms, served

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "examples", "fit", "loss_terms"]

MEASURED = {"val": 500, "test": 1500}
"""Verses that are measured on, spread over the split: more would cost more than they tell."""


def examples(run: Run, split: str) -> list[Example]:
    """Verses of 8 words or more; `labelled` of the training ones, spread over all books, have their rest."""
    found = verses.continuations(split)
    count = int(run.cfg["labelled"]) if split == "train" else MEASURED.get(split, len(found))
    return found[:: len(found) // count][:count] if count < len(found) else found


def data(run: Run, split: str) -> Data:
    """The pool's rests are hidden."""
    return served(run, examples(run, split), labelled=split != "pool")
