"""The kinds of drawings of `emoji-scenes`, learnt step by step; the settings are in the card."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from torch import Tensor

from kdzoo.task import Data
from kdzoo_segmentation.data import scenes
from kdzoo_segmentation.engine import fit
from kdzoo_segmentation.incremental import (
    build_model,
    classes_held,
    evaluate,
    groups_of,
    loss_terms,
    plan,
    restrict,
)

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["METAINFO", "build_model", "data", "evaluate", "fit", "loss_terms", "plan"]

METAINFO = scenes.METAINFO


def data(run: Run, split: str) -> Data:
    """What the step of this stage sees."""
    return _step(split, groups_of(str(run.cfg.class_groups), len(METAINFO["classes"])))


@cache
def _step(split: str, groups: tuple[int, ...]) -> Data:
    whole, held = _whole(split)
    return restrict(whole, split, groups, held)


@cache
def _whole(split: str) -> tuple[Data, Tensor | None]:
    whole = scenes.load(split)
    return whole, classes_held(whole, len(METAINFO["classes"])) if split == "train" else None
