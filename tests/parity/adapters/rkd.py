"""Relational Knowledge Distillation and its peers, against lenscloth/RKD."""

from __future__ import annotations

from parity.harness import Case, parity
from torch import Tensor

from kdzoo.losses.contrastive import all_triples, triplet_loss
from kdzoo.losses.features import attention_transfer
from kdzoo.losses.relations import hard_darkrank, rkd_angle, rkd_distance
from kdzoo.metrics import recall_at_k


@parity("rkd", "angle")
def angle(case: Case) -> dict[str, Tensor]:
    loss = rkd_angle(case.leaf("student"), case.inputs["teacher"], reduction="mean")
    return case.with_gradients(loss=loss)


@parity("rkd", "distance")
def distance(case: Case) -> dict[str, Tensor]:
    loss = rkd_distance(case.leaf("student"), case.inputs["teacher"], reduction="mean")
    return case.with_gradients(loss=loss)


@parity("rkd", "hard-darkrank")
def darkrank(case: Case) -> dict[str, Tensor]:
    loss = hard_darkrank(
        case.leaf("student"),
        case.inputs["teacher"],
        reduction="mean",
        alpha=case.args["alpha"],
        beta=case.args["beta"],
        list_length=case.args["permute_len"],
    )
    return case.with_gradients(loss=loss)


@parity("rkd", "attention-transfer")
def attention(case: Case) -> dict[str, Tensor]:
    loss = attention_transfer(case.leaf("student"), case.inputs["teacher"], reduction="mean")
    return case.with_gradients(loss=loss)


@parity("rkd", "l2-triplet")
def triplet(case: Case) -> dict[str, Tensor]:
    choosers = {"AllPairs": all_triples}
    triples = choosers[case.args["sampler"]](case.inputs["labels"])
    loss = triplet_loss(case.leaf("embeddings"), triples, margin=case.args["margin"], reduction="mean")
    return case.with_gradients(loss=loss)


@parity("rkd", "recall")
def recall(case: Case) -> dict[str, Tensor]:
    values = recall_at_k(
        case.inputs["embeddings"], case.inputs["labels"], ks=case.args["K"], reduction="mean"
    )
    return {"recall": values}
