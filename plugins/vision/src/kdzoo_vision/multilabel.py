"""What all multi-label tasks share: backbone and ML-Decoder by name, BCE on labelled rows, mAP, OF1, CF1.

A task's module imports these hooks and adds `data`. Student, teacher and every arm have the same kind of head, so
their sizes and starts agree. Shapes: B rows, N images of a split, C labels, D width of a label-wise embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdzoo.cards import Side, TaskCard
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.label_metrics import average_precision, f1_at_true_count
from kdzoo.losses.label_wise import structure_gap
from kdzoo.losses.multilabel import binary_cross_entropy
from kdzoo.method import Batch, Metric, Term
from kdzoo_vision import one_cycle, pairs
from kdzoo_vision.ml_decoder import LabelModel
from kdzoo_vision.models import build, wants_pretrained

if TYPE_CHECKING:
    from kdzoo.runs import Run

STRUCTURE_IMAGES = 2000  # distances among all 40,000 images of COCO's largest label would take 2 GB
CHUNK = 250  # images whose label-wise embeddings are made at a time


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """Student and teacher by the names in the settings; the teacher's decoder has its own width."""
    if role not in ("student", "teacher"):
        return None
    cfg, shape = run.cfg, _shape(run.task, run.cfg)
    if role == "teacher" and run.stage == "teacher" and not run.steps:
        raise KdzooError(
            "the teacher has teacher_steps = 0: no pretrained weights exist for its decoder, so it would teach random "
            "numbers. Set teacher_steps to the length of its training."
        )
    backbone = build(cfg[role], pretrained=wants_pretrained(run, role), **shape)
    part = "" if role == "student" else "teacher_"
    return LabelModel(
        backbone,
        run.task.sizes["classes"],
        (shape["in_channels"], shape["image_size"], shape["image_size"]),
        width=int(cfg[f"{part}label_dim"]),
        hidden=int(cfg[f"{part}label_hidden"]),
        heads=int(cfg[f"{part}label_heads"]),
        dropout=float(cfg.label_dropout),
    )


def _shape(task: TaskCard, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What both backbones have in common; the labels are the decoder's business."""
    return {
        "num_classes": None,
        "in_channels": task.sizes["channels"],
        "image_size": int(cfg.get("image_size", task.sizes["side"])),
    }


def check_pair(task: TaskCard, cfg: Mapping[str, Any]) -> dict[str, Side]:
    """Layers of both backbones."""
    return {role: pairs.side(cfg[role], **_shape(task, cfg)) for role in ("student", "teacher")}


@hookimpl(wrapper=True)
def fit(run: Run) -> Iterator[None]:
    """Core's loop; with the schedule one-cycle also the optimiser that goes with it."""
    if run.cfg.schedule == "one-cycle":
        run.make_optimizer = one_cycle.make_optimizer
    return (yield)


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Binary cross-entropy, summed over labels and labelled rows (nats)."""
    logits, labels = run.out("student").logits, batch.labels
    assert logits is not None
    if batch.counts["label"] < len(labels):
        known = labels[:, 0] >= 0
        logits, labels = logits[known], labels[known]
    return {"task": Term(binary_cross_entropy(logits, labels, reduction="sum"), per="label")}


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """mAP over the labels that the split has; on `test` also OF1, CF1 and how far the geometry is from the teacher's.

    ``map[rare]`` and ``map[common]`` are means over the labels that the task's `rare_labels` parts.
    """
    found: dict[str, Metric] = {}
    rare = _rare_labels(run)
    for role, suffix in run.shipped():
        said = run.predict(role, split)
        assert said.logits is not None
        precision = average_precision(said.logits, said.labels)
        present = said.labels.gt(0).sum(0)
        found[f"map{suffix}"] = _mean(precision, present > 0, len(said.ids))
        for name, part in (("rare", rare), ("common", ~rare)):
            subset = f"[{name}]" if not suffix else f"[{name},{suffix[1:-1]}]"
            found[f"map{subset}"] = _mean(precision, part & (present > 0), int(present[part].sum()))
        if run.stage != "evaluate":
            continue
        micro, macro = f1_at_true_count(said.logits, said.labels)
        found[f"of1{suffix}"] = Metric(float(micro), len(said.ids))
        found[f"cf1{suffix}"] = Metric(float(macro), len(said.ids))
        if "teacher" in run.models:
            for name, gaps in structure_gaps(run, role, split).items():
                found[f"{name}_gap{suffix}"] = (
                    Metric(float(gaps.mean()), len(gaps), gaps) if len(gaps) else Metric(None, 0)
                )
    return found


def _rare_labels(run: Run) -> Tensor:
    """(C,) bool, by the task's module: known before training."""
    from kdzoo import catalog

    rare: Tensor = catalog.load().module(run.task.slug).rare_labels(run)
    return rare


def rarest_third(run: Run) -> Tensor:
    """(C,) bool: the third of the labels that fewest training images have; of equal ones the first in order."""
    counts = run.data("train").items.labels.sum(0)
    rare = torch.zeros(len(counts), dtype=torch.bool)
    rare[counts.argsort(stable=True)[: len(counts) // 3]] = True
    return rare


def _mean(precision: Tensor, chosen: Tensor, n: int) -> Metric:
    """The mean over the chosen labels; None, never 0, where there is none."""
    return Metric(float(precision[chosen].mean()) if bool(chosen.any()) else None, n)


def structure_gaps(run: Run, role: str, split: str) -> dict[str, Tensor]:
    """How far a role's label-wise distances are from the teacher's on the first `STRUCTURE_IMAGES` of a split.

    Returns:
        "class_structure": one value a label of three or more images; "instance_structure": one an image of three or
        more labels; see `kdzoo.losses.label_wise.structure_gap`.
    """
    data = run.data(split)
    count = min(len(data), STRUCTURE_IMAGES)
    parts: dict[str, list[Tensor]] = {role: [], "teacher": []}
    labels = []
    for first in range(0, count, CHUNK):
        rows = torch.arange(first, min(first + CHUNK, count))
        batch = run.to_device(data.collate(data.items, rows, None))
        labels.append(batch.labels.cpu())
        for name, made in parts.items():
            with torch.no_grad(), run.device_info.autocast():
                made.append(run.models[name](batch.views["image"]).extra["labels"].float().cpu())
    targets = torch.cat(labels)
    student, teacher = torch.cat(parts[role]), torch.cat(parts["teacher"])
    return {
        "class_structure": structure_gap(student.transpose(0, 1), teacher.transpose(0, 1), targets.T),
        "instance_structure": structure_gap(student, teacher, targets),
    }
