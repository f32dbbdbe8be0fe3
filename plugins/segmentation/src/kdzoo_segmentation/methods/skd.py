"""Structured Knowledge Distillation (Liu et al., CVPR 2019, arXiv:1903.04197), pair-wise part; card: skd.

Here: the affinity graph between patches of the last feature map (C1), beside soft labels at every pixel (C2). Not
here: the holistic part, a discriminator of score maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.affinity import pairwise_affinity_loss
from kdzoo.losses.divergences import kl_divergence
from kdzoo.method import Batch, Term
from kdzoo_segmentation.scores import on_grid, pair_of_scores

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """The affinity graphs' difference, and the pixels' soft labels where they are wanted."""
    cfg = run.cfg
    terms: dict[str, Term] = {}
    if cfg.pair_weight:
        mine, taught = run.out("student").features[cfg.layer], run.signal("teacher").features[cfg.layer]
        total = pairwise_affinity_loss(
            patches(mine, cfg.patch), patches(on_grid(taught, mine), cfg.patch), reduction="sum"
        )
        terms["pair-wise"] = Term(total, cfg.pair_weight, per="item")
    if cfg.kd_weight:
        student, teacher = pair_of_scores(run)
        values = kl_divergence(student, teacher, temperature=1.0, axis=1, reduction="none")
        terms["pixel-wise"] = Term(values.mean((1, 2)).sum(), cfg.kd_weight, per="item")
    return terms


def patches(features: Tensor, side: int) -> Tensor:
    """A node of the graph for every `side` x `side` positions: their largest activations; (B, C, h', w')."""
    side = min(side, *features.shape[2:])
    return F.max_pool2d(features, side, side, ceil_mode=True)
