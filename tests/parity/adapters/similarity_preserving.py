"""Similarity preservation, against HobbitLong/RepDistiller."""

from __future__ import annotations

from parity.harness import Case, parity
from torch import Tensor

from kdzoo.losses.similarity import similarity_preserving


@parity("similarity-preserving", "similarity")
def similarity(case: Case) -> dict[str, Tensor]:
    loss = similarity_preserving(case.leaf("student"), case.inputs["teacher"], reduction="mean")
    return case.with_gradients(loss=loss)
