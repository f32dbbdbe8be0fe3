"""Cross-Image Relational KD for semantic segmentation (Yang et al., CVPR 2022, arXiv:2204.06986); card: cirkd.

Here: pixel-to-pixel relations between the images of a batch (C1), soft labels at every pixel (C3). Not here: the memory
of pixels and regions of earlier batches, and batches gathered over GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.image_pairs import cross_image_divergence
from kdzoo.method import Batch, Term
from kdzoo_segmentation.scores import on_grid, pair_of_scores

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Which positions of the batch's images a position is like, and the pixels' soft labels."""
    cfg = run.cfg
    terms: dict[str, Term] = {}
    if cfg.relation_weight:
        if cfg.pairs == "cross" and len(batch.ids) < 2:
            raise KdzooError(
                f"pairs = 'cross' with a batch of {len(batch.ids)}: there is no other image to relate to. Set batch "
                "to 2 or more, or pairs to 'all'."
            )
        mine, taught = run.out("student").features[cfg.layer], run.signal("teacher").features[cfg.layer]
        taught = on_grid(taught, mine)
        if cfg.pool > 1:
            mine, taught = (F.avg_pool2d(part, cfg.pool, cfg.pool, ceil_mode=True) for part in (mine, taught))
        total = cross_image_divergence(
            mine, taught, temperature=cfg.relation_temperature, pairs=cfg.pairs, reduction="sum"
        )
        terms["relation"] = Term(total, cfg.relation_weight, per="item")
    if cfg.kd_weight:
        student, teacher = pair_of_scores(run)
        values = kl_divergence(student, teacher, temperature=cfg.temperature, axis=1, reduction="none")
        terms["pixel-wise"] = Term(values.mean((1, 2)).sum(), cfg.kd_weight * cfg.temperature**2, per="item")
    return terms
