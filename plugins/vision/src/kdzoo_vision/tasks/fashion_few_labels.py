"""Fashion-MNIST with few labels and an unlabelled transfer set; the settings are in the card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.task import Data
from kdzoo_vision.classification import build_model, check_pair, evaluate, loss_terms
from kdzoo_vision.data import fashion

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "loss_terms"]


def data(run: Run, split: str) -> Data:
    """The shipped splits; `labels` of the 500 labelled images are used, and only labelled images are augmented."""
    return fashion.load(split, labels=int(run.cfg.labels), augment=split != "pool")
