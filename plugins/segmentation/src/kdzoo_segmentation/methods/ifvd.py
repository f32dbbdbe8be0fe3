"""Intra-class Feature Variation Distillation (Wang et al., ECCV 2020, arXiv:2008.11922); card: ifvd.

Here: the variation of features within each class (C1), soft labels at every pixel (C2). Not here: the adversarial loss
that the official code adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.affinity import intra_class_variation_loss
from kdzoo.losses.divergences import kl_divergence
from kdzoo.method import Batch, Term
from kdzoo_segmentation.scores import at_scores, on_grid, pair_of_scores

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """How far each position lies from its class's mean, on both sides; and the pixels' soft labels."""
    cfg = run.cfg
    terms: dict[str, Term] = {}
    if cfg.variation_weight:
        mine, taught = run.out("student").features[cfg.layer], run.signal("teacher").features[cfg.layer]
        values = intra_class_variation_loss(
            mine,
            on_grid(taught, mine),
            at_scores(batch.labels, mine),
            classes=run.task.sizes["classes"],
            reduction="none",
        )
        terms["variation"] = Term(values.mean((1, 2)).sum(), cfg.variation_weight, per="item")
    if cfg.kd_weight:
        student, teacher = pair_of_scores(run)
        values = kl_divergence(student, teacher, temperature=1.0, axis=1, reduction="none")
        terms["pixel-wise"] = Term(values.mean((1, 2)).sum(), cfg.kd_weight, per="item")
    return terms
