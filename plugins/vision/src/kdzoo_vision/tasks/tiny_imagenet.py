"""Tiny-ImageNet, from the files under ``--data-root``; the settings are in the card."""

from __future__ import annotations

from functools import partial

from kdzoo_vision.classification import build_model, check_pair, evaluate, loss_terms
from kdzoo_vision.paper_tasks import serve

__all__ = ["build_model", "check_pair", "data", "evaluate", "loss_terms"]

data = partial(serve, "tiny-imagenet")
