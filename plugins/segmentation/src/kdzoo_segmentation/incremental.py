"""Classes that come step by step: what all class-incremental tasks share.

`class_groups` says how many classes each step brings, "3-1-1-1" in the order of the task's classes. In the overlapped
setting a step's training images are those that hold at least one of its classes; every other class, old or future, is
labelled background. Validation during a step knows the classes so far, the others are background; test, and validation
after the last step, know all.

A stage of training sees `class_groups` up to its own step, so the same setting says which classes are known (all) and
which are new (those of the last step). The net is `multihead.MultiHead`; that of the step before is the frozen role
`previous`, from which the next one starts.

Any labelled data can be learnt so: `restrict` looks at label maps only.

Shapes: N images, B rows of a batch, C classes, H x W pixels. Labels are class numbers, 255 where nothing counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.masks import Reduction, reduce
from kdzoo.method import Batch, Metric, Role, Stage, Term, fit_stage
from kdzoo.task import Data
from kdzoo_segmentation import multihead, weights
from kdzoo_segmentation.measures import IGNORE
from kdzoo_segmentation.segmentation import Scores, check_labels, predictions

if TYPE_CHECKING:
    from kdzoo.runs import Run
    from kdzoo.settings import Settings
    from kdzoo_segmentation.models import Segmentor

INCREMENTS_ONLY = ("increment_steps", "increment_lr", "old_lr_scale", "freeze_norms", "ears", "ear_init")
"""Settings that the first step does not depend on: without them in its key more arms share it."""


# --- which classes, which images ----------------------------------------------------------------------------------


def groups_of(class_groups: str, classes: int) -> tuple[int, ...]:
    """Classes a step: "3-1-1-1" -> (3, 1, 1, 1).

    Args:
        class_groups: whole numbers above 0, joined by hyphens.
        classes: C, background included; the steps may bring fewer.

    Raises:
        KdzooError: something else, or more classes than there are.
    """
    parts = class_groups.split("-")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise KdzooError(
            f"class_groups got {class_groups!r}, expected whole numbers above 0 joined by hyphens, the classes of each "
            "step: a head of none could not be trained. Write, for example, 3-1-1-1."
        )
    groups = tuple(int(part) for part in parts)
    if sum(groups) > classes - 1:
        raise KdzooError(
            f"class_groups {class_groups!r} brings {sum(groups)} classes, but the task has {classes - 1} beside the "
            "background: the last heads would never see one of theirs. Take away as many."
        )
    return groups


def classes_held(data: Data, classes: int, batch: int = 64) -> Tensor:
    """(N, C) bool: which images hold which classes."""
    held = torch.zeros(len(data), classes + 1, dtype=torch.bool)
    for first in range(0, len(data), batch):
        rows = torch.arange(first, min(first + batch, len(data)))
        labels = data.collate(data.items, rows, None).labels.flatten(1).long()
        held[rows] = held[rows].scatter(1, labels.masked_fill(labels == IGNORE, classes), True)
    return held[:, :classes]


def relabelled(labels: Tensor, known: Sequence[int]) -> Tensor:
    """Labels (B, H, W) where every class that is not known is background; 255 stays."""
    keep = labels == IGNORE
    for number in known:
        keep = keep | (labels == number)
    return labels.masked_fill(~keep, 0)


def restrict(data: Data, split: str, groups: Sequence[int], held: Tensor | None = None) -> Data:
    """A split as the last of the steps `groups` sees it.

    Args:
        data: the split with the labels of all classes.
        split: "train": images that hold at least one of the last step's classes, these alone labelled; else all
            images, with the labels of all steps' classes.
        groups: classes of each step so far.
        held: (N, C) bool, `classes_held`; asked for by "train" only.

    Raises:
        KdzooError: no image holds one of the classes.
    """
    last = sum(groups)
    known = range(last - groups[-1] + 1 if split == "train" else 1, last + 1)
    chosen = torch.arange(len(data))
    if split == "train":
        assert held is not None
        chosen = held[:, list(known)].any(1).nonzero().squeeze(1)
        if not len(chosen):
            raise KdzooError(
                f"no training image holds one of the classes {known.start} to {last}: step {len(groups)} would have "
                "nothing to learn from. Join it with another step in class_groups."
            )

    def collate(items: Any, rows: Tensor, seeds: Tensor | None) -> Batch:
        batch = data.collate(items, chosen[rows], seeds)
        batch.labels = relabelled(batch.labels, known)
        return batch

    steps = "-".join(map(str, groups))
    return replace(
        data,
        ids=[data.ids[row] for row in chosen.tolist()],
        collate=collate,
        hash=hashlib.sha256(f"{data.hash} {split} {steps}".encode()).hexdigest(),
        groups=None if data.groups is None else data.groups[chosen],
    )


# --- the steps ----------------------------------------------------------------------------------------------------


def plan(cfg: Settings) -> list[Stage]:
    """Plain fine-tuning through the steps."""
    return stages(cfg)


def stages(
    cfg: Settings, unread: Sequence[str] = (), increment: Mapping[str, Any] | None = None
) -> list[Stage]:
    """One fit a step: step-0, step-1, ... Each starts from the net of the step before, its frozen role `previous`.

    All increments together take `increment_steps` optimiser steps, in equal parts.

    Args:
        cfg: the settings of the arm.
        unread: settings, beside those of the task's increments, that the first step does not depend on.
        increment: settings of every step but the first.

    Raises:
        KdzooError: optimiser steps that cannot be shared out equally.
    """
    parts = str(cfg.class_groups).split("-")
    later, whole = len(parts) - 1, int(cfg.increment_steps)
    if later and whole % later:
        raise KdzooError(
            f"increment_steps = {whole} for the {later} later steps of {cfg.class_groups}: they cannot have equal "
            f"parts, and arms would differ in their number of steps. Set a multiple of {later}."
        )
    steps = int(cfg.steps) + (0 if later else whole)  # all classes at once: as many steps as the others
    base = {
        "class_groups": parts[0],
        "steps": steps,
        "lr_scale": cfg.backbone_lr_scale,
        "lr_scale_of": ["backbone."],
    }
    reads = ("*", "!eval.*", *(f"!{name}" for name in (*INCREMENTS_ONLY, *unread)))
    found = [fit_stage("step-0", reads=reads, set=base, roles=(Role("student"),))]
    for number in range(1, len(parts)):
        found.append(
            fit_stage(
                f"step-{number}",
                needs=(f"step-{number - 1}",),
                set={
                    "class_groups": "-".join(parts[: number + 1]),
                    "steps": whole // later,
                    "lr": cfg.increment_lr,
                    "lr_scale": cfg.old_lr_scale,
                    "lr_scale_of": multihead.older_parts(number + 1),
                    **(increment or {}),
                },
                roles=(Role("previous", "frozen", f"stage:step-{number - 1}/student"), Role("student")),
            )
        )
    return found


def groups_now(run: Run) -> tuple[int, ...]:
    """Classes of each step, up to that of this stage."""
    return groups_of(str(run.cfg.class_groups), run.task.sizes["classes"])


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """The net of this step; `previous` is that of the step before, and the student starts from it.

    One background channel for all steps: what a method makes of the residuals is its own affair.
    """
    if role not in ("student", "previous"):
        return None
    cfg, groups = run.cfg, groups_now(run)
    if role == "previous":
        groups = groups[:-1]
    ears = len(groups) == 1 or bool(cfg.ears)
    model = multihead.build(
        cfg.student, groups, channels=run.task.sizes["channels"], ears=ears, rule="shared"
    )
    if role == "previous" or run.stage == "evaluate":
        return model
    if len(groups) > 1:
        model.take_over(cast(multihead.MultiHead, run.models["previous"]), ear_init=str(cfg.ear_init))
        if cfg.freeze_norms:
            model.freeze_norms()
    elif file := str(cfg.get("pretrained", "")):
        weights.load_backbone(cast("Segmentor", model), Path(file))
    return model


# --- loss and metrics ---------------------------------------------------------------------------------------------


def label_bce(logits: Tensor, labels: Tensor, *, reduction: Reduction) -> Tensor:
    """Binary cross-entropy against one-hot labels, summed over the classes: ``sum over c of BCE(z_c, [c = y])``.

    Computed as ``sum_c softplus(z_c) - z_y``, so no one-hot maps are made.

    Args:
        logits: (B, C, H, W), of sigmoids.
        labels: (B, H, W) int64, 0 to C - 1, or 255.
        reduction: "none" -> (B, H, W), 0 where the label is 255; "sum"; "mean" over the labelled pixels.

    Returns:
        Nats.

    Source: ANDYZAQ/BARM@0a59203 utils/loss.py:BCEWithLogitsLossWithIgnoreIndex.
    """
    keep = labels != IGNORE
    z = logits.float()
    taken = z.gather(1, labels.masked_fill(~keep, 0).unsqueeze(1)).squeeze(1)
    return reduce(F.softplus(z).sum(1) - taken, mask=keep, reduction=reduction)


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Binary cross-entropy of all classes so far on this step's labels, per labelled pixel."""
    logits = run.out("student").logits
    assert logits is not None
    check_labels(batch.labels, logits)
    return {"task": Term(label_bce(logits, batch.labels, reduction="sum"), per="pixel")}


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """What `Scores` measures of the classes so far, and mean IoU of the old ones and of the new ones.

    Old are the background and the first `old_classes`, whatever the arm's steps. Kept are the metrics that the task's
    card names: scores of sigmoids have no calibration of a softmax.
    """
    from kdzoo import catalog

    last, groups = run.stage == "evaluate", groups_now(run)
    size, old = len(run.data(split)), 1 + int(run.cfg.old_classes)
    names = catalog.load().module(run.task.slug).METAINFO["classes"]
    found: dict[str, Metric] = {}
    for role, suffix in run.shipped():
        score = Scores(1 + sum(groups), run.task.sizes["boundary"], last)
        for logits, part in predictions(run, role, split, int(run.cfg.get("eval_batch", 16))):
            score.add(logits, part.labels)
        values = score.values()
        values["miou[old]"] = score.whole.mean_iou(range(min(old, 1 + sum(groups))))
        values["miou[new]"] = score.whole.mean_iou(range(old, 1 + sum(groups)))
        if last:
            of_classes = score.whole.iou.tolist()
            values |= {f"iou[{n}]": None if v != v else v for n, v in zip(names, of_classes, strict=False)}
        for name, value in values.items():
            if name.partition("[")[0] in run.task.metrics:
                found[f"{name}{suffix}"] = Metric(value, size)
    return found
