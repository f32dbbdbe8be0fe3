"""Find the other drawing of the same emoji; the settings are in the card."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdzoo.method import Batch
from kdzoo.task import Data
from kdzoo_vision.data import emoji
from kdzoo_vision.retrieval import build_model, check_pair, evaluate, loss_terms

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "loss_terms"]

_CHOICE_SEED = 20  # which concepts keep their labels: fixed, so that all seeds have the same labels


def data(run: Run, split: str) -> Data:
    """`train`: the labelled concepts; `pool`: all training images without labels; `val`, `test`: unseen sub-groups."""
    if split == "train":
        return labelled(int(run.cfg.labelled_concepts))
    return unlabelled() if split == "pool" else emoji.load(split)


@lru_cache(maxsize=4)
def labelled(concepts: int) -> Data:
    """Both drawings of `concepts` training concepts; a smaller choice is part of a larger one."""
    whole = emoji.load("train")
    assert whole.groups is not None
    classes = whole.groups.unique()
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(_CHOICE_SEED))
    rows = torch.isin(whole.groups, classes[order[:concepts]]).nonzero().squeeze(1)
    collate = whole.collate

    def chosen(items: Tensor, at: Tensor, seeds: Tensor | None) -> Batch:
        return collate(items, rows[at], seeds)

    digest = hashlib.sha256(whole.hash.encode() + rows.numpy().tobytes()).hexdigest()
    ids = [whole.ids[row] for row in rows.tolist()]
    return Data(whole.items, ids, chosen, digest, whole.groups[rows])


@lru_cache(maxsize=1)
def unlabelled() -> Data:
    """All training images; every label is -1."""
    whole = emoji.load("train")
    collate = whole.collate

    def without_labels(items: Tensor, rows: Tensor, seeds: Tensor | None) -> Batch:
        batch = collate(items, rows, seeds)
        return replace(
            batch, labels=torch.full_like(batch.labels, -1), counts={"item": len(rows), "label": 0}
        )

    return Data(
        whole.items,
        whole.ids,
        without_labels,
        hashlib.sha256(f"unlabelled {whole.hash}".encode()).hexdigest(),
    )
