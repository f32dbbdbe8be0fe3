"""BPKD: Boundary Privileged Knowledge Distillation (Liu et al., WACV 2024, arXiv:2306.08075); card: bpkd.

Here: masks of edges and bodies from the labels (C1), classes pixel by pixel at edges (C2), shapes class by class inside
of them (C3). The authors released no training loss: C2 and C3 are put together from the paper's abstract, a third
party's file and the parts that are open set as the card says. Not here: soft masks made at the labels' resolution.

Shapes: B images, C classes, h x w positions where scores are compared: those of the student's head, or the image's.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.maps import channel_wise_divergence
from kdzoo.losses.masks import Reduction, reduce
from kdzoo.method import Batch, Term
from kdzoo_segmentation import models
from kdzoo_segmentation.borders import bodies, class_edges, edges
from kdzoo_segmentation.scores import at_scores, pair_of_scores

if TYPE_CHECKING:
    from kdzoo.runs import Run

MaskMode = Literal["zero", "neginf"]


def edge_loss(
    student: Tensor, teacher: Tensor, edge: Tensor | None, *, temperature: float, reduction: Reduction
) -> Tensor:
    """KL(teacher || student) of the CLASSES at each edge pixel, without the factor T^2 (C2).

    Args:
        student, teacher: (B, C, h, w) scores; the teacher is detached.
        edge: (B, h, w) bool, the union of all classes' edges; None takes every pixel: uniform distillation.
        temperature: T > 0.
        reduction: "none", "sum" or "mean", over edge pixels.

    Returns:
        (B, h, w), 0 off the edges, for "none", else a scalar; nats.

    Raises:
        ValueError: shapes differ, or a mean over no edge at all.
    """
    return kl_divergence(student, teacher, temperature=temperature, axis=1, reduction=reduction, mask=edge)


def masked_shapes(
    student: Tensor,
    teacher: Tensor,
    masks: Tensor,
    *,
    temperature: float,
    mask_mode: MaskMode,
    reduction: Reduction,
) -> Tensor:
    """KL(teacher || student) of where inside a mask each channel is active: a softmax over POSITIONS (C3).

        phi_c(Z)[p] = exp(Z_c[p] M_c[p] / T) / sum_q exp(Z_c[q] M_c[q] / T)        mask_mode "zero"
        phi_c(Z)[p] = M_c[p] exp(Z_c[p] / T) / sum_q M_c[q] exp(Z_c[q] / T)        mask_mode "neginf"

    Args:
        student, teacher: (B, C, h, w) scores; the teacher is detached.
        masks: (B, C, h, w) bool; with all True this is channel-wise distillation (Shu et al., arXiv:2011.13256).
        temperature: T > 0.
        mask_mode: what becomes of the other positions: their scores are set to 0 and stay in the softmax, or leave it.
        reduction: "none", "sum" or "mean", over images and classes.

    Returns:
        (B, C) for "none", else a scalar; nats, without the factor T^2. 0 for a class without any position.

    Raises:
        ValueError: masks of another shape, unknown mask_mode.
    """
    if masks.shape != student.shape:
        raise ValueError(
            f"masked_shapes: masks are {tuple(masks.shape)} and scores {tuple(student.shape)}, expected a mask for "
            "every class"
        )
    if mask_mode not in get_args(MaskMode):
        raise ValueError(f"mask_mode: got {mask_mode!r}, expected 'zero' or 'neginf'")
    outside = ~masks
    fill = 0.0
    if mask_mode == "neginf":
        # An empty class keeps its positions: a softmax over nothing is 0 / 0. Its value is dropped below.
        held = masks.flatten(2).any(2)
        outside, fill = outside & held[..., None, None], -torch.inf
    values = channel_wise_divergence(
        student.masked_fill(outside, fill),
        teacher.masked_fill(outside, fill),
        temperature=temperature,
        reduction="none",
    )
    if mask_mode == "neginf":
        values = values * held
    return reduce(values, reduction=reduction)


@hookimpl
def prepare_batch(run: Run, batch: Batch) -> None:
    """Edges where the scores are compared, and how many pixels they have: what C2 is divided by."""
    cfg = run.cfg
    image = batch.views["image"]
    if cfg.resolution == "image":
        height, width = image.shape[2:]
    else:
        height, width = _grid(cfg.student, run.task.sizes["classes"], *image.shape[1:])
    grid = batch.labels.new_empty(1, 1).expand(1, 1, height, width)
    labels = at_scores(batch.labels, grid)
    edge = edges(labels, radius=cfg.radius, element=cfg.element)
    batch.views["edge"] = edge
    batch.counts["edge"] = edge.numel() if cfg.edge_where == "all" else int(edge.sum())


@cache
def _grid(student: str, classes: int, channels: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a model's scores, which are not known before it has run."""
    layers = models.side(student, classes, channels, height, width).layers
    assert layers is not None
    return layers["score"][1], layers["score"][2]


def compared(run: Run) -> tuple[Tensor, Tensor]:
    """Both sides' scores, (B, C, h, w) each: as the student's head gives them, or both at the size of the image."""
    student, teacher = pair_of_scores(run)
    if run.cfg.resolution == "scores":
        return student, teacher
    resized = run.out("student").logits, run.signal("teacher").logits
    assert resized[0] is not None
    assert resized[1] is not None
    return resized[0], resized[1]


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """L_edge, a mean over edge pixels, and L_body, a mean over images and all C classes; both times T^2."""
    cfg = run.cfg
    terms: dict[str, Term] = {}
    if not (cfg.edge_weight or cfg.body_weight):
        return terms
    student, teacher = compared(run)
    edge = batch.views["edge"]
    if edge.shape[1:] != student.shape[2:]:
        raise KdzooError(
            f"edges were counted at {tuple(edge.shape[1:])} positions, as {cfg.student!r} scores them, and the student "
            f"scores {tuple(student.shape[2:])}: the mean over edge pixels would be a wrong one. Name the student's "
            "architecture in the setting student."
        )
    labels, classes = at_scores(batch.labels, student), student.shape[1]
    if cfg.edge_weight and cfg.edge_form == "pixels":
        where = None if cfg.edge_where == "all" else edge
        total = edge_loss(student, teacher, where, temperature=cfg.temperature, reduction="sum")
        terms["edge"] = Term(total, cfg.edge_weight * cfg.temperature**2, per="edge")
    elif cfg.edge_weight:
        masks = class_edges(labels, classes=classes, radius=cfg.radius, element=cfg.element)
        masks = torch.ones_like(masks) if cfg.edge_where == "all" else masks
        values = masked_shapes(
            student,
            teacher,
            masks,
            temperature=cfg.temperature,
            mask_mode=cfg.mask_mode,
            reduction="none",
        )
        total = (values.sum(1) / masks.any(1).sum((1, 2)).clamp(min=1)).sum()
        terms["edge"] = Term(total, cfg.edge_weight * cfg.temperature**2, per="item")
    if cfg.body_weight:
        masks = bodies(labels, edge, classes=classes)
        values = masked_shapes(
            student,
            teacher,
            torch.ones_like(masks) if cfg.body_where == "all" else masks,
            temperature=cfg.temperature,
            mask_mode=cfg.mask_mode,
            reduction="none",
        )
        terms["body"] = Term(values.mean(1).sum(), cfg.body_weight * cfg.temperature**2, per="item")
    return terms
