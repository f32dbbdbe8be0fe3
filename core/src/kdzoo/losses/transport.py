"""Distance of two distributions over different vocabularies: sorted probabilities compared rank by rank (ULD).

Legend: (..., V, ...) logits with the class axis at `axis`; V_s classes of the student, V_t of the teacher; N items;
q_(1) >= q_(2) >= ... the student's probabilities in falling order, p_(i) the teacher's.

Which class a probability belongs to does not count, so the vocabularies may be of any kind and size: permuting either
changes nothing. The shorter side is padded with zeros. With its own backward: sorting is done once, in chunks, and the
forward pass keeps one byte per student logit, the sign of q_(i) - p_(i) in the place of the class that has rank i.

On a CPU the sort is numpy's where that is quicker than torch's (benchmarks/speed/vocabulary_losses.py). A recorded
teacher is sorted once, by `sorted_probabilities`, and read by `transport_to_recorded`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdzoo.losses.chunks import accumulation_dtype, buffers, chunk_size, fit, lay_out, parts, scaled, write
from kdzoo.losses.divergences import Temperature, check_temperature
from kdzoo.losses.masks import Reduction, check_mask, check_reduction, reduce

# torch.sort deals rows out to threads, numpy does not; on one thread numpy is 1.9 times as fast.
THREADS_FOR_NUMPY = 2
SUM_TOLERANCE = 0.02  # of recorded probabilities; bfloat16 rounds each by up to 0.4 %


def sorted_transport(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
) -> Tensor:
    """How far the student's sorted probabilities are from the teacher's, whatever their vocabularies.

    Formula: sum_i |q_(i) - p_(i)|, i = 1 .. max(V_s, V_t), both in falling order and padded with zeros. 0 where one is
    a permutation of the other, at most 2.

    Args:
        student_logits: (..., V_s, ...).
        teacher_logits: (..., V_t, ...), the same item axes; receives no gradient.
        temperature: T > 0, or (T_student, T_teacher).
        axis: the class axis of both: -1 for tokens.
        reduction: "none", "sum" or "mean" (over items that count).
        mask: bool, the item axes; None counts all. Hidden items may hold anything and receive gradient 0.

    Returns:
        (...) for "none", else a scalar; no unit. float32 (float64 if an input is).

    The gradient is that of the order at hand: q (g - sum q g) / T with g the sign of q_(i) - p_(i) in the place of the
    class, 0 where both are equal. Classes of equal probability share one rank's sign each, in the order of their
    numbers.

    Raises:
        ValueError: item axes differ, no class, temperature <= 0, axis out of range, mask of another shape, empty mean.
        TypeError: logits that are not floating point, or a mask that is not bool.

    Source: ULD, Boizard et al. 2024, arXiv 2402.12030; official code Nicolas-BZRD/llm-recipes@ab6e798,
    models/distillation_model.py, which also takes the mean over the tokens of each answer.

    Example:
        >>> s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 1.0, 1.0]]).log()
        >>> sorted_transport(s, t, temperature=1.0, axis=-1, reduction="mean").item()  # (1/2, 1/2, 0), (1/2, 1/4, 1/4)
        0.5
    """
    axis = _check(student_logits, teacher_logits, "teacher_logits", axis, reduction, mask)
    inverse = _inverse(temperature)
    values = _distance(student_logits, teacher_logits, mask, axis, inverse, False)
    return reduce(values, reduction=reduction, mask=mask)


def transport_to_recorded(
    student_logits: Tensor,
    teacher_sorted: Tensor,
    *,
    temperature: float,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
) -> Tensor:
    """`sorted_transport` to a teacher that was sorted before.

    Args:
        student_logits: (..., V_s, ...).
        teacher_sorted: (..., K, ...) probabilities in falling order, as `sorted_probabilities` gives them, in any
            floating point dtype; K may be less than V_t, the others then count as 0.
        temperature: the student's T > 0; the teacher's is in its probabilities.
        others: as in `sorted_transport`.

    Raises:
        ValueError: probabilities that do not fall, are negative, or sum to more than 1; and as `sorted_transport`.

    Example:
        >>> s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 2.0, 1.0]]).log()
        >>> recorded = sorted_probabilities(t, temperature=1.0, axis=-1)
        >>> transport_to_recorded(s, recorded, temperature=1.0, axis=-1, reduction="mean").item()
        0.5
    """
    axis = _check(student_logits, teacher_sorted, "teacher_sorted", axis, reduction, mask)
    inverse = (_inverse(temperature)[0], 1.0)
    values = _distance(student_logits, teacher_sorted, mask, axis, inverse, True)
    return reduce(values, reduction=reduction, mask=mask)


def sorted_probabilities(logits: Tensor, *, temperature: float, axis: int, keep: int | None = None) -> Tensor:
    """softmax(logits / T) in falling order along the class axis: what is recorded of a teacher. Detached.

    Args:
        logits: (..., V, ...).
        temperature: T > 0.
        axis: the class axis.
        keep: how many of the largest to keep; None keeps all. The rest then counts as 0: an approximation that moves
            the distance by at most the mass left out.

    Returns:
        (..., keep or V, ...), float32 (float64 for float64 logits).

    Raises:
        ValueError: keep out of range, and as `sorted_transport`.

    Example:
        >>> t = torch.tensor([[1.0, 2.0, 1.0]]).log()
        >>> [round(p, 4) for p in sorted_probabilities(t, temperature=1.0, axis=-1)[0].tolist()]
        [0.5, 0.25, 0.25]
    """
    axis = _check(logits, logits, "logits", axis, "none", None)
    classes = logits.shape[axis]
    if keep is not None and not 1 <= keep <= classes:
        raise ValueError(f"keep: got {keep}, expected 1 to {classes}, the number of classes, or None for all")
    rows, dtype = logits.detach().movedim(axis, -1), accumulation_dtype(logits)
    items, kept = rows.shape[:-1], keep or classes
    result = torch.empty((items.numel(), kept), dtype=dtype, device=logits.device)
    chunk, inverse = chunk_size(logits), _inverse(temperature)[0]
    laid = lay_out((rows,), rows.dim() - 1, None)
    flat = buffers(2, rows, classes, chunk, dtype)
    for (part,), where, _ in parts(laid.tensors, None, False, chunk):
        p, work = fit(flat, part)
        torch.softmax(scaled(part, inverse, work), 1, out=p)
        result[where] = _falling(p)[:, :kept]
    return result.view(*items, kept).movedim(-1, axis)


def _check(
    student: Tensor, teacher: Tensor, name: str, axis: int, reduction: str, mask: Tensor | None
) -> int:
    check_reduction(reduction)
    for label, tensor in (("student_logits", student), (name, teacher)):
        if not tensor.is_floating_point():
            raise TypeError(f"{label}: got dtype {tensor.dtype}, expected floating point, not class indices")
    dims = student.dim()
    if not -dims <= axis < dims:
        raise ValueError(f"axis: got {axis}, expected a class axis of logits of shape {tuple(student.shape)}")
    axis %= dims
    items = [tuple(n for i, n in enumerate(x.shape) if i != axis) for x in (student, teacher)]
    if teacher.dim() != dims or items[0] != items[1]:
        raise ValueError(
            f"{name}: got shape {tuple(teacher.shape)} beside student_logits {tuple(student.shape)}, expected equal "
            f"shapes except for the classes (axis {axis}); otherwise a token would be compared with another one's "
            "teacher. Cut both to the positions that are paired first"
        )
    if 0 in (student.shape[axis], teacher.shape[axis]):
        raise ValueError("logits: got no class, expected at least one on each side; softmax is 0/0")
    check_mask(mask, items[0])
    return axis


def _inverse(temperature: Temperature) -> tuple[float, float]:
    t_student, t_teacher = check_temperature(temperature)
    return 1.0 / t_student, 1.0 / t_teacher


def _distance(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    axis: int,
    inverse: tuple[float, float],
    recorded: bool,
) -> Tensor:
    rows = (student.movedim(axis, -1), teacher.detach().movedim(axis, -1))
    laid = lay_out(rows, student.dim() - 1, mask)
    chunk = chunk_size(student)
    keeps = torch.is_grad_enabled() and student.requires_grad
    loss: Tensor
    loss, _ = _Transport.apply(*laid.tensors, laid.mask, inverse, recorded, chunk, keeps)
    return loss.reshape(laid.items)


class _Transport(torch.autograd.Function):
    @staticmethod
    def forward(
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None,
        inverse: tuple[float, float],
        recorded: bool,
        chunk: int,
        keeps: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = accumulation_dtype(student, teacher)
        items, widths = student.shape[:-1].numel(), (student.shape[-1], teacher.shape[-1])
        device = student.device
        loss = torch.zeros(items, dtype=dtype, device=device)
        signs = torch.zeros((items if keeps else 0, widths[0]), dtype=torch.int8, device=device)
        s_flat = buffers(2, student, widths[0], chunk, dtype)
        t_flat = buffers(2, teacher, widths[1], chunk, dtype)
        both = min(widths)
        for (s_part, t_part), where, _ in parts((student, teacher), mask, False, chunk):
            (q, s_work), (p, t_work) = fit(s_flat, s_part), fit(t_flat, t_part)
            torch.softmax(scaled(s_part, inverse[0], s_work), 1, out=q)
            if recorded:
                falling_p = _checked(scaled(t_part, 1.0, p))
            else:
                torch.softmax(scaled(t_part, inverse[1], t_work), 1, out=p)
                falling_p = _falling(p)
            falling_q, order = _falling_with_order(q) if keeps else (_falling(q), None)
            apart = torch.sub(falling_q[:, :both], falling_p[:, :both], out=s_work[:, :both])
            if order is not None:
                sign = apart.new_empty(order.shape, dtype=torch.int8)
                sign[:, :both] = apart.sign()
                sign[:, both:] = falling_q[:, both:].sign()
                signs[where] = torch.empty_like(sign).scatter_(1, order, sign)
            rest = falling_q[:, both:].sum(1) + falling_p[:, both:].sum(1)  # one of them has no column
            loss[where] = apart.abs_().sum(1) + rest
        return loss, signs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        student, teacher, mask, ctx.inverse, _, ctx.chunk, _ = inputs
        ctx.dtype = accumulation_dtype(student, teacher)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(student, mask, output[1])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        student, mask, signs = ctx.saved_tensors
        if upstream[0] is None:
            return None, None, None, None, None, None, None
        compute = _plain_gradient if torch.is_grad_enabled() else _gradient
        gradient = compute(student, mask, signs, ctx.inverse[0], ctx.chunk, upstream[0].to(ctx.dtype))
        return gradient, None, None, None, None, None, None


def _gradient(
    student: Tensor, mask: Tensor | None, signs: Tensor, inverse: float, chunk: int, upstream: Tensor
) -> Tensor:
    """upstream * q (g - sum q g) / T, chunk by chunk."""
    classes, dtype = student.shape[-1], upstream.dtype
    make = torch.empty if mask is None else torch.zeros
    gradient = make(student.shape, dtype=student.dtype, device=student.device)
    target, scale = gradient.view(-1, classes), upstream * inverse
    flat = buffers(2, student, classes, chunk, dtype)
    for (part,), where, items in parts((student,), mask, False, chunk):
        q, work = fit(flat, part)
        torch.softmax(scaled(part, inverse, work), 1, out=q)
        torch.mul(q, signs[where], out=work)
        work.addcmul_(q, work.sum(1, keepdim=True), value=-1.0)
        write(target, where, work, scale[items].unsqueeze(1), None)
    return gradient


def _plain_gradient(
    student: Tensor, mask: Tensor | None, signs: Tensor, inverse: float, chunk: int, upstream: Tensor
) -> Tensor:
    """The same in operations that autograd can follow; the order, and so the signs, are constant between ties."""
    lead = student.shape[:-1]
    if mask is not None:
        student = student.masked_fill(~mask.reshape(*lead, 1), 0.0)
    q = torch.softmax(student.to(upstream.dtype) * inverse, -1)
    weighted = q * signs.view(student.shape)
    slope = weighted - q * weighted.sum(-1, keepdim=True)
    return (slope * (upstream.reshape(*lead, 1) * inverse)).to(student.dtype)


def _checked(sorted_rows: Tensor) -> Tensor:
    """Recorded probabilities (R, K), refused where they are not what `sorted_probabilities` gives."""
    falls = bool((sorted_rows[:, 1:] <= sorted_rows[:, :-1]).all())
    total = sorted_rows.sum(1)
    if not falls or bool((sorted_rows[:, -1] < 0).any()) or bool((total > 1.0 + SUM_TOLERANCE).any()):
        raise ValueError(
            f"teacher_sorted: got a row that {'rises' if not falls else f'sums to {float(total.max()):.4g}'}, expected "
            "probabilities in falling order, at least 0 and with a sum of at most 1; the distance would be one to no "
            "distribution. Make them with sorted_probabilities"
        )
    return sorted_rows


def _by_numpy(rows: Tensor) -> bool:
    return (
        rows.device.type == "cpu"
        and rows.dtype == torch.float32
        and torch.get_num_threads() <= THREADS_FOR_NUMPY
    )


def _falling(rows: Tensor) -> Tensor:
    """(R, V) probabilities -> each row in falling order. Spoils its argument on a CPU."""
    if not _by_numpy(rows):
        return rows.sort(dim=1, descending=True).values
    rows.neg_().numpy().sort(axis=1)
    return rows.neg_()


def _falling_with_order(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The same and the class of each rank; equal probabilities in the order of their classes.

    numpy has a fast sort but no fast stable argsort. Bits of positive floats, read as integers, have the floats' order:
    one 64-bit key holds a number and, in the lower half, its class.
    """
    if not _by_numpy(rows):
        values, order = rows.sort(dim=1, descending=True, stable=True)
        return values, order
    bits = rows.numpy().view(np.int32)
    keys = np.subtract(0x7FFFFFFF, bits, dtype=np.int64)
    keys <<= 32
    keys |= np.arange(rows.shape[1])
    keys.sort(axis=1)
    values = np.subtract(0x7FFFFFFF, keys >> 32).astype(np.int32).view(np.float32)
    keys &= 0xFFFFFFFF
    return torch.from_numpy(values), torch.from_numpy(keys)
