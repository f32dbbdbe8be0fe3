"""What all classification tasks share: models by name, cross-entropy on labelled rows, accuracy.

A task's module imports these hooks and adds `data`. Shapes: B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import nn

from kdzoo import metrics
from kdzoo.cards import Side, TaskCard
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch, Metric, Term
from kdzoo_vision import pairs
from kdzoo_vision.models import build, wants_pretrained

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """Student and teacher by the names in the settings."""
    if role not in ("student", "teacher"):
        return None
    pretrained = wants_pretrained(run, role)
    if role == "teacher" and run.stage == "teacher" and not run.steps and not pretrained:
        raise KdzooError(
            f"the teacher {run.cfg.teacher!r} has teacher_steps = 0 and no pretrained weights: it would teach random "
            "numbers. Set teacher_pretrained=true, or teacher_steps to the length of its training."
        )
    return build(run.cfg[role], pretrained=pretrained, **_shape(run.task, run.cfg))


def _shape(task: TaskCard, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What both sides have in common."""
    sizes = task.sizes
    return {
        "num_classes": sizes["classes"],
        "in_channels": sizes["channels"],
        "image_size": int(cfg.get("image_size", sizes["side"])),
        "normalize": bool(cfg.get("normalize_embedding", False)),
    }


def check_pair(task: TaskCard, cfg: Mapping[str, Any]) -> dict[str, Side]:
    """Layers of both nets; of a pretrained teacher that is not trained further, its classes and normalisation."""
    as_is = bool(cfg.get("teacher_pretrained", False)) and cfg.get("teacher_steps") == 0
    return {
        "student": pairs.side(cfg["student"], **_shape(task, cfg)),
        "teacher": pairs.side(cfg["teacher"], used_as_is=as_is, **_shape(task, cfg)),
    }


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Cross-entropy, summed over the labelled rows (nats); `label_smoothing` of a label goes to all classes alike."""
    logits = run.out("student").logits
    assert logits is not None
    smoothing = float(run.cfg.get("label_smoothing", 0.0))
    total = F.cross_entropy(logits, batch.labels, ignore_index=-1, reduction="sum", label_smoothing=smoothing)
    return {"task": Term(total, per="label")}


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """Top-1 accuracy and negative log-likelihood (nats) of what ships; top-5 accuracy where the task's card has it."""
    found = {}
    for role, suffix in run.shipped():
        said = run.predict(role, split)
        assert said.logits is not None
        hits = metrics.accuracy(said.logits, said.labels, axis=1, reduction="none")
        found[f"accuracy{suffix}"] = Metric(float(hits.mean()), len(hits), hits)
        if run.stage == "evaluate":
            nll = metrics.negative_log_likelihood(said.logits, said.labels, axis=1, reduction="none")
            found[f"nll{suffix}"] = Metric(float(nll.mean()), len(nll), nll)
        if "accuracy@5" in run.task.metrics:
            within = (said.logits.topk(5, dim=1).indices == said.labels.unsqueeze(1)).any(1).float()
            found[f"accuracy@5{suffix}"] = Metric(float(within.mean()), len(within), within)
    return found
