"""Questions of several steps with the right answers; a scripted teacher explains those it is asked about.

The student alone learns to answer at once. Methods that learn from explanations ask `speaker` for them, and
`is_correct` whether they end in the right answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.speakers.scripted import ScriptedSpeaker
from kdzoo.task import Data
from kdzoo_llm.data import reasoning
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.reasoning import is_correct
from kdzoo_llm.engine import fit
from kdzoo_llm.language import build_model, loss_terms, measure, readings, share
from kdzoo_llm.sequences import data_of

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "data", "evaluate", "fit", "is_correct", "loss_terms", "speaker"]

SETTINGS = ("vocabulary", "teacher_vocabulary", "prompt_length", "answer_length", "pad")


def data(run: Run, split: str) -> Data:
    """Training questions have the bare answer behind them; the others the right chain of thought and the answer."""
    cfg = run.cfg
    return _split(split, str(cfg.kinds), int(cfg.questions), *(cfg[name] for name in SETTINGS))


@lru_cache(maxsize=16)
def _split(split: str, kinds: str, questions: int, *values: str | int) -> Data:
    rows = examples(split, kinds)
    if split == "train":
        rows = rows[:questions]
    return data_of(rows, readings(dict(zip(SETTINGS, values, strict=True))))


def examples(split: str, kinds: str = "swaps") -> list[Example]:
    """The rows of a split: of one kind of `reasoning.KINDS`, or of "both"."""
    if split == "train":
        return [*asked("train", kinds), *asked("pool", kinds)]
    return [
        row._replace(answer=reasoning.target(reasoning.rationale(row), row.answer))
        for row in asked(split, kinds)
    ]


def asked(split: str, kinds: str) -> list[Example]:
    """Questions with their bare answers."""
    return [row for row in reasoning.load(split) if kinds in ("both", row.id.split("/")[1])]


def speaker(run: Run) -> ScriptedSpeaker:
    """The teacher: it explains an answer, and is sometimes wrong."""
    return ScriptedSpeaker(reasoning.script, "reasoning", count=lambda text: len(text.split()))


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """The answers in what is written greedily; perplexity along the script's own right chains of thought."""
    return measure(run, split, judge)


def judge(run: Run, texts: Sequence[str], split: str) -> dict[str, Metric]:
    """Whether each text ends in the right answer."""
    rows = asked(split, str(run.cfg.kinds))[: len(texts)]
    return {"accuracy": share([is_correct(row, text) for row, text in zip(rows, texts, strict=True)])}
