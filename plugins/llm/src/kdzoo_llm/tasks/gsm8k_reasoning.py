"""GSM8K, from the files under ``--data-root``, answered by way of a rationale; the settings are in the card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.speakers.scripted import ScriptedSpeaker
from kdzoo.task import Data
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.extraction import extract, is_same
from kdzoo_llm.data.reasoning import target
from kdzoo_llm.engine import fit
from kdzoo_llm.language import build_model, check_pair, loss_terms, measure, share
from kdzoo_llm.paper_tasks import serve
from kdzoo_llm.sequences import data_of

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "is_correct", "loss_terms", "speaker"]

CALCULATOR = re.compile(r"<<.*?>>")  # GSM8K's notes for a calculator: no part of the sentence


def data(run: Run, split: str) -> Data:
    """Training questions have the bare number behind them; the others the data set's solution and the number."""
    rows = solutions(run, split)
    if split == "train":
        rows = [row._replace(answer=extract(row.answer, "number")) for row in rows]
    return data_of(rows, serve("gsm8k", run, split).items.readings)


def solutions(run: Run, split: str) -> list[Example]:
    """Questions with "<solution> --> <number>", as the data set's writers solved them."""
    return [solved(row) for row in serve("gsm8k", run, split).items.examples]


def solved(row: Example) -> Example:
    """A row of the files in the form that models write."""
    text, _, number = CALCULATOR.sub("", row.answer).partition("####")
    return row._replace(answer=target(" ".join(text.split()), number.strip().replace(",", "")))


def speaker(run: Run) -> ScriptedSpeaker:
    """Who explains where no endpoint is named: the people who wrote the data set."""
    return ScriptedSpeaker({row.prompt: row.answer for row in solutions(run, "train")}, "gsm8k")


def is_correct(example: Example, text: str) -> bool:
    """Whether the number in a text is the right one."""
    return is_same(text, example.answer, "number")


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """The numbers in what is written greedily; perplexity along the data set's solutions."""
    return measure(run, split, judge)


def judge(run: Run, texts: Sequence[str], split: str) -> dict[str, Metric]:
    """Whether the number in each text is that of the solution."""
    rows = solutions(run, split)[: len(texts)]
    pairs = zip(rows, texts, strict=True)
    return {
        "accuracy": share([is_same(text, extract(row.answer, "number"), "number") for row, text in pairs])
    }
