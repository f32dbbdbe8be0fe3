"""Rows as they are: what a teacher says of them may be recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kdzoo.task import Data
from kdzoo.testing import toy
from kdzoo.testing.toy import build_model, evaluate, loss_terms

if TYPE_CHECKING:
    from torch import Tensor

    from kdzoo.method import Batch
    from kdzoo.runs import Run

__all__ = ["build_model", "collate", "data", "evaluate", "loss_terms"]


def data(run: Run, split: str) -> Data:
    return replace(toy.data(run, split), collate=collate, fixed_views=True)


def collate(items: tuple, rows: Tensor, seeds: Tensor | None) -> Batch:
    return toy.collate(items, rows, None)
