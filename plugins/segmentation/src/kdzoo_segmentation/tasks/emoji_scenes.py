"""Emoji pasted on photos; the settings are in the card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.task import Data
from kdzoo_segmentation.data import scenes
from kdzoo_segmentation.engine import fit
from kdzoo_segmentation.segmentation import build_model, check_pair, evaluate, loss_terms

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["METAINFO", "SUBSETS", "build_model", "check_pair", "data", "evaluate", "fit", "loss_terms"]

METAINFO, SUBSETS = scenes.METAINFO, scenes.SUBSETS


def data(run: Run, split: str) -> Data:
    """The composed splits; `labelled` of the training scenes are used."""
    return scenes.load(split, labelled=int(run.cfg.labelled))
