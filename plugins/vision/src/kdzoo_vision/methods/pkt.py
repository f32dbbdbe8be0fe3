"""Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis, Tefas, ECCV 2018, arXiv:1803.10837);
card: pkt.

Here: the cosine kernel between the embeddings of a batch (C1). Not here: the Gaussian kernel and the mutual-information
variants of the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.similarity import probabilistic_transfer
from kdzoo.method import Batch, Term

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """The divergence of the neighbour probabilities, and soft labels where they are wanted."""
    cfg = run.cfg
    terms: dict[str, Term] = {}
    if not (cfg.transfer_weight or cfg.kd_weight):
        return terms
    student, teacher = run.out("student"), run.signal("teacher")
    # C1, equations 3 to 8. The official code averages over pairs, so its weights belong to the mean over N anchors / N.
    if cfg.transfer_weight:
        assert student.embedding is not None
        assert teacher.embedding is not None
        loss = probabilistic_transfer(student.embedding, teacher.embedding, reduction="mean")
        terms["transfer"] = Term(loss, cfg.transfer_weight / len(batch.ids))
    # C2: beside soft labels, as HobbitLong/RepDistiller@b84f547 combines every method with them.
    if cfg.kd_weight:
        assert student.logits is not None
        assert teacher.logits is not None
        total = kl_divergence(
            student.logits, teacher.logits, temperature=cfg.temperature, axis=1, reduction="sum"
        )
        terms["kd"] = Term(total, cfg.kd_weight * cfg.temperature**2, per="item")
    return terms
