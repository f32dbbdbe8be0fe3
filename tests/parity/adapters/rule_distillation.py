"""Rule distillation, against RUCBM/rule-distillation."""

from __future__ import annotations

from parity.harness import Case, parity
from torch import Tensor

from kdzoo_llm.methods.rule_distillation import output_loss


@parity("rule-distillation", "distill-loss")
def loss(case: Case) -> dict[str, Tensor]:
    """The official mask is that of unshifted labels: the logits at a label's own place, which predict what follows."""
    mask = case.inputs["labels"] != -100
    each = output_loss(
        case.leaf("student_logits"),
        case.inputs["teacher_logits"],
        mask,
        temperature=float(case.args["temperature"]),
        loss=str(case.args["loss_type"]).lower(),
    )
    return case.with_gradients(loss=each.sum() / mask.sum())
