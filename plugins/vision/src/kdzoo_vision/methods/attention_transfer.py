"""Paying More Attention to Attention (Zagoruyko, Komodakis, ICLR 2017, arXiv:1612.03928); card: attention-transfer.

Here: activation-based attention maps of every stage both nets have (C1), each stage with a switch; soft labels beside
them (C2). Not here: gradient-based attention, which needs a second backward pass through the teacher.

Shapes: B images, C_k and H_k channels and side of stage k.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.features import attention_transfer
from kdzoo.method import Batch, Output, Term

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """The distance of the attention maps, stage by stage, and Hinton's soft labels where they are wanted."""
    cfg = run.cfg
    terms: dict[str, Term] = {}
    if not (cfg.attention_weight or cfg.kd_weight):
        return terms
    student, teacher = run.out("student"), run.signal("teacher")
    # C1, equation 2: where a stage is active, not what it says.
    if cfg.attention_weight:
        for stage, s_BCHW, t_BCHW in paired_stages(student, teacher, cfg.stages):
            total = attention_transfer(s_BCHW, t_BCHW, power=cfg.power, reduction="sum")
            terms[f"attention-{stage}"] = Term(total, cfg.attention_weight, per="item")
    # C2, section 4.1.2: attention transfer beside soft labels.
    if cfg.kd_weight:
        assert student.logits is not None
        assert teacher.logits is not None
        total = kl_divergence(
            student.logits, teacher.logits, temperature=cfg.temperature, axis=1, reduction="sum"
        )
        terms["kd"] = Term(total, cfg.kd_weight * cfg.temperature**2, per="item")
    return terms


def paired_stages(
    student: Output, teacher: Output, wanted: list[str]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, student's map, teacher's map) of the wanted stages, the larger map average-pooled to the smaller side.

    Source: HobbitLong/RepDistiller@b84f547 distiller_zoo/AT.py pools so.
    """
    for stage in wanted:
        s_BCHW, t_BCHW = student.features[stage], teacher.features[stage]
        if s_BCHW.shape[2] > t_BCHW.shape[2]:
            s_BCHW = F.adaptive_avg_pool2d(s_BCHW, t_BCHW.shape[2:])  # type: ignore[arg-type]
        elif s_BCHW.shape[2] < t_BCHW.shape[2]:
            t_BCHW = F.adaptive_avg_pool2d(t_BCHW, s_BCHW.shape[2:])  # type: ignore[arg-type]
        yield stage, s_BCHW, t_BCHW
