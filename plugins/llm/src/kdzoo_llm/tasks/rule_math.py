"""The paper's arithmetic rule, from the files under ``--data-root``; the settings are in the card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.task import Data
from kdzoo_llm.data import rule_files
from kdzoo_llm.language import check_pair, loss_terms, measure, readings
from kdzoo_llm.sequences import data_of
from kdzoo_llm.told import build_model, fit, share_right, view_of

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "loss_terms"]

READ = ("vocabulary", "prompt_length", "teacher_prompt_length", "answer_length", "pad")  # by readings


def data(run: Run, split: str) -> Data:
    """A split; the rule is in the teacher's prompt alone."""
    assert run.data_root is not None
    cfg = run.cfg
    read = tuple((name, cfg[name]) for name in READ)
    return _data(run.data_root, split, int(cfg.shots), int(cfg.draw), str(cfg.template), read)


@lru_cache(maxsize=32)
def _data(
    root: Path, split: str, shots: int, draw: int, template: str, read: tuple[tuple[str, object], ...]
) -> Data:
    rows = rule_files.load(root, split, shots, draw)
    told = {row.example.id: row.instruction for row in rows}
    views = readings(
        dict(read),
        teacher_prompt=lambda example: filled(template, told[example.id], example.prompt),
        student_prompt=lambda example: filled(template, "", example.prompt),
    )
    return data_of([row.example for row in rows], views)


def filled(template: str, instruction: str, question: str) -> str:
    """A prompt.

    Raises:
        KdzooError: a field that does not exist, or one that is missing: the rule or the question would be lost.
    """
    if not all(template.count(field) == 1 for field in ("{instruction}", "{input}")):
        raise KdzooError(
            f"template {template!r}: expected {{instruction}} and {{input}}, once each; without one of them the rule "
            "or the question would not be read. Put both in."
        )
    # In one pass: what is filled in may hold braces itself.
    given = {"{instruction}": instruction, "{input}": question}
    return re.sub(r"\{instruction\}|\{input\}", lambda found: given[found.group()], template)


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """Exact answers, in the domain of the examples and outside."""
    return measure(run, split, judge, view_of)


def judge(run: Run, texts: Sequence[str], split: str) -> dict[str, Metric]:
    """Share of right numbers; a full stop does not matter."""
    examples = run.data(split).items.examples[: len(texts)]  # a split may list its first rows only
    pairs = zip(examples, texts, strict=True)
    return share_right(examples, [_number(text) == _number(example.answer) for example, text in pairs])


def _number(text: str) -> str:
    return text.strip().removesuffix(".")
