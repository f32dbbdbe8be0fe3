"""How verses go on; the settings are in the card."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.task import Data
from kdzoo_llm.data import verses
from kdzoo_llm.engine import fit
from kdzoo_llm.language import (
    answers,
    build_model,
    check_pair,
    loss_terms,
    measure,
    readings,
    view_of_role,
)
from kdzoo_llm.sequences import Reading, data_of

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "loss_terms"]

WRITTEN = 200  # rows of which written endings are compared with the true ones


def data(run: Run, split: str) -> Data:
    """First words of a verse and what follows; of the training split `labelled` of them."""
    number = int(run.cfg.labelled) if split == "train" else int(run.cfg.measured)
    return _data(split, number, tuple(readings(run.cfg).items()))


@lru_cache(maxsize=16)
def _data(split: str, number: int, how: tuple[tuple[str, Reading], ...]) -> Data:
    return data_of(verses.part(verses.endings(split), number), dict(how))


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """Bits per character and their kin; at the end also ROUGE-L of what is written greedily."""
    found = measure(run, split)
    if run.stage != "evaluate":
        return found
    for role, suffix in run.shipped():
        texts = answers(
            run, role, split, view=view_of_role(run, role, split), rows=min(WRITTEN, len(run.data(split)))
        )
        rows = run.data(split).items.examples[: len(texts)]
        values = torch.tensor([rouge_l(row.answer, text) for row, text in zip(rows, texts, strict=True)])
        found[f"rouge_l{suffix}"] = Metric(float(values.mean()), len(values), values)
    return found


def rouge_l(reference: str, text: str) -> float:
    """F-measure of the longest common subsequence of words, 0 ... 1 (rouge-score, without stemming)."""
    from rouge_score.rouge_scorer import RougeScorer  # 1 s; wanted here only

    return float(RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure)
