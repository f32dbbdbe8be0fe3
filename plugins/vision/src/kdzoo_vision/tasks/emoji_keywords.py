"""Unicode's keywords of an emoji; the settings are in the card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from kdzoo.task import Data
from kdzoo_vision.data import emoji_keywords
from kdzoo_vision.multilabel import build_model, check_pair, evaluate, fit, loss_terms

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "loss_terms", "rare_labels"]


def data(run: Run, split: str) -> Data:
    """`train`: labelled concepts; `pool`: concepts whose labels only the teacher saw; `val`, `test`: unseen ones."""
    return emoji_keywords.load(split, labelled=split != "pool")


def rare_labels(run: Run) -> Tensor:
    """(C,) bool: labels of few concepts, as the data's manifest bounds it."""
    return emoji_keywords.read().rare
