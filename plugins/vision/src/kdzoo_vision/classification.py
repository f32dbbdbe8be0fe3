"""What all classification tasks share: models by name, cross-entropy on labelled rows, accuracy.

A task's module imports these hooks and adds `data`. Shapes: B rows, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn

from kdzoo import metrics
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch, Metric, Term
from kdzoo_vision.models import build, wants_pretrained

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """Student and teacher by the names in the settings."""
    if role not in ("student", "teacher"):
        return None
    sizes = run.task.sizes
    pretrained = wants_pretrained(run, role)
    if role == "teacher" and run.stage == "teacher" and not run.steps and not pretrained:
        raise KdzooError(
            f"the teacher {run.cfg.teacher!r} has teacher_steps = 0 and no pretrained weights: it would teach random "
            "numbers. Set teacher_pretrained=true, or teacher_steps to the length of its training."
        )
    return build(
        run.cfg[role],
        num_classes=sizes["classes"],
        in_channels=sizes["channels"],
        image_size=int(run.cfg.get("image_size", sizes["side"])),
        pretrained=pretrained,
        normalize=bool(run.cfg.get("normalize_embedding", False)),
    )


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Cross-entropy, summed over the labelled rows (nats)."""
    logits = run.out("student").logits
    assert logits is not None
    total = F.cross_entropy(logits, batch.labels, ignore_index=-1, reduction="sum")
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
