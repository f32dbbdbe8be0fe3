"""Multi-Label Knowledge Distillation (Yang et al., ICCV 2023, arXiv:2308.06453); card: l2d.

Here: each label distilled as a binary problem of its own (C2, MLD), and the geometry of label-wise embeddings, among
the images of a label (C3, CD) and among the labels of an image (C4, ID); the harness's peers partial softmax and MSE.
The ML-Decoder that makes one embedding a label (C1) is the tasks' head, for student and teacher alike
(`kdzoo_vision.ml_decoder`). RKD is a method of its own. Not here: the peers PKT and ReviewKD.

Shapes: N images of a batch, C labels, Ds and Dt widths of the label-wise embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.label_wise import class_wise_distance, instance_wise_distance
from kdzoo.losses.multilabel import binary_kl, label_mse, partial_softmax_kl
from kdzoo.method import Batch, Output, Term

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """C5: the weighted terms beside the task's BCE, each a sum that core divides by the N images of the step.

    The paper's total, ``BCE summed over images and labels + 10 MLD + 100 CD + 1000 ID`` with MLD a mean over the
    batch, is N times ours when ``mld_weight = 10 / N``, ``cd_weight = 100`` and ``id_weight = 1000``.
    """
    cfg = run.cfg
    student, teacher = run.out("student"), run.signal("teacher")
    s_NC, t_NC = student.logits, teacher.logits
    assert s_NC is not None
    assert t_NC is not None
    terms: dict[str, Term] = {}
    if cfg.mld_weight:
        terms["mld"] = Term(binary_kl(s_NC, t_NC, reduction="sum"), cfg.mld_weight, per="item")
    if cfg.mse_weight:
        total = label_mse(s_NC, t_NC, of=cfg.mse_of, reduction="sum")
        terms["mse"] = Term(total, cfg.mse_weight, per="item")
    if not (cfg.cd_weight or cfg.id_weight or cfg.partial_weight):
        return terms
    targets = positives(batch, t_NC, float(cfg.pool_threshold))
    if cfg.partial_weight:
        total = partial_softmax_kl(s_NC, t_NC, targets, reduction="sum")
        terms["partial"] = Term(total, cfg.partial_weight, per="item")
    if cfg.cd_weight or cfg.id_weight:
        s_NCD, t_NCD = label_wise(student), label_wise(teacher)
        if cfg.cd_weight:
            total = class_wise_distance(s_NCD, t_NCD, targets, reduction="sum")
            terms["cd"] = Term(total, cfg.cd_weight, per="item")
        if cfg.id_weight:
            total = instance_wise_distance(s_NCD, t_NCD, targets, reduction="sum")
            terms["id"] = Term(total, cfg.id_weight, per="item")
    return terms


def positives(batch: Batch, teacher_logits: Tensor, threshold: float) -> Tensor:
    """(N, C) bool: the true labels; of an image without labels those that the teacher holds for probable enough.

    Not in the paper, which has labels for all images.
    """
    labels: Tensor = batch.labels
    if batch.counts["label"] == len(labels):
        return labels > 0
    return torch.where(labels >= 0, labels > 0, teacher_logits.sigmoid() >= threshold)


def label_wise(output: Output) -> Tensor:
    """(N, C, D), the embeddings of C1."""
    embeddings: Tensor | None = output.extra.get("labels")
    if embeddings is None:
        raise KdzooError(
            'l2d: the model gives no label-wise embeddings, Output.extra["labels"] of shape (images, labels, width) '
            "expected: CD and ID would have nothing to compare. Use a model whose head has one query a label "
            "(kdzoo_vision.ml_decoder), or set cd_weight and id_weight to 0."
        )
    return embeddings
