"""Probabilistic knowledge transfer, against HobbitLong/RepDistiller, which averages over all N^2 pairs."""

from __future__ import annotations

from parity.harness import Case, parity
from torch import Tensor

from kdzoo.losses.similarity import probabilistic_transfer


@parity("pkt", "pkt")
def pkt(case: Case) -> dict[str, Tensor]:
    student = case.leaf("student")
    loss = probabilistic_transfer(student, case.inputs["teacher"], reduction="mean") / len(student)
    return case.with_gradients(loss=loss)
