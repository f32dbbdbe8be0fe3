"""The kinds of drawings of `emoji-scenes`, learnt step by step; the settings are in the card."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
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
    """What the step of this stage sees; the scenes of the training split and of the pool have labels here."""
    return _step(split, groups_of(str(run.cfg.class_groups), len(METAINFO["classes"])))


@cache
def _step(split: str, groups: tuple[int, ...]) -> Data:
    whole, held = _whole(split)
    return restrict(whole, split, groups, held)


@cache
def _whole(split: str) -> tuple[Data, Tensor | None]:
    if split != "train":
        return scenes.load(split), None
    images, labels = zip(*(scenes.scenes(part) for part in ("train", "pool")), strict=True)
    ids = [
        f"{part}/{row}"
        for part, some in zip(("train", "pool"), images, strict=True)
        for row in range(len(some))
    ]
    whole = scenes.serve(torch.cat(images), torch.cat(labels), ids, augmented=True)
    return whole, classes_held(whole, len(METAINFO["classes"]))
