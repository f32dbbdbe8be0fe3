"""What `kdzoo.losses.fused_head.head_loss` refuses, before the first product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdzoo.losses.chunk_forms import Form, Inverse
from kdzoo.losses.divergences import Temperature, check_temperature
from kdzoo.losses.masks import check_mask


def check_arguments(
    student: Sequence[Tensor | None],
    teacher: Any,
    divergence: Form | None,
    temperature: Temperature,
    divergence_weight: float,
    labels: Tensor | None,
    label_weight: float,
    reduction: str,
    mask: Tensor | None,
) -> Inverse:
    """Raise what `head_loss` documents; returns (1 / T_student, 1 / T_teacher)."""
    if reduction not in ("sum", "mean"):
        raise ValueError(
            f"reduction: got {reduction!r}, expected 'sum' or 'mean'; the weight's gradient is one sum over all "
            "tokens, made in the forward pass, so values per token have none. They are in the result beside the total"
        )
    if divergence is None and labels is None:
        raise ValueError(
            "head_loss: got neither a divergence nor labels, expected at least one; nothing to learn"
        )
    if (divergence is None) != (teacher is None):
        given, lacks = ("a divergence", "teacher") if teacher is None else ("a teacher", "divergence")
        raise ValueError(f"{lacks}: got None beside {given}, expected both or neither")
    for name, weight in (("divergence_weight", divergence_weight), ("label_weight", label_weight)):
        if not math.isfinite(weight):
            raise ValueError(f"{name}: got {weight}, expected a finite number")
    hidden, head = student[0], student[1]
    assert hidden is not None
    assert head is not None
    _check_head("student", student)
    items, classes = tuple(hidden.shape[:-1]), head.shape[0]
    if teacher is not None:
        _check_teacher(teacher, items, classes)
    check_mask(mask, items)
    _check_labels(labels, mask, items, classes)
    if reduction == "mean" and (hidden.shape[:-1].numel() if mask is None else int(mask.sum())) == 0:
        raise ValueError(
            f"reduction='mean': got no item that counts (shape {items}), expected at least one; the mean would be 0/0 "
            "= NaN. Take reduction='sum' and divide by the count of the whole optimizer step"
        )
    t_student, t_teacher = check_temperature(temperature)
    return 1.0 / t_student, 1.0 / t_teacher


def _check_head(side: str, head: Sequence[Tensor | None]) -> None:
    hidden, weight, bias = head
    assert hidden is not None
    assert weight is not None
    if not (hidden.is_floating_point() and weight.is_floating_point()):
        raise TypeError(
            f"{side}: got hidden {hidden.dtype} and weight {weight.dtype}, expected floating point"
        )
    if weight.dim() != 2 or hidden.dim() < 1 or hidden.shape[-1] != weight.shape[1] or weight.shape[0] == 0:
        raise ValueError(
            f"{side}: got hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)}, expected (..., D) and (V, D) "
            "with V > 0, as torch.nn.Linear has it"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{side}: got bias {tuple(bias.shape)}, expected ({weight.shape[0]},), one number per class"
        )


def _check_teacher(teacher: Any, items: tuple[int, ...], classes: int) -> None:
    """A head (hidden, weight, bias), or logits."""
    if isinstance(teacher, Tensor):
        given, width, what = tuple(teacher.shape[:-1]), teacher.shape[-1], "logits"
        if not teacher.is_floating_point():
            raise TypeError(f"teacher: got dtype {teacher.dtype}, expected floating point logits")
    else:
        _check_head("teacher", teacher)
        given, width, what = tuple(teacher[0].shape[:-1]), teacher[1].shape[0], "head"
    if width != classes:
        raise ValueError(
            f"teacher: got a {what} of {width} classes beside the student's {classes}, expected equal vocabularies; "
            "padding takes probability mass that depends on an arbitrary offset of the logits. Cut both to the common "
            "classes, or take kdzoo.losses.transport, which compares different vocabularies"
        )
    if given != items:
        raise ValueError(
            f"teacher: got item axes {given}, expected the student's {items}; a token would be compared with another "
            "one's teacher"
        )


def _check_labels(labels: Tensor | None, mask: Tensor | None, items: tuple[int, ...], classes: int) -> None:
    if labels is None:
        return
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: got dtype {labels.dtype}, expected torch.int64 classes")
    if tuple(labels.shape) != items:
        raise ValueError(f"labels: got shape {tuple(labels.shape)}, expected the item axes {items}")
    seen = labels if mask is None else labels[mask]
    if seen.numel() and not 0 <= int(seen.min()) <= int(seen.max()) < classes:
        raise ValueError(
            f"labels: got {int(seen.min())} to {int(seen.max())} where the mask counts, expected 0 to {classes - 1}. "
            "Hide tokens without a label: mask=valid_labels(labels, ignore_index=-100) of kdzoo.losses.masks"
        )
