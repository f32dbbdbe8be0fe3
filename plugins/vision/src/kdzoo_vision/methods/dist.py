"""Knowledge Distillation from A Stronger Teacher (DIST; Huang et al., NeurIPS 2022, arXiv:2205.10536); card: dist."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.correlation import dist
from kdzoo.method import Batch, Term

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """beta inter-class + gamma intra-class (1 - Pearson correlation), times T^2; it couples the batch."""
    cfg = run.cfg
    student, teacher = run.out("student").logits, run.signal("teacher").logits
    assert student is not None
    assert teacher is not None
    loss = dist(
        student,
        teacher,
        beta=cfg.inter_weight,
        gamma=cfg.intra_weight,
        temperature=cfg.temperature,
        scale_by_temperature_squared=True,
        axis=1,
    )
    return {"dist": Term(loss, cfg.dist_weight, per="step")}
