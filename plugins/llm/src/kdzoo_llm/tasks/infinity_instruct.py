"""Infinity-Instruct 0625, from the files under ``--data-root``; the settings are in the card."""

from __future__ import annotations

from kdzoo_llm.engine import fit
from kdzoo_llm.language import build_model, check_pair, loss_terms
from kdzoo_llm.paper_tasks import data_from, evaluate

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "loss_terms"]

data = data_from("infinity-instruct")
