"""Tails of compound nouns that a pretrained model tells; the settings are in the card."""

from __future__ import annotations

from kdzoo_llm.tasks.word_relations import build_model, check_pair, data, evaluate, fit, knowledge, loss_terms

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "knowledge", "loss_terms"]
