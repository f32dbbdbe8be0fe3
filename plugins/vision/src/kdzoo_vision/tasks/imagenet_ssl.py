"""ImageNet-1k without labels, from the files under ``--data-root``; the settings are in the card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.task import Data
from kdzoo_vision.data.photo_crops import cropped
from kdzoo_vision.paper_tasks import serve
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
    """`train` trains, as crops without labels; read in order and without crops it holds the labels of the probes."""
    found = serve("imagenet-1k", run, split)
    return cropped(found, crops_of(run)) if split == "train" else found
