"""What the tasks on the papers' own data share: the splits, from the files under ``--data-root``.

The papers train on all training images and have no validation split, so `val_share` is 0 by default and `val` is
then empty; with ``--set val_share=0.1`` a tenth of it is kept for choices (see `kdzoo_vision.data.photos`).
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kdzoo.errors import KdzooError
from kdzoo.method import Batch
from kdzoo.task import Data
from kdzoo_vision.data import photos
from kdzoo_vision.data.datasets import Augment

if TYPE_CHECKING:
    from torch import Tensor

    from kdzoo.runs import Run

MOST_DECODERS = 32


def serve(name: str, run: Run, split: str) -> Data:
    """A split of the data set `name`, at the run's `image_size` and `val_share`.

    Raises:
        KdzooError: no data root, or files that do not lie as expected.
    """
    if run.data_root is None:
        info = photos.DATASETS[name]
        raise KdzooError(
            f"{info.title} does not ship with this package: name the folder that holds {info.folders[0]}/ with "
            f"--data-root DIR. It is had at {info.home}; terms: {info.terms}."
        )
    cfg = run.cfg
    if split == "val" and not cfg.val_share:
        return Data(items=None, ids=[], collate=_no_samples, hash="no validation split")
    return _load(
        name,
        split,
        run.data_root,
        int(cfg.image_size),
        float(cfg.val_share),
        decoders(int(cfg.decoders)),
        cfg.get("augment"),
        float(cfg.get("erasing", 0.0)),
        bool(cfg.get("repeats", 0)),
    )


@lru_cache(maxsize=6)
def _load(
    name: str,
    split: str,
    root: Path,
    image_size: int,
    val_share: float,
    threads: int,
    augment: Augment | None,
    erasing: float,
    repeated: bool,
) -> Data:
    """Kept, since a bench asks for the same split once an arm, and listing ImageNet takes a minute. Never changed."""
    data = photos.load(
        name,
        split,
        root,
        image_size=image_size,
        val_share=val_share,
        decoders=threads,
        augment=augment,
        erasing=erasing,
    )
    # Repeated augmentation (Hoffer et al. 2020, arXiv 1901.09335): every image is a group of its own, drawn `repeats`
    # times into a batch, each time with another seed.
    return replace(data, groups=torch.arange(len(data))) if repeated else data


def _no_samples(items: object, rows: Tensor, seeds: Tensor | None) -> Batch:
    raise KdzooError("there is no validation split: val_share is 0. Set val_share above 0 to keep one.")


def decoders(wanted: int) -> int:
    """Threads that decode images: `wanted`, or for 0 this process's share of the cores. Results do not depend on it."""
    if wanted:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(MOST_DECODERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
