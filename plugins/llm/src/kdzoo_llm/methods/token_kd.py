"""Distillation of next-token distributions on given answers; card: token-kd.

The plain baseline of language models (word-level distillation of Kim and Rush 2016, arXiv:1606.07947), with the
divergences that later papers put in the place of the forward KL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch, Term
from kdzoo_llm.divergence import token_divergence
from kdzoo_llm.language import taught
from kdzoo_llm.sequences import IGNORE

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """The divergence of both sides' next tokens, mean over the tokens of the answers."""
    cfg = run.cfg
    student, teacher = taught(run)
    values = token_divergence(
        str(cfg.divergence),
        student,
        teacher,
        temperature=cfg.temperature,
        mixture=cfg.mixture,
        mask=batch.labels != IGNORE,
    )
    return {"token-kd": Term(values.sum(), cfg.kd_weight * cfg.temperature**2, per="token")}
