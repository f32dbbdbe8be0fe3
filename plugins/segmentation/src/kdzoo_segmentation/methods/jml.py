"""Jaccard Metric Losses: Optimizing the Jaccard Index with Soft Labels (Wang, Ning, Blaschko, NeurIPS 2023); card: jml.

arXiv:2302.05666. A loss of overlap whose minimum is at the target, soft or hard, so that it can learn from a teacher's
probabilities and from smoothed labels. The loss itself is `kdzoo.losses.jaccard` (C1 to C3), labels that are soft at
borders are `kdzoo_segmentation.boundary_labels` (C4). Here: the objective of teacher and student (C5), the teacher,
trained with it on such labels (C6), and scores image by image.

Not here: recalibration of the teacher by kernel density (off in the official configurations), the focal power, the
logarithm and the class weights of the official loss.

Shapes: B images, C classes, H x W pixels, h x w of an auxiliary head.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.jaccard import Active, jaccard_loss
from kdzoo.method import Batch, Metric, Role, Stage, Term, evaluate_stage, fit_stage
from kdzoo_segmentation import models
from kdzoo_segmentation.boundary_labels import smoothed
from kdzoo_segmentation.image_wise import ImageAreas
from kdzoo_segmentation.measures import IGNORE, Areas, Calibration
from kdzoo_segmentation.models import resized
from kdzoo_segmentation.segmentation import Mean, check_labels, predictions

if TYPE_CHECKING:
    from kdzoo.method import Output
    from kdzoo.runs import Run
    from kdzoo.settings import Settings

Terms = list[dict[str, Term]]
TUTOR = "tutor"
"""The teacher of this method: a role, and the stage that trains it."""


def plan(cfg: Settings) -> list[Stage]:
    """C6: train the teacher, once for all seeds and for all arms with the same labels; then the student."""
    _check(cfg)
    if not cfg.soft_weight:
        return [fit_stage(roles=(Role("student"),))]
    if cfg.tutor == "task":
        return [fit_stage(roles=(Role("student"), Role(TUTOR, "frozen", "task")))]
    frozen = Role(TUTOR, "frozen", f"stage:{TUTOR}")
    stage = fit_stage(
        TUTOR,
        reads=("*", "!eval.*", "!student", "!tutor", "!tutor_*"),
        # Constant whatever an arm does with its student: so all arms have one teacher.
        set={
            "steps": cfg.tutor_steps or cfg.teacher_steps,
            "teacher": cfg.tutor_net or cfg.teacher,
            "task_weight": 1.0,
            "pixel_weight": 1.0 - cfg.tutor_jaccard_weight,
            "jaccard_weight": cfg.tutor_jaccard_weight,
            "label_weight": 1.0,
            "soft_weight": 0.0,
            "label_smoothing": cfg.tutor_smoothing,
            "main_weight": 0.5,
            "auxiliary_weight": 0.5,
            "temperature": 1.0,
            "form": "jml-1",
            "alpha": 1.0,
            "beta": 1.0,
            "batch_weight": 1.0,
            "image_weight": 0.0,
            "class_weight": 0.0,
            "active_hard": "present",
            "active_soft": "all",
        },
        seeded=False,
        roles=(Role("student", "train", "init:teacher"),),
    )
    return [
        stage,
        fit_stage(needs=(TUTOR,), roles=(Role("student"), frozen)),
        evaluate_stage(roles=(frozen,)),
    ]


def _check(cfg: Settings) -> None:
    """Refuse arms that would learn nothing or not what they are called, before anything trains."""
    if not (cfg.label_weight or cfg.soft_weight) or not (cfg.pixel_weight or cfg.jaccard_weight):
        raise KdzooError(
            f"label_weight = {cfg.label_weight:g}, soft_weight = {cfg.soft_weight:g}, pixel_weight = "
            f"{cfg.pixel_weight:g}, jaccard_weight = {cfg.jaccard_weight:g}: all terms have weight 0 and there is "
            "nothing to learn. Set one of the first two and one of the last two above 0."
        )
    if cfg.jaccard_weight and not (cfg.batch_weight or cfg.image_weight or cfg.class_weight):
        raise KdzooError(
            "jaccard_weight is above 0, but batch_weight, image_weight and class_weight are 0: the Jaccard loss would "
            "be left out in silence. Set one of the three above 0, or jaccard_weight = 0."
        )
    if cfg.border_side % 2 == 0:
        raise KdzooError(
            f"border_side = {cfg.border_side}, expected an odd number: a neighbourhood has its pixel in the middle. "
            f"Set it to {cfg.border_side + 1}."
        )
    steps = cfg.tutor_steps or cfg.teacher_steps or cfg.get("teacher_weights")
    if cfg.soft_weight and cfg.tutor == "own" and not steps:
        raise KdzooError(
            "tutor = 'own' with tutor_steps = 0 and teacher_steps = 0: the teacher would teach random numbers. Set one "
            "of them to the length of its training, or tutor = task to learn from the task's teacher."
        )
    if cfg.get("class_weights", "none") != "none":
        raise KdzooError(
            f"class_weights = {cfg.class_weights!r}, expected 'none': the objective of this method has no weights of "
            "classes, and the setting would be ignored. Set class_weights = none."
        )


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """The tutor by its name, asked for its auxiliary scores, too; all else is the task's."""
    if role != TUTOR:
        return None
    cfg, sizes = run.cfg, run.task.sizes
    name = cfg.tutor_net if cfg.tutor == "own" and cfg.tutor_net else cfg.teacher
    model = models.build(name, classes=sizes["classes"], channels=sizes["channels"])
    model.always_auxiliary = True
    return model


def main_head(output: Output, labels: Tensor) -> Tensor:
    """The main head's scores at the size of the labels, which may be smaller than the image: (B, C, H, W)."""
    assert output.logits is not None
    if output.logits.shape[2:] == labels.shape[1:]:
        return output.logits
    return resized(output.features["score"], labels)


def heads(cfg: Settings, output: Output, labels: Tensor) -> list[tuple[float, Tensor]]:
    """The weight and the scores (B, C, H, W) of the main head and of each auxiliary head; those of weight 0 are out.

    A net without auxiliary heads keeps `main_weight`, as the official code does.
    """
    found = [(float(cfg.main_weight), main_head(output, labels))]
    extra = output.extra.get("auxiliary", []) if cfg.auxiliary_weight else []
    found += [(float(cfg.auxiliary_weight), resized(score, labels)) for score in extra]
    return [(weight, score) for weight, score in found if weight]


def pixel_labels(cfg: Settings, output: Output, labels: Tensor, soft: Tensor | None) -> Tensor:
    """C5 and C6: sum over heads and labelled pixels of the cross-entropy, or of KL(soft label || student); nats.

    Args:
        labels: (B, H, W), classes or 255.
        soft: (B, C, H, W) probabilities in place of the labels, 0 at pixels to be ignored, or None.

    Source: zifuwanggg/JDTLosses@68ce8ac models/segmentor.py:forward_loss_hard_label, losses/kl_div_loss.py. There a
    mean over all pixels of hard labels, those to be ignored counted; here core divides by the labelled ones.
    """
    total = torch.zeros((), device=labels.device)
    for weight, score in heads(cfg, output, labels):
        if soft is None:
            value = F.cross_entropy(score.float(), labels, ignore_index=IGNORE, reduction="sum")
        else:
            # Cross-entropy minus the labels' entropy: a third of the time of a divergence between two softmaxes.
            value = F.cross_entropy(score.float(), soft, reduction="sum") + torch.xlogy(soft, soft).sum()
        total = total + weight * value
    return total


def pixel_soft(cfg: Settings, student: Output, tutor: Output, labels: Tensor, keep: Tensor | None) -> Tensor:
    """C5: ``T^2 KL(tutor || student)``, sum over the labelled pixels and the heads that both sides have; nats.

    Args:
        keep: (B, H, W) bool, the labelled pixels; None for all.

    Source: zifuwanggg/JDTLosses@68ce8ac models/segmentor.py:forward_loss_kd, which needs an auxiliary head on both.
    """
    total = torch.zeros((), device=labels.device)
    both = zip(heads(cfg, student, labels), heads(cfg, tutor, labels), strict=False)
    for (weight, mine), (_, taught) in both:
        value = kl_divergence(
            mine,
            taught,
            temperature=float(cfg.temperature),
            axis=1,
            reduction="sum",
            mask=keep,
        )
        total = total + weight * float(cfg.temperature) ** 2 * value
    return total


def overlap_loss(cfg: Settings, logits: Tensor, target: Tensor, keep: Tensor | None) -> Tensor:
    """C1 to C3: the Jaccard loss against labels (B, H, W) or probabilities (B, C, H, W), images joined as weighted.

    Only pixels in `keep` (B, H, W) count, against labels and against probabilities; None for all.
    """
    active: Active = cfg.active_soft if target.is_floating_point() else cfg.active_hard
    total = torch.zeros((), device=logits.device)
    weights = {"batch": cfg.batch_weight, "image": cfg.image_weight, "class": cfg.class_weight}
    for over, weight in weights.items():
        if weight:
            total = total + float(weight) * jaccard_loss(
                logits,
                target,
                axis=1,
                form=cfg.form,
                over=over,  # type: ignore[arg-type]
                active=active,
                reduction="mean",
                alpha=float(cfg.alpha),
                beta=float(cfg.beta),
                smooth=float(cfg.smooth),
                threshold=float(cfg.active_threshold),
                mask=keep,
            )
    return total


@hookimpl(wrapper=True)
def loss_terms(run: Run, batch: Batch) -> Generator[None, Terms, Terms]:
    """C5; a wrapper, since the task's own term, cross-entropy with auxiliary heads at 0.4, is another one here."""
    others = yield
    labels: Tensor = batch.labels
    keep = None if batch.counts["pixel"] == labels.numel() else labels != IGNORE
    own = _label_terms(run, labels, keep) | _soft_terms(run, labels, keep)
    return [*({name: term for name, term in part.items() if name != "task"} for part in others), own]


def _label_terms(run: Run, labels: Tensor, keep: Tensor | None) -> dict[str, Term]:
    """What is learned from labels, hard or smoothed at borders."""
    cfg, weight = run.cfg, float(run.cfg.label_weight)
    if not weight:
        return {}
    student = run.out("student")
    logits, soft = main_head(student, labels), None
    check_labels(labels, logits)
    if cfg.label_smoothing:
        soft = smoothed(
            labels, classes=logits.shape[1], epsilon=float(cfg.label_smoothing), side=int(cfg.border_side)
        )
    terms: dict[str, Term] = {}
    if cfg.pixel_weight:
        total = pixel_labels(cfg, student, labels, soft)
        terms["task"] = Term(total, float(cfg.pixel_weight) * weight, per="pixel")
    if cfg.jaccard_weight:
        value = overlap_loss(cfg, logits, labels if soft is None else soft, keep)
        terms["jaccard"] = Term(value, float(cfg.jaccard_weight) * weight)
    return terms


def _soft_terms(run: Run, labels: Tensor, keep: Tensor | None) -> dict[str, Term]:
    """What is learned from the tutor, at the size of the labels."""
    cfg, weight = run.cfg, float(run.cfg.soft_weight)
    if not weight:
        return {}
    student, tutor = run.out("student"), run.signal(TUTOR)
    mine, taught = main_head(student, labels), main_head(tutor, labels)
    if mine.shape != taught.shape:
        raise KdzooError(
            f"the student scores {mine.shape[1]} classes and the teacher {taught.shape[1]}: class k would be another "
            "class on each side. Train both on the same set of classes."
        )
    terms: dict[str, Term] = {}
    if cfg.pixel_weight:
        total = pixel_soft(cfg, student, tutor, labels, keep)
        terms["soft-labels"] = Term(total, float(cfg.pixel_weight) * weight, per="pixel")
    if cfg.jaccard_weight:
        q = (taught.float() / float(cfg.temperature)).softmax(1)
        value = overlap_loss(cfg, mine, q, keep)
        terms["soft-jaccard"] = Term(value, float(cfg.jaccard_weight) * weight)
    return terms


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """At the end: mean IoU image by image, and how good and how calibrated the tutor is, where it is not the task's."""
    found: dict[str, Metric] = {}
    if run.stage != "evaluate":
        return found
    size, classes, rows = len(run.data(split)), run.task.sizes["classes"], int(run.cfg.get("eval_batch", 16))
    for role, suffix in run.shipped() if "miou_i" in run.task.metrics else ():
        areas = ImageAreas(classes)
        for logits, part in predictions(run, role, split, rows):
            areas.add(logits.argmax(1), part.labels)
        found[f"miou_i{suffix}"] = Metric(areas.mean("iou", "image"), size)
        found[f"miou_c{suffix}"] = Metric(areas.mean("iou", "class"), size)
    if TUTOR in run.models:
        whole, calibration, same = Areas(classes), Calibration(), Mean()
        both = zip(
            predictions(run, TUTOR, split, rows), predictions(run, "student", split, rows), strict=True
        )
        for (taught, part), (said, _) in both:
            whole.add(taught.argmax(1), part.labels)
            calibration.add(taught.softmax(1), part.labels)
            same.add((taught.argmax(1) == said.argmax(1))[part.labels != IGNORE].float())
        found[f"miou[model={TUTOR}]"] = Metric(whole.mean_iou(), size)
        found[f"ece[model={TUTOR}]"] = Metric(calibration.error, size)
        found[f"agreement[teacher={TUTOR}]"] = Metric(same.value, size)
    return found
