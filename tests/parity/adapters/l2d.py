"""Multi-Label Knowledge Distillation and its harness, against penghui-yang/L2D."""

from __future__ import annotations

import torch
from parity.harness import Case, parity
from torch import Tensor
from torch.nn import functional as F

from kdzoo.label_metrics import average_precision, f1_at_true_count
from kdzoo.losses.label_wise import class_wise_distance, instance_wise_distance
from kdzoo.losses.multilabel import binary_cross_entropy, binary_kl, partial_softmax_kl
from kdzoo.losses.relations import rkd_distance
from kdzoo_vision.ml_decoder import MLDecoder


@parity("l2d", "bce-sum")
def bce(case: Case) -> dict[str, Tensor]:
    loss = binary_cross_entropy(case.leaf("logits"), case.inputs["targets"], reduction=case.args["reduction"])
    return case.with_gradients(loss=loss)


@parity("l2d", "mld")
def mld(case: Case) -> dict[str, Tensor]:
    assert case.args["reduction"] == "batchmean"
    loss = binary_kl(case.leaf("student_logits"), case.inputs["teacher_logits"], reduction="mean")
    return case.with_gradients(loss=loss)


@parity("l2d", "psm")
def partial_softmax(case: Case) -> dict[str, Tensor]:
    loss = partial_softmax_kl(
        case.leaf("student_logits"), case.inputs["teacher_logits"], case.inputs["targets"], reduction="mean"
    )
    return case.with_gradients(loss=loss)


@parity("l2d", "huber-dist")
def huber(case: Case) -> dict[str, Tensor]:
    student, teacher = case.leaf("student"), case.inputs["teacher"]
    # One label that all items have; and RKD's distance loss is the same number.
    loss = class_wise_distance(
        student.unsqueeze(1), teacher.unsqueeze(1), torch.ones(len(student), 1), reduction="sum"
    )
    torch.testing.assert_close(rkd_distance(student, teacher, reduction="sum"), loss)
    return case.with_gradients(loss=loss)


def embeddings(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    return case.leaf("student_emb"), case.inputs["teacher_emb"], case.inputs["targets"]


@parity("l2d", "cd")
def class_aware(case: Case) -> dict[str, Tensor]:
    return case.with_gradients(loss=class_wise_distance(*embeddings(case), reduction="sum"))


@parity("l2d", "id")
def instance_aware(case: Case) -> dict[str, Tensor]:
    return case.with_gradients(loss=instance_wise_distance(*embeddings(case), reduction="sum"))


@parity("l2d", "led")
def label_wise(case: Case) -> dict[str, Tensor]:
    loss = case.args["lambda_cd"] * class_wise_distance(*embeddings(case), reduction="sum")
    loss = loss + case.args["lambda_id"] * instance_wise_distance(*embeddings(case), reduction="sum")
    return case.with_gradients(loss=loss)


@parity("l2d", "eval-map-of1-cf1")
def evaluation(case: Case) -> dict[str, Tensor]:
    scores, targets = case.inputs["scores"], case.inputs["targets"]
    precision = average_precision(scores, targets)
    micro, macro = f1_at_true_count(scores, targets)
    return {"ap_per_class": precision, "map": precision.mean(), "of1": micro, "cf1": macro}


@parity("l2d", "ml-decoder")
def decoder(case: Case) -> dict[str, Tensor]:
    params, maps = case.params, case.inputs["feature_map"]
    labels, width = params["query_embed"].shape
    net = MLDecoder(
        maps.shape[1],
        labels,
        width=width,
        hidden=len(params["ffn1_bias"]),
        heads=case.args["heads"],
        dropout=0.1,
    )
    query, key, value = params["attn_in_weight"].chunk(3)
    query_bias, key_bias, value_bias = params["attn_in_bias"].chunk(3)
    weights = {
        "tokens": (params["token_proj_weight"], params["token_proj_bias"]),
        "query": (query, query_bias),
        "key_value": (torch.cat((key, value)), torch.cat((key_bias, value_bias))),
        "merge": (params["attn_out_weight"], params["attn_out_bias"]),
        "expand": (params["ffn1_weight"], params["ffn1_bias"]),
        "shrink": (params["ffn2_weight"], params["ffn2_bias"]),
    } | {f"norm{k}": (params[f"norm{k}_weight"], params[f"norm{k}_bias"]) for k in (1, 2, 3)}
    state = {f"{name}.weight": weight for name, (weight, _) in weights.items()}
    state |= {f"{name}.bias": bias for name, (_, bias) in weights.items()}
    state |= {
        "queries": params["query_embed"],
        "scale": net.scale,
        "weight": params["group_fc_weight"],
        "bias": params["group_fc_bias"],
    }
    net.load_state_dict(state)
    found, logits = net.eval()(maps)
    # Training without dropout goes another way through the code, and must say the same.
    net.dropout = 0.0
    torch.testing.assert_close(F.sigmoid(net.train()(maps)[1]), F.sigmoid(logits))
    return {"label_embeddings": found.detach(), "logits": logits.detach()}
