"""PASCAL VOC 2012 with the masks of SBD, class by class, from the files under ``--data-root``; settings in the card."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdzoo.task import Data
from kdzoo_segmentation.data.mm_sets import metainfo
from kdzoo_segmentation.engine import fit
from kdzoo_segmentation.incremental import build_model, evaluate, groups_of, loss_terms, plan, restrict
from kdzoo_segmentation.paper_tasks import decoders, serve

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["METAINFO", "build_model", "data", "evaluate", "fit", "loss_terms", "plan"]

METAINFO = metainfo("voc2012-aug")


def data(run: Run, split: str) -> Data:
    """What the step of this stage sees."""
    groups = groups_of(str(run.cfg.class_groups), len(METAINFO["classes"]))
    whole = serve("voc2012-aug", run, split)
    held = None
    if split == "train":
        masks = tuple(piece["seg_map_path"] for piece in whole.items.pieces)
        held = _held(masks, whole.hash, decoders(int(run.cfg.decoders)))
    return restrict(whole, split, groups, held)


@lru_cache(maxsize=2)
def _held(masks: tuple[str, ...], salt: str, threads: int) -> Tensor:
    """(N, C) bool: which masks hold which classes. Read without the images; once a process, under the data's hash."""

    def read(path: str) -> Tensor:
        found = torch.zeros(256, dtype=torch.bool)
        with Image.open(path) as mask:
            found[torch.from_numpy(np.unique(np.asarray(mask))).long()] = True
        return found

    with ThreadPoolExecutor(threads) as pool:
        return torch.stack(list(pool.map(read, masks)))[:, : len(METAINFO["classes"])]
