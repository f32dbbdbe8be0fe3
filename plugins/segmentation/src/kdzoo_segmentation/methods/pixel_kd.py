"""Distilling the Knowledge in a Neural Network (Hinton et al. 2015), at every pixel; card: pixel-kd.

The pixel-wise distillation that papers on segmentation compare themselves with (Liu et al. 2019, arXiv:1903.04197,
equation 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.method import Batch, Term
from kdzoo_segmentation.scores import pair_of_scores

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """T^2 KL(teacher || student) of the classes at a pixel, mean over pixels of the student's scores and images."""
    cfg = run.cfg
    student, teacher = pair_of_scores(run)
    values = kl_divergence(student, teacher, temperature=cfg.temperature, axis=1, reduction="none")
    total = values.mean((1, 2)).sum()
    return {"pixel-kd": Term(total, cfg.kd_weight * cfg.temperature**2, per="item")}
