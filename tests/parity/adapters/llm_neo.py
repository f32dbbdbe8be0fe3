"""LLM-Neo, against yang3121099/LLM-Neo."""

from __future__ import annotations

from parity.harness import Case, parity
from torch import Tensor

from kdzoo_llm.language import token_cross_entropy
from kdzoo_llm.methods.llm_neo import neo_kl


@parity("llm-neo", "neo-loss")
def loss(case: Case) -> dict[str, Tensor]:
    """The official mask is that of unshifted labels: the logits at a label's own place, which predict what follows."""
    student, teacher, labels = (
        case.leaf("student_logits"),
        case.inputs["teacher_logits"],
        case.inputs["labels"],
    )
    valid = labels[:, 1:] >= 0
    hard = token_cross_entropy(student[:, :-1], labels[:, 1:].clamp(min=-1)).sum() / valid.sum()
    mask = labels >= 0
    soft = neo_kl(student, teacher, mask).sum() / mask.sum()
    ratio = float(case.args["kd_ratio"])
    return case.with_gradients(loss=(1 - ratio) * hard + ratio * soft, loss_ce=hard)
