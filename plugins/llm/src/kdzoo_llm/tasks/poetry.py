"""Poetry for a model that knows prose: the rows of `verses` of other books; the settings are in the card."""

from __future__ import annotations

from kdzoo_llm.tasks.verses import build_model, check_pair, data, evaluate, fit, loss_terms

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "loss_terms"]
