"""Decoupled Knowledge Distillation (Zhao et al., CVPR 2022, arXiv:2203.08679); card: dkd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.decoupled import dkd
from kdzoo.method import Batch, Term

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """alpha TCKD + beta NCKD, times T^2, growing linearly over the first `warmup_steps`.

    A row without a label takes the teacher's most probable class as its target: the paper has labels everywhere.
    """
    cfg = run.cfg
    student, teacher = run.out("student").logits, run.signal("teacher").logits
    assert student is not None
    assert teacher is not None
    targets = torch.where(batch.labels >= 0, batch.labels, teacher.argmax(1))
    total = dkd(
        student,
        teacher,
        targets,
        alpha=cfg.target_weight,
        beta=cfg.others_weight,
        temperature=cfg.temperature,
        scale_by_temperature_squared=True,
        axis=1,
        reduction="sum",
    )
    growth = min(1.0, run.step / cfg.warmup_steps) if cfg.warmup_steps else 1.0
    return {"dkd": Term(total, cfg.dkd_weight * growth, per="item")}
