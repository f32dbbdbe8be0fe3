"""An operator whose meaning the teacher reads and the student must come to know; the settings are in the card."""

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

__all__ = [
    "build_model",
    "check_pair",
    "data",
    "evaluate",
    "examples",
    "fit",
    "judge",
    "loss_terms",
    "teacher_prompt",
]


def examples(run: Run, split: str) -> list[Example]:
    """Inputs of the operator; `shots` of the training ones have their value."""
    found = rules.examples(split)
    return found[: int(run.cfg["shots"])] if split == "train" else found


def data(run: Run, split: str) -> Data:
    """The pool's values are hidden."""
    return served(run, examples(run, split), labelled=split != "pool")


def teacher_prompt(example: Example) -> str:
    """The rule, then the question."""
    return rules.teacher_prompt(example)


def judge(run: Run, asked: list[Example], answers: list[str]) -> Scores:
    """Whether an answer is the operator's value, on all inputs and on longer ones than the training shows."""
    right = torch.tensor(
        [rules.follows(answer, example) for answer, example in zip(answers, asked, strict=True)]
    )
    far = torch.tensor([rules.out_of_domain(example) for example in asked])
    found: dict[str, torch.Tensor | float] = {"accuracy": right.float()}
    if far.any():
        found["accuracy[out]"] = right[far].float()
    if (~far).any():
        found["accuracy[in]"] = right[~far].float()
    return found
