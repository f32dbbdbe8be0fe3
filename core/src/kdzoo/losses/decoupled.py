"""Decoupled knowledge distillation (DKD): the target's share and the ranking of the others, weighed apart.

Paper: Decoupled Knowledge Distillation, Zhao et al., CVPR 2022, https://arxiv.org/abs/2203.08679.
Here: both parts and their weighted sum, on logits of any layout. Not here: the warm-up of the weight over
epochs and the cross-entropy on labels, which belong to the training method.

Legend: (..., C, ...) logits with the class axis at `axis`; (...) item axes; T temperature; y the item's
target class; p, q = softmax(teacher / T), softmax(student / T).

Everything is computed from log odds. With n = logsumexp of the other classes' logits / T and z = the target's
logit / T: log p_y = logsigmoid(z - n) and log(1 - p_y) = logsigmoid(n - z), both exact however close p_y is to 0
or 1. (In float32, 1 - p_y and log p_y are 0 from p_y = 1 - 3e-8 on, where confident teachers at T = 1 are.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kdzoo.losses.divergences import SMALL, check_pair, expected_log_ratio
from kdzoo.losses.masks import Reduction, blank, check_mask, reduce
from kdzoo.losses.vocabulary import accumulation_dtype, chunked_kl


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    alpha: float,
    beta: float,
    temperature: float,
    scale_by_temperature_squared: bool,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
    teacher_grad: bool = False,
) -> Tensor:
    """alpha TCKD + beta NCKD. With alpha = 1 and beta = 1 - p_y it would be plain KL(teacher || student).

    Args:
        student_logits: (..., C, ...), C >= 2.
        teacher_logits: the same shape.
        targets: (...) integer classes 0..C-1; where `mask` is False they may be anything, e.g. -100.
        alpha: weight of the target part; 1 in the paper.
        beta: weight of the non-target part; officially 8, for some pairs on CIFAR-100 less (2 for ResNet-56
            to ResNet-20), 0.5 on ImageNet.
        temperature: T > 0; officially 4 on CIFAR-100, 1 on ImageNet.
        scale_by_temperature_squared: multiply by T^2, as paper and official code do, so that the weights keep
        their
            meaning when T changes.
        axis: the class axis.
        reduction: "none", "sum" or "mean" (over items that count).
        mask: bool, item axes; None counts all.
        teacher_grad: let the gradient reach the teacher.

    Returns:
        (...) for "none", else a scalar; nats (times T^2).

    Raises:
        ValueError: fewer than two classes, a target outside 0..C-1 (seen on CPU tensors; a check elsewhere
        would wait
            for the device), and as in `kl_divergence`.
        TypeError: targets that are not integers.

    Source: equations 5 to 7; official megvii-research/mdistiller@e8c5bb3 mdistiller/distillers/DKD.py. It
    takes 1000 from the target's scaled logit and the log of summed probabilities; the values agree until such a
    sum underflows (log odds beyond about 100 in float32), where its loss is inf or NaN.

    Example:
        >>> s, t = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0, 0.0]])
        >>> settings = {"temperature": 1.0, "scale_by_temperature_squared": True, "axis": -1}
        >>> loss = dkd(s, t, torch.tensor([0]), alpha=1.0, beta=8.0, reduction="mean", **settings)
        >>> round(loss.item(), 4)  # NCKD is 0 here
        0.433
    """
    target, nontarget = dkd_parts(
        student_logits,
        teacher_logits,
        targets,
        temperature=temperature,
        axis=axis,
        mask=mask,
        teacher_grad=teacher_grad,
    )
    scale = temperature**2 if scale_by_temperature_squared else 1.0
    return reduce(scale * (alpha * target + beta * nontarget), reduction=reduction, mask=mask)


def dkd_parts(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    axis: int,
    mask: Tensor | None = None,
    teacher_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """(TCKD, NCKD), each (...) in nats, unweighted, without T^2; KL(p || q) = TCKD + (1 - p_y) NCKD.

    TCKD = KL between the pairs (p_y, 1 - p_y) and (q_y, 1 - q_y).
    NCKD = KL between p and q restricted to the other classes and renormalised; 0 for two classes.
    Arguments and errors as in `dkd`.
    """
    axis, _ = check_pair(student_logits, teacher_logits, temperature, axis, "none", mask)
    classes = student_logits.shape[axis]
    items = student_logits.shape[:axis] + student_logits.shape[axis + 1 :]
    targets = _check_targets(targets, items, classes, mask)
    if not teacher_grad:
        teacher_logits = teacher_logits.detach()
    dtype = accumulation_dtype(student_logits, teacher_logits)
    at = targets.unsqueeze(axis)
    s_odds, s_rest = _split(blank(student_logits, mask, axis).to(dtype) / temperature, at, axis)
    t_odds, t_rest = _split(blank(teacher_logits, mask, axis).to(dtype) / temperature, at, axis)
    target = _binary_kl(t_odds, s_odds)
    if s_rest.numel() > SMALL and not teacher_grad:
        nontarget = chunked_kl(s_rest, t_rest, temperature=(1.0, 1.0), axis=axis)
    else:
        nontarget = expected_log_ratio(t_rest, s_rest, axis)
    if mask is None:
        return target, nontarget
    return target.masked_fill(~mask, 0.0), nontarget.masked_fill(~mask, 0.0)


def _split(scaled: Tensor, at: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Scaled logits -> (log odds of the target, log probabilities of the others among themselves).

    The target keeps its place among the others with probability 0, so that no class moves.
    """
    others = scaled.scatter(axis, at, -torch.inf)
    total = torch.logsumexp(others, axis, keepdim=True)
    return (scaled.gather(axis, at) - total).squeeze(axis), others - total


def _binary_kl(p_odds: Tensor, q_odds: Tensor) -> Tensor:
    """KL between two coins given by their log odds.

    It is the same for heads and tails, so let the first coin's likelier side be heads, with odds e (and f, the second
    coin's, for that side): log sigmoid(e) - log sigmoid(f) + sigmoid(-e) (f - e). The terms are then as small as the
    result; counted from the unlikely side they would be large numbers that cancel.
    """
    side = torch.where(p_odds < 0, -1.0, 1.0).to(p_odds.dtype)
    e, f = p_odds * side, q_odds * side
    return logsigmoid(e) - logsigmoid(f) + (-e).sigmoid() * (f - e)


def _check_targets(targets: Tensor, items: torch.Size, classes: int, mask: Tensor | None) -> Tensor:
    if classes < 2:
        raise ValueError(
            f"logits: got {classes} class, expected at least 2; there is no non-target class to rank"
        )
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise TypeError(
            f"targets: got dtype {targets.dtype}, expected integer classes; soft labels have no target"
        )
    if targets.shape != items:
        raise ValueError(
            f"targets: got shape {tuple(targets.shape)}, expected the item axes {tuple(items)}; "
            "the targets would belong to other items"
        )
    check_mask(mask, items)
    if mask is not None:
        targets = targets.masked_fill(~mask, 0)
    if targets.device.type == "cpu" and targets.numel():
        low, high = (int(x) for x in targets.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(
                f"targets: got values from {low} to {high}, expected 0 to {classes - 1}; "
                "hide items without a label with mask=valid_labels(targets, ignore_index=...)"
            )
    return targets.long()
