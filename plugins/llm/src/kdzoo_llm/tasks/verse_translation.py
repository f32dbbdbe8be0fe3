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
    """Phrases: of the training split `labelled` with their translations, of the pool `unlabelled` without, of the
    others `measured`."""
    number = {"train": "labelled", "pool": "unlabelled"}.get(split, "measured")
    return _data(split, int(run.cfg[number]), tuple(readings(run.cfg).items()))


@lru_cache(maxsize=16)
def _data(split: str, number: int, how: tuple[tuple[str, Reading], ...]) -> Data:
    rows = verses.part(verses.phrases(split), number)
    if split == "pool":
        rows = [row._replace(answer="") for row in rows]
    return data_of(rows, dict(how))
