"""Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean 2015, arXiv:1503.02531); card: hinton-kd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.method import Batch, Term

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """T^2 KL(teacher || student) at temperature T, over all rows, labelled or not."""
    student, teacher = run.out("student").logits, run.signal("teacher").logits
    assert student is not None
    assert teacher is not None
    temperature = float(run.cfg.temperature)
    total = kl_divergence(student, teacher, temperature=temperature, axis=1, reduction="sum")
    return {"kd": Term(total, weight=float(run.cfg.kd_weight) * temperature**2, per="item")}
