"""Mentor-KD's losses and its extraction of answers, against 2hojae/mentor-kd."""

from __future__ import annotations

import torch
from parity.harness import Case, parity
from torch import Tensor

from kdzoo_llm.data.extraction import extract, is_same
from kdzoo_llm.language import token_cross_entropy
from kdzoo_llm.methods.mentor_kd import soft_label_loss

KINDS = {"gsm8k": "number", "svamp": "decimal"}


@parity("mentor-kd", "kd-loss")
def kd_loss(case: Case) -> dict[str, Tensor]:
    loss = soft_label_loss(
        case.leaf("student_logits"),
        case.leaf("mentor_logits"),
        form="kl",
        temperature=case.args["temperature"],
        reduction="mean",
        teacher_grad=True,
    )
    return case.with_gradients(loss=loss)


@parity("mentor-kd", "soft-ce")
def soft_ce(case: Case) -> dict[str, Tensor]:
    loss = soft_label_loss(
        case.leaf("student_logits"),
        case.inputs["mentor_logits"],
        form="ce",
        temperature=1.0,
        reduction="mean",
    )
    return case.with_gradients(loss=loss)


@parity("mentor-kd", "total-loss")
def total_loss(case: Case) -> dict[str, Tensor]:
    student, labels = case.leaf("student_logits"), case.inputs["labels"]
    labels = labels.masked_fill(labels == -100, -1)
    weight = case.args["kd_lambda"]
    hard = token_cross_entropy(student, labels).sum() / (labels >= 0).sum()
    soft = soft_label_loss(
        student,
        case.inputs["mentor_logits"],
        form="kl",
        temperature=case.args["temperature"],
        reduction="mean",
    )
    total = (1 - weight) * hard + weight * soft
    return case.with_gradients(loss_sft=hard, loss_kd=soft, loss=total)


@parity("mentor-kd", "answer-extraction")
def answer_extraction(case: Case) -> dict[str, Tensor]:
    """Extracted strings are compared here, one by one; the numbers among them are what float() reads."""
    right = []
    for row in case.meta["cases"]:
        kind = KINDS[row["dataset"]]
        found, expected = extract(row["prediction"], kind), row["cleansed_prediction"]
        assert (float(found) if isinstance(expected, float) else found) == expected, row
        right.append(is_same(row["prediction"], row["answer"], kind))
    return {"correct": torch.tensor(right)}
