"""Losses of overlap that know soft labels: Jaccard metric losses, soft Jaccard, and their Dice and Tversky kin.

Legend: B items (images), C classes, (...) positions, N their number. p the prediction's probabilities, y the target's;
both in [0, 1], for each class a vector over positions. |.| is the L1 norm.

Three forms of what prediction and target share:

    jml-1         |min(p, y)| = (|p| + |y| - |p - y|) / 2     a metric on [0, 1]^N (Steinhaus)
    jml-2         <p, y>, held against <p, y> + |p - y|       0 at p = y, too
    soft-jaccard  <p, y>, held against |p| + |y| - <p, y>     0 at p = y only where y is hard

For hard y all three are one minus the Jaccard index of the sets, and equal. For soft y only the first two have their
minimum at p = y; the last is smallest where p is hard, so it must not be used with soft labels except to see that.

Source: Wang, Ning, Blaschko, NeurIPS 2023, arXiv:2302.05666; zifuwanggg/JDTLosses@68ce8ac losses/jdt_loss.py and, for
jml-2, @32b3f23 losses/jaccard_metric_losses.py.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kdzoo.losses.masks import Reduction, blank, check_mask, check_reduction

Form = Literal["jml-1", "jml-2", "soft-jaccard"]
Over = Literal["batch", "image", "class"]
Active = Literal["present", "all"]


class Overlap(NamedTuple):
    """What prediction and target share, what only the prediction has, what only the target has; one shape, L1 mass."""

    shared: Tensor
    extra: Tensor
    missed: Tensor


def overlap(prediction: Tensor, target: Tensor, *, form: Form) -> Overlap:
    """The three masses behind every loss here, over the last axis.

    Args:
        prediction: (..., N) in [0, 1].
        target: (..., N) in [0, 1]; or bool, a hard set, for which all forms are equal and the cheapest is taken.
        form: see the module.

    Returns:
        Three (...), in positions: float32, or float64 where an input is.

    Raises:
        ValueError: shapes differ, unknown form.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"overlap: prediction is {tuple(prediction.shape)} and target {tuple(target.shape)}, expected equal "
            "shapes: broadcasting would hold one class's target against another class"
        )
    if form not in ("jml-1", "jml-2", "soft-jaccard"):
        raise ValueError(f"form: got {form!r}, expected 'jml-1', 'jml-2' or 'soft-jaccard'")
    wide = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    p = prediction.to(wide)
    mine = p.sum(-1)
    if target.dtype == torch.bool:
        shared = torch.where(target, p, 0.0).sum(-1)
        return Overlap(shared, mine - shared, target.sum(-1).to(wide) - shared)
    y = target.to(wide)
    theirs = y.sum(-1)
    if form == "soft-jaccard":
        shared = (p * y).sum(-1)
        return Overlap(shared, mine - shared, theirs - shared)
    # |min(p, y)|, without `minimum`: its backward pass asks of every number which side it came from, at twice the time.
    least = (mine + theirs - (p - y).abs().sum(-1)) / 2
    shared = least if form == "jml-1" else (p * y).sum(-1)
    return Overlap(shared, mine - least, theirs - least)


def tversky(masses: Overlap, *, alpha: float, beta: float, smooth: float) -> Tensor:
    """``1 - (TP + s) / (TP + alpha FP + beta FN + s)``; where nothing is on either side (0 / 0), 0.

    alpha = beta = 1 is Jaccard, 1/2 Dice; other values weigh what is too much (alpha) and what is missed (beta).

    Raises:
        ValueError: a negative or infinite number.
    """
    if not all(0.0 <= value < math.inf for value in (alpha, beta, smooth)):
        raise ValueError(
            f"alpha, beta, smooth: got {alpha}, {beta}, {smooth}, expected finite numbers of at least 0; the loss "
            "would reward mistakes"
        )
    shared, extra, missed = masses
    whole = shared + alpha * extra + beta * missed + smooth
    there = whole > 0
    return torch.where(there, 1.0 - (shared + smooth) / torch.where(there, whole, 1.0), 0.0)


def jaccard_distance(
    prediction: Tensor,
    target: Tensor,
    *,
    form: Form,
    alpha: float = 1.0,
    beta: float = 1.0,
    smooth: float = 0.0,
) -> Tensor:
    """How far two vectors of memberships are apart, over the last axis: the loss of one class, on probabilities.

    jml-1 with alpha = beta = 1 and smooth = 0: ``(|p - y|) / (|min(p, y)| + |p - y|)``, symmetric, 0 exactly at p = y,
    at most 1, and the triangle inequality holds.

    Args:
        prediction: (..., N) in [0, 1].
        target: (..., N) in [0, 1], or bool. Gradients flow into both.
        form: see the module.
        alpha, beta, smooth: as in `tversky`.

    Returns:
        (...), in [0, 1]; no unit.

    Source: arXiv:2302.05666, equations of JML-1 and JML-2.

    Example:
        >>> y = torch.tensor([1.0, 0.5])
        >>> jaccard_distance(y, y, form="jml-1").item()
        0.0
        >>> round(jaccard_distance(y, y, form="soft-jaccard").item(), 4)  # 1 - 1.25 / 1.75
        0.2857
    """
    return tversky(overlap(prediction, target, form=form), alpha=alpha, beta=beta, smooth=smooth)


def jaccard_loss(
    student_logits: Tensor,
    target: Tensor,
    *,
    axis: int,
    form: Form,
    over: Over,
    active: Active,
    reduction: Reduction,
    alpha: float = 1.0,
    beta: float = 1.0,
    smooth: float = 0.0,
    threshold: float = 0.01,
    mask: Tensor | None = None,
    target_grad: bool = False,
) -> Tensor:
    """One minus the overlap of the softmax of the logits with hard or soft labels, mean over classes that count.

    With o_bc the masses of class c in image b and D the Tversky distance:

        over "batch"  D(sum over b of o_bc), mean over active classes c: areas are summed first ("D")
        over "image"  mean over active c of D(o_bc) for each image, mean over images that have one ("I")
        over "class"  mean over images b where c is active of D(o_bc), mean over classes that are anywhere ("C")

    Args:
        student_logits: (B, C, ...), the class axis at `axis`; the first of the other axes is the image.
        target: int64 class numbers of the item axes (B, ...), or probabilities of the logits' shape, detached.
        axis: the class axis.
        form: see the module.
        over: how images are joined.
        active: "present": classes (of an image, for "image" and "class") whose largest target is above `threshold`;
            "all": every class. A class that the target lacks contributes nearly 1 whatever is predicted for it, so
            take "present" for hard labels.
        reduction: "none" = one value a class ("batch", "class") or image ("image"), 0 for those that do not count;
            "mean" over those that count; "sum".
        alpha, beta, smooth: as in `tversky`; smooth in positions, and 0 is allowed.
        threshold: probability.
        mask: bool, the item axes, True = counts. Masked positions may hold anything, a label that is no class too.
        target_grad: let the gradient reach a soft target.

    Returns:
        (C,), (B,) or a scalar, in [0, 1]. Where nothing counts it is 0, and so is its gradient.

    Raises:
        ValueError: shapes that do not fit, unknown form, over, active or reduction.
        TypeError: a target that is neither class numbers nor probabilities; a mask that is not bool.

    Source: zifuwanggg/JDTLosses@68ce8ac losses/jdt_loss.py:JDTLoss with norm 1, gamma 1, no class weights. Differs
    because a class number is held against p without a one-hot copy in floating point: the value is the same.

    Example:
        >>> logits = torch.tensor([[[9.0, -9.0], [-9.0, 9.0]]])  # classes 0 and 1 at two positions
        >>> labels = torch.tensor([[0, 1]])
        >>> loss = jaccard_loss(
        ...     logits, labels, axis=1, form="jml-1", over="batch", active="present", reduction="mean"
        ... )
        >>> loss.item() < 1e-6
        True
    """
    check_reduction(reduction)
    if over not in ("batch", "image", "class") or active not in ("present", "all"):
        raise ValueError(
            f"over, active: got {over!r}, {active!r}, expected 'batch', 'image' or 'class', and 'present' or 'all'"
        )
    p, y = _vectors(student_logits, target, axis, mask, target_grad)
    masses = overlap(p, y, form=form)
    there = _active(y, active, threshold)
    if over == "batch":
        whole = Overlap(*(part.sum(0) for part in masses))
        return _of_active(
            tversky(whole, alpha=alpha, beta=beta, smooth=smooth), there.any(0), reduction=reduction
        )
    each = tversky(masses, alpha=alpha, beta=beta, smooth=smooth)
    along = 1 if over == "image" else 0
    count = there.sum(along)
    values = each.masked_fill(~there, 0.0).sum(along) / count.clamp(min=1)
    return _of_active(values, count > 0, reduction=reduction)


def _vectors(
    logits: Tensor, target: Tensor, axis: int, mask: Tensor | None, target_grad: bool
) -> tuple[Tensor, Tensor]:
    """(B, C, N) probabilities and target, bool for class numbers; positions that do not count are 0 in both."""
    if logits.dim() < 2 or not -logits.dim() <= axis < logits.dim() or axis % logits.dim() == 0:
        raise ValueError(
            f"axis: got {axis} for logits {tuple(logits.shape)}, expected a class axis after the first one, the image's"
        )
    axis %= logits.dim()
    items = tuple(size for place, size in enumerate(logits.shape) if place != axis)
    hard = not target.is_floating_point()
    if hard and target.dtype != torch.int64:
        raise TypeError(f"target: got {target.dtype}, expected int64 class numbers, or probabilities")
    wanted = items if hard else tuple(logits.shape)
    if tuple(target.shape) != wanted:
        raise ValueError(
            f"target: got {tuple(target.shape)} for logits {tuple(logits.shape)} with classes at {axis}, expected "
            f"{wanted}: labels would be held against the wrong places"
        )
    check_mask(mask, items)
    p = blank(logits, mask, axis).to(torch.promote_types(logits.dtype, torch.float32)).softmax(axis)
    positions = math.prod(items[1:])
    p = p.movedim(axis, 1).reshape(items[0], logits.shape[axis], positions)
    if hard:
        numbers = torch.arange(p.shape[1], device=p.device)
        y = target.reshape(items[0], 1, positions) == numbers.view(1, -1, 1)
    else:
        y = target if target_grad else target.detach()
        y = y.movedim(axis, 1).reshape(p.shape)
    if mask is None:
        return p, y
    keep = mask.reshape(items[0], 1, positions)
    return p * keep, y & keep if hard else y.masked_fill(~keep, 0.0)


def _active(y: Tensor, active: Active, threshold: float) -> Tensor:
    """(B, C) bool: which classes an image's target holds; in a batch, those that one of its images holds."""
    if active == "all" or not y.numel():
        return torch.full(y.shape[:2], active == "all", device=y.device)
    return y.any(2) if y.dtype == torch.bool else y.detach().amax(2) > threshold


def _of_active(values: Tensor, there: Tensor, *, reduction: Reduction) -> Tensor:
    """Unlike `masks.reduce`, a mean over nothing is 0: a batch without any label teaches nothing and breaks nothing."""
    values = values.masked_fill(~there, 0.0)
    if reduction == "none":
        return values
    return values.sum() if reduction == "sum" else values.sum() / there.sum().clamp(min=1)
