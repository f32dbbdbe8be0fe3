"""Similarity-Preserving Knowledge Distillation (Tung, Mori, ICCV 2019, arXiv:1907.09682); card: similarity-preserving.

Here: the loss on the last feature map (C1) and soft labels beside it (C2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.similarity import similarity_preserving
from kdzoo.method import Batch, Term

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Images that are alike to the teacher shall be alike to the student, on the activations of one layer."""
    cfg = run.cfg
    terms: dict[str, Term] = {}
    if not (cfg.similarity_weight or cfg.kd_weight):
        return terms
    student, teacher = run.out("student"), run.signal("teacher")
    # C1, equations 1 to 4.
    if cfg.similarity_weight:
        loss = similarity_preserving(
            student.features[cfg.layer], teacher.features[cfg.layer], reduction="mean"
        )
        terms["similarity"] = Term(loss, cfg.similarity_weight)
    # C2, section 4.1: beside soft labels.
    if cfg.kd_weight:
        assert student.logits is not None
        assert teacher.logits is not None
        total = kl_divergence(
            student.logits, teacher.logits, temperature=cfg.temperature, axis=1, reduction="sum"
        )
        terms["kd"] = Term(total, cfg.kd_weight * cfg.temperature**2, per="item")
    return terms
