"""Python code that breaks a rule of ruff, and its repair; the settings are in the card."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.task import Data
from kdzoo_llm.data import lint_fixes
from kdzoo_llm.data.examples import Example
from kdzoo_llm.engine import fit
from kdzoo_llm.language import build_model, check_pair, loss_terms, measure, readings, share
from kdzoo_llm.sequences import Reading, data_of

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "loss_terms"]


def data(run: Run, split: str) -> Data:
    """Bad and good code; of the training split those with few enough tokens, with `with_pool` the pool's too."""
    parts = ("train", "pool") if split == "train" and run.cfg.with_pool else (split,)
    return _data(parts, int(run.cfg.measured) if split != "train" else 0, tuple(readings(run.cfg).items()))


@lru_cache(maxsize=16)
def _data(parts: tuple[str, ...], most: int, how: tuple[tuple[str, Reading], ...]) -> Data:
    rows = [row for part in parts for row in lint_fixes.load(part) if _short(row, how)]
    return data_of(rows[:most] if most else rows, dict(how))


def _short(row: Example, how: tuple[tuple[str, Reading], ...]) -> bool:
    """Whether every reading holds the row."""
    return all(
        len(reading.vocabulary.encode(row.prompt)) < reading.prompt_length
        and len(reading.vocabulary.encode(row.answer)) < reading.answer_length
        for _, reading in how
    )


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    return measure(run, split, judge if run.stage == "evaluate" else None)


def judge(run: Run, texts: Sequence[str], split: str) -> dict[str, Metric]:
    """What ruff says of the written code: whether it is Python that no longer breaks the rule."""
    rows = run.data(split).items.examples[: len(texts)]  # a split may list its first rows only
    fixed = [
        lint_fixes.is_fixed(text, lint_fixes.rule_of(row)) for row, text in zip(rows, texts, strict=True)
    ]
    return {"fixed": share(fixed)}
