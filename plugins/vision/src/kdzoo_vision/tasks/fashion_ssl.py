"""Fashion-MNIST without labels: crops of the pool train, labelled images measure; the settings are in the card."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdzoo.method import Batch
from kdzoo.task import Data
from kdzoo_vision.data import fashion
from kdzoo_vision.data.multicrop import Crops, grey_crops
from kdzoo_vision.ssl.hooks import (
    after_step,
    build_model,
    evaluate,
    fit,
    loss_terms,
    teacher_signal,
)
from kdzoo_vision.ssl.views import crops_of

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["after_step", "build_model", "data", "evaluate", "fit", "loss_terms", "teacher_signal"]


def data(run: Run, split: str) -> Data:
    """`pool` trains, as crops; `train` holds the labels of the probes; nothing else is augmented."""
    return _pool(crops_of(run)) if split == "pool" else fashion.load(split, augment=False)


@lru_cache(maxsize=4)
def _pool(crops: Crops) -> Data:
    """All 12,000 unlabelled images: with seeds as the views ``large`` and ``small``, without them as ``image``."""
    whole = fashion.load("pool", augment=False)
    plain, (mean, std) = whole.collate, fashion.statistics()
    inner = slice(fashion.SHIFT, fashion.SHIFT + fashion.SIDE)

    def collate(items: Tensor, rows: Tensor, seeds: Tensor | None) -> Batch:
        if seeds is None:
            return plain(items, rows, None)
        images = items[rows, :1, inner, inner].float().div_(255)
        large, small = ((part - mean) / std for part in grey_crops(images, seeds, crops))
        return Batch(
            ids=[whole.ids[row] for row in rows.tolist()],
            views={"large": large, "small": small},
            labels=torch.full((len(rows),), -1),
            counts={"item": len(rows), "label": 0},
        )

    return Data(whole.items, whole.ids, collate, whole.hash)
