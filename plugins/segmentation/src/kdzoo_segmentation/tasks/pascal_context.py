"""PASCAL-Context, from the files under ``--data-root``; the settings are in the card."""

from __future__ import annotations

from functools import partial

from kdzoo_segmentation.data.mm_sets import metainfo
from kdzoo_segmentation.engine import fit
from kdzoo_segmentation.paper_tasks import build_model, check_pair, loss_terms, serve
from kdzoo_segmentation.segmentation import evaluate

__all__ = ["METAINFO", "build_model", "check_pair", "data", "evaluate", "fit", "loss_terms"]

METAINFO = metainfo("pascal-context-59")
data = partial(serve, "pascal-context-59")
