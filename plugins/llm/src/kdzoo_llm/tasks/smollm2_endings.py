"""How verses go on, taught by a pretrained model; the settings are in the card."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from kdzoo_llm.data import verses
from kdzoo_llm.language import readings
from kdzoo_llm.sequences import Reading, data_of
from kdzoo_llm.tasks.verse_endings import build_model, check_pair, evaluate, fit, loss_terms

if TYPE_CHECKING:
    from kdzoo.runs import Run
    from kdzoo.task import Data

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "loss_terms"]


def data(run: Run, split: str) -> Data:
    """First words of a verse and what follows, where this is no longer than `answer_length` in any tokenizer: every
    answer is padded to that length, so that the teacher can be recorded, and a few lists of names would double it."""
    number = int(run.cfg.labelled) if split == "train" else int(run.cfg.measured)
    return _data(split, number, tuple(readings(run.cfg).items()))


@lru_cache(maxsize=16)
def _data(split: str, number: int, how: tuple[tuple[str, Reading], ...]) -> Data:
    rows = verses.endings(split)
    for _, reading in how:
        lengths = map(len, reading.vocabulary.encode_all([row.answer for row in rows]))
        rows = [row for row, length in zip(rows, lengths, strict=True) if length < reading.answer_length]
    return data_of(verses.part(rows, number), dict(how))
