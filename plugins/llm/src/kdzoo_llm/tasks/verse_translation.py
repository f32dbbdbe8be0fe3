"""Phrases of verses, from Spanish to English; the settings are in the card."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from kdzoo.task import Data
from kdzoo_llm.data import verses
from kdzoo_llm.engine import fit
from kdzoo_llm.language import build_model, check_pair, loss_terms, readings
from kdzoo_llm.sequences import Reading, data_of
from kdzoo_llm.translation import evaluate

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "loss_terms"]


def data(run: Run, split: str) -> Data:
    """Spanish and English phrases; of the training split `labelled` of them."""
    number = int(run.cfg.labelled) if split == "train" else int(run.cfg.measured)
    return _data(split, number, tuple(readings(run.cfg).items()))


@lru_cache(maxsize=16)
def _data(split: str, number: int, how: tuple[tuple[str, Reading], ...]) -> Data:
    return data_of(verses.part(verses.phrases(split), number), dict(how))
