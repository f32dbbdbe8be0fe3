"""Rules that stand in the prompt; the settings are in the card."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kdzoo.task import Data
from kdzoo_llm.data import rules
from kdzoo_llm.engine import fit
from kdzoo_llm.examples import Example
from kdzoo_llm.language import Scores, build_model, check_pair, evaluate, loss_terms, served

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "examples", "fit", "judge", "loss_terms"]

SPLITS = {"train": "train", "val": "val", "test": "new"}


def examples(run: Run, split: str) -> list[Example]:
    """Prompts that tell a rule; the test's rules are new."""
    found = rules.base_examples(SPLITS[split])
    return found[: int(run.cfg["labelled"])] if split == "train" else found


def data(run: Run, split: str) -> Data:
    return served(run, examples(run, split))


def judge(run: Run, asked: list[Example], answers: list[str]) -> Scores:
    """Whether an answer is the operator's value."""
    right = [rules.follows(answer, example) for answer, example in zip(answers, asked, strict=True)]
    return {"accuracy": torch.tensor(right).float()}
