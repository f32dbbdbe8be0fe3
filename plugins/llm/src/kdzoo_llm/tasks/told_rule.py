"""An operator whose rule can be read, or guessed from a few examples; the settings are in the card.

Every arm begins with the base model, which follows rules of this kind when it reads them, and learns by low-rank
adapters (`kdzoo_llm.told`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.task import Data
from kdzoo_llm.data import operators
from kdzoo_llm.data.digits import Order
from kdzoo_llm.language import check_pair, loss_terms, measure, readings
from kdzoo_llm.sequences import data_of
from kdzoo_llm.told import build_model, fit, share_right, view_of

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "loss_terms"]

READ = ("vocabulary", "prompt_length", "teacher_prompt_length", "answer_length", "pad")  # by readings
BASE_VAL = 1000  # rows


def data(run: Run, split: str) -> Data:
    """The target's operator; or, for the base model, many others with their rules in the prompt.

    Each run seed draws shots of its own, unless `draw` names a draw. A draw follows from its seed, which is in every
    key, so the hash is that of draw 0: shots of one seed have one key whatever bench they are drawn for.
    """
    cfg = run.cfg
    order: Order = cfg.order
    width, target = int(cfg.width), int(cfg.target)
    read = tuple((name, cfg[name]) for name in READ)
    if cfg.corpus == "rules" and split in ("train", "val"):
        rows = int(cfg.base_rows) if split == "train" else BASE_VAL
        return _base(split, rows, target, order, width, read)
    draw, shots = int(cfg.draw), int(cfg.shots)
    if split != "train":
        return _target(split, shots, 0, target, order, width, read)
    served = _target(split, shots, run.seed if draw < 0 else draw, target, order, width, read)
    if draw >= 0:
        return served
    first = _target(split, shots, 0, target, order, width, read).hash
    return replace(served, hash=hashlib.sha256(f"of the seed, {first}".encode()).hexdigest())


@lru_cache(maxsize=4)
def _base(
    split: str, rows: int, target: int, order: Order, width: int, read: tuple[tuple[str, object], ...]
) -> Data:
    # The rule is a part of these prompts, so there is one view, as long as the teacher's.
    cfg = dict(read)
    cfg["prompt_length"] = cfg["teacher_prompt_length"]
    return data_of(operators.base(split, rows, target, order, width), readings(cfg))


@lru_cache(maxsize=32)
def _target(
    split: str,
    shots: int,
    draw: int,
    target: int,
    order: Order,
    width: int,
    read: tuple[tuple[str, object], ...],
) -> Data:
    examples = operators.load(split, shots, draw, target, order, width)
    told = readings(
        dict(read), teacher_prompt=lambda example: operators.with_rule(example, target, order, width)
    )
    return data_of(examples, told)


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """Exact answers, in the domain of the examples and outside."""
    return measure(run, split, judge, view_of)


def judge(run: Run, texts: Sequence[str], split: str) -> dict[str, Metric]:
    """Share of right numbers, digit for digit; also of each part of the split that there is."""
    examples = run.data(split).items.examples[: len(texts)]  # a split may list its first rows only
    pairs = zip(examples, texts, strict=True)
    return share_right(examples, [operators.is_correct(example, text) for example, text in pairs])
