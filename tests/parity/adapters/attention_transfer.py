"""Attention transfer, against HobbitLong/RepDistiller."""

from __future__ import annotations

from parity.harness import Case, parity
from torch import Tensor

from kdzoo.losses.features import attention_transfer
from kdzoo.method import Output
from kdzoo_vision.methods.attention_transfer import paired_stages


@parity("attention-transfer", "attention")
def attention(case: Case) -> dict[str, Tensor]:
    student = Output(features={"stage1": case.leaf("student")})
    teacher = Output(features={"stage1": case.inputs["teacher"]})
    ((_, s_BCHW, t_BCHW),) = paired_stages(student, teacher, ["stage1"])
    loss = attention_transfer(s_BCHW, t_BCHW, power=case.args["p"], reduction="mean")
    return case.with_gradients(loss=loss)
