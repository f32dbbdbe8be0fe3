"""Slices of a brain, labelled by region; the settings are in the card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.task import Data
from kdzoo_segmentation.data import brain
from kdzoo_segmentation.engine import fit
from kdzoo_segmentation.segmentation import build_model, check_pair, evaluate, loss_terms

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["METAINFO", "SUBSETS", "build_model", "check_pair", "data", "evaluate", "fit", "loss_terms"]

METAINFO, SUBSETS = brain.METAINFO, brain.SUBSETS


def data(run: Run, split: str) -> Data:
    """The shipped splits; `labelled` of the training slices are used."""
    return brain.load(split, labelled=int(run.cfg.labelled))
