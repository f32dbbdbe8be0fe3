"""Find the other drawing of the same emoji; the settings are in the card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.task import Data
from kdzoo_vision.data import emoji
from kdzoo_vision.retrieval import build_model, evaluate, loss_terms

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "data", "evaluate", "loss_terms"]


def data(run: Run, split: str) -> Data:
    """The shipped splits, by sub-groups of Unicode."""
    return emoji.load(split)
