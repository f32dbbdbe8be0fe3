"""Multi-label classification on PASCAL VOC 2007; the settings are in the card, the layout in `data.datasets`."""

from __future__ import annotations

from functools import partial

from kdzoo_vision.multilabel import build_model, check_pair, evaluate, fit, loss_terms, rarest_third
from kdzoo_vision.paper_tasks import serve

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "loss_terms", "rare_labels"]

data = partial(serve, "voc-2007")
rare_labels = rarest_third
