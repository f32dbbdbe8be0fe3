"""Verses, word by word; the settings are in the card."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.task import Data
from kdzoo_llm.data import verses
from kdzoo_llm.engine import fit
from kdzoo_llm.language import build_model, check_pair, loss_terms, measure, readings
from kdzoo_llm.sequences import Reading, data_of

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "loss_terms"]


def data(run: Run, split: str) -> Data:
    """English verses; of the training split the first `labelled` in a drawn order, 0 for all."""
    labelled = int(run.cfg.labelled) if split == "train" else int(run.cfg.measured)
    return _data(split, str(run.cfg.kind), labelled, tuple(readings(run.cfg).items()))


@lru_cache(maxsize=16)
def _data(split: str, kind: str, number: int, how: tuple[tuple[str, Reading], ...]) -> Data:
    return data_of(verses.part(verses.plain(split, kind), number), dict(how))


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    return measure(run, split)
