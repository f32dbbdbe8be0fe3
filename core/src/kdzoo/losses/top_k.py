"""Losses against a teacher of whom only the k largest logits were kept: KL and cross-entropy without its dense form.

Legend: (..., V) student logits, class axis last; (..., K) kept classes, K < V; the other V - K classes are the tail.
`kdzoo.top_k` says what is kept and what the policies make of the tail; docs/signals.md how it is recorded.

`kdzoo.top_k.dense` builds V teacher logits per item. Here the teacher stays at K numbers and a tail: of the student,
the K logits, the log-sum-exp of the tail and its mean are taken in one walk through chunks (`kept_and_tail`, with its
own backward), and the loss is a formula over K + 1 numbers per item. The peak is the gradient, 1.0 times the logits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kdzoo.losses.chunks import accumulation_dtype, buffers, chunk_size, fit, lay_out, parts, scaled, write
from kdzoo.losses.divergences import Temperature, check_temperature
from kdzoo.losses.masks import Reduction, check_mask, check_reduction, reduce
from kdzoo.signal_choice import POLICIES, Policy
from kdzoo.top_k import TopK


def top_k_kl(
    student_logits: Tensor,
    kept: TopK,
    *,
    policy: Policy,
    temperature: Temperature,
    reduction: Reduction,
    mask: Tensor | None = None,
) -> Tensor:
    """KL(teacher || student) for a teacher of whom the K largest logits and the tail's log-sum-exp are known.

    Formula: sum_c p_c (log p_c - log q_c), by `policy`
    "spread": over all V classes; each class of the tail has the teacher logit tail - log(V - K).
    "drop": over the K classes of p, which share the whole mass; q over all V classes.
    "tail-bucket": over K + 1 classes, of which the last has the logit `tail`, and for the student the log-sum-exp of
    its other classes: exact at T = 1. At another T both buckets' logits are divided by T like any other.
    Equal to `kl_divergence` with `kdzoo.top_k.dense`, or with `bucket` and `bucketed`.

    Args:
        student_logits: (..., V), class axis last.
        kept: values and indices (..., K), tail (...); receives no gradient. With ``--signals top-k=K:tail-bucket``:
            ``kdzoo.top_k.from_bucket(teacher.logits, teacher.extra["classes"])``.
        policy: "spread", "drop" or "tail-bucket".
        temperature: T > 0, or (T_student, T_teacher).
        reduction: "none", "sum" or "mean" (over items that count).
        mask: bool, (...); None counts all. Hidden items may hold anything and receive gradient 0.

    Returns:
        (...) for "none", else a scalar; nats; float32 (float64 if an input is).

    Raises:
        ValueError: shapes that do not fit, K not below V, a class outside the student's, an unknown policy,
        temperature <= 0, mask of another shape, empty mean.
        TypeError: logits that are not floating point, indices that are no integers, or a mask that is not bool.

    Example:
        >>> kept = TopK(torch.tensor([[math.log(2.0)]]), torch.tensor([[0]]), torch.tensor([math.log(2.0)]))
        >>> kl = top_k_kl(torch.zeros(1, 4), kept, policy="tail-bucket", temperature=1.0, reduction="mean")
        >>> round(kl.item(), 4)  # (1/2, 1/2) against (1/4, 3/4): log(4/3) / 2
        0.1438
    """
    log_p, weight, log_q = _sides(student_logits, kept, policy, temperature, reduction, mask)
    p = log_p.exp() * weight
    values = (p * (log_p - log_q).masked_fill(p == 0, 0.0)).sum(-1)
    return reduce(values, reduction=reduction, mask=mask)


def top_k_cross_entropy(
    student_logits: Tensor,
    kept: TopK,
    *,
    policy: Policy,
    temperature: Temperature,
    reduction: Reduction,
    mask: Tensor | None = None,
) -> Tensor:
    """Cross-entropy under what was kept of the teacher's soft labels: `top_k_kl` plus the teacher's entropy.

    Formula: -sum_c p_c log q_c, over the same classes as in `top_k_kl`; its gradient is that of the KL. Arguments,
    result and errors as there.

    Example:
        >>> kept = TopK(torch.tensor([[math.log(2.0)]]), torch.tensor([[0]]), torch.tensor([math.log(2.0)]))
        >>> ce = top_k_cross_entropy(torch.zeros(1, 4), kept, policy="spread", temperature=1.0, reduction="mean")
        >>> round(ce.item(), 4)  # log 4
        1.3863
    """
    log_p, weight, log_q = _sides(student_logits, kept, policy, temperature, reduction, mask)
    p = log_p.exp() * weight
    return reduce(-(p * log_q.masked_fill(p == 0, 0.0)).sum(-1), reduction=reduction, mask=mask)


def kept_and_tail(
    student_logits: Tensor, indices: Tensor, *, temperature: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a loss on K classes and a tail needs to know of V logits; with gradient, and one array of N x V at most.

    Args:
        student_logits: (..., V).
        indices: (..., K) integers, different classes in each item; K < V.
        temperature: x = logits / T.
        mask: bool, (...); hidden items give zeros and receive gradient 0.

    Returns:
        x of the K classes (..., K), logsumexp of the others (...), their mean (...). float32 (float64 for float64).
    """
    laid = lay_out((student_logits, indices.detach()), student_logits.dim() - 1, mask)
    rows, at = laid.tensors
    chunk = chunk_size(student_logits)
    kept, lse, mean = _KeptAndTail.apply(rows, at, laid.mask, 1.0 / temperature, chunk)
    return kept.reshape(indices.shape), lse.reshape(laid.items), mean.reshape(laid.items)


def _sides(
    student_logits: Tensor,
    kept: TopK,
    policy: Policy,
    temperature: Temperature,
    reduction: str,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log p, how many classes each column stands for, log q): (..., K + 1), (K + 1), (..., K + 1)."""
    t_student, t_teacher = _check(student_logits, kept, policy, temperature, reduction, mask)
    dtype = accumulation_dtype(student_logits, kept.values)
    values, tail = kept.values.detach().to(dtype), kept.tail.detach().to(dtype)
    if mask is not None:
        values, tail = values.masked_fill(~mask.unsqueeze(-1), 0.0), tail.masked_fill(~mask, 0.0)
    k, rest = values.shape[-1], student_logits.shape[-1] - values.shape[-1]
    inner = 1.0 if policy == "tail-bucket" else t_student
    x, lse, mean = kept_and_tail(student_logits, kept.indices, temperature=inner, mask=mask)
    many = torch.ones(k + 1, dtype=dtype, device=x.device)
    if policy == "tail-bucket":
        log_p = torch.log_softmax(torch.cat((values, tail.unsqueeze(-1)), -1) / t_teacher, -1)
        return log_p, many, torch.log_softmax(torch.cat((x, lse.unsqueeze(-1)), -1) / t_student, -1)
    whole = torch.cat((x, lse.unsqueeze(-1)), -1).logsumexp(-1, keepdim=True)
    log_q = torch.cat((x, mean.unsqueeze(-1)), -1) - whole  # the tail's column: the mean of its log q
    if policy == "drop":
        nothing = torch.full_like(tail, -torch.inf)
        return torch.cat((torch.log_softmax(values / t_teacher, -1), nothing.unsqueeze(-1)), -1), many, log_q
    many[-1] = rest
    each = (tail - math.log(rest)) / t_teacher
    total = torch.cat((values / t_teacher, (each + math.log(rest)).unsqueeze(-1)), -1).logsumexp(
        -1, keepdim=True
    )
    return torch.cat((values / t_teacher, each.unsqueeze(-1)), -1) - total, many, log_q


def _check(
    student_logits: Tensor,
    kept: TopK,
    policy: str,
    temperature: Temperature,
    reduction: str,
    mask: Tensor | None,
) -> tuple[float, float]:
    check_reduction(reduction)
    if policy not in POLICIES:
        raise ValueError(f"policy: got {policy!r}, expected one of {', '.join(map(repr, POLICIES))}")
    for name, tensor in (("student_logits", student_logits), ("kept.values", kept.values)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: got dtype {tensor.dtype}, expected floating point logits")
    if kept.indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"kept.indices: got dtype {kept.indices.dtype}, expected int32 or int64 classes")
    items, v = tuple(student_logits.shape[:-1]), student_logits.shape[-1]
    shapes = tuple(tuple(x.shape) for x in kept)
    k = kept.values.shape[-1]
    if shapes != ((*items, k), (*items, k), items):
        raise ValueError(
            f"kept: got values, indices and tail of shapes {shapes[0]}, {shapes[1]}, {shapes[2]}, expected (..., K), "
            f"(..., K) and (...) with the student's item axes {items}; a token would be compared with another's teacher"
        )
    if not 1 <= k < v:
        raise ValueError(
            f"kept: got K = {k}, expected 1 to {v - 1}: the tail of {v} classes must not be empty"
        )
    check_mask(mask, items)
    at = kept.indices if mask is None else kept.indices[mask]
    if at.numel() and not 0 <= int(at.min()) <= int(at.max()) < v:
        raise ValueError(
            f"kept.indices: got classes from {int(at.min())} to {int(at.max())}, expected 0 to {v - 1}, the student's "
            "classes; the teacher has another vocabulary. kdzoo.losses.transport compares different ones"
        )
    return check_temperature(temperature)


class _KeptAndTail(torch.autograd.Function):
    @staticmethod
    def forward(
        student: Tensor, indices: Tensor, mask: Tensor | None, inverse: float, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        items, classes, k = student.shape[:-1].numel(), student.shape[-1], indices.shape[-1]
        dtype = accumulation_dtype(student)
        kept = torch.zeros((items, k), dtype=dtype, device=student.device)
        lse, mean = torch.zeros((2, items), dtype=dtype, device=student.device)
        flat = buffers(1, student, classes, chunk, dtype)
        for (part, at), _, where in parts((student, indices), mask, False, chunk):
            (work,) = fit(flat, part)
            x, at = scaled(part, inverse, work), at.long()
            top = x.amax(1, keepdim=True)
            kept[where] = x.gather(1, at)
            torch.sub(x, top, out=work).scatter_(1, at, 0.0)
            mean[where] = work.sum(1) / (classes - k) + top.squeeze(1)
            # The tail's own maximum: with a sure teacher it may lie so far below `top` that its sum underflows.
            work.scatter_(1, at, -torch.inf)
            highest = work.amax(1, keepdim=True)
            highest.masked_fill_(highest.isneginf(), 0.0)
            sum_ = work.sub_(highest).exp_().sum(1)
            lse[where] = sum_.log() + (top + highest).squeeze(1)
        return kept, lse, mean

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        student, indices, mask, ctx.inverse, ctx.chunk = inputs
        ctx.save_for_backward(student, indices, mask, output[1])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, indices, mask, lse = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _plain_gradient(student, indices, mask, ctx.inverse, upstream), None, None, None, None
        classes, k, dtype = student.shape[-1], indices.shape[-1], lse.dtype
        make = torch.empty if mask is None else torch.zeros
        gradient = make(student.shape, dtype=student.dtype, device=student.device)
        target = gradient.view(-1, classes)
        for_kept, for_lse, for_mean = (grad * ctx.inverse for grad in upstream)
        for_mean = for_mean / (classes - k)
        finite = lse.masked_fill(lse.isneginf(), 0.0)
        flat = buffers(1, student, classes, ctx.chunk, dtype)
        ones = torch.ones((), dtype=dtype, device=student.device)
        for (part, at), where, items in parts((student, indices), mask, False, ctx.chunk):
            (work,) = fit(flat, part)
            x = scaled(part, ctx.inverse, work)
            torch.sub(x, finite[items].unsqueeze(1), out=work).exp_()
            work.mul_(for_lse[items].unsqueeze(1)).add_(for_mean[items].unsqueeze(1))
            work.scatter_(1, at.long(), for_kept[items])
            write(target, where, work, ones, None)
        return gradient, None, None, None, None


def _plain_gradient(
    student: Tensor, indices: Tensor, mask: Tensor | None, inverse: float, upstream: tuple[Tensor, ...]
) -> Tensor:
    """The same gradient in operations that autograd can follow."""
    classes, k = student.shape[-1], indices.shape[-1]
    rows, at = student.reshape(-1, classes), indices.reshape(-1, k).long()
    if mask is not None:
        hidden = ~mask.reshape(-1, 1)
        rows, at = rows.masked_fill(hidden, 0.0), at.masked_fill(hidden, 0)
    for_kept, for_lse, for_mean = upstream
    x = rows.to(for_lse.dtype) * inverse
    tail = torch.softmax(x.scatter(1, at, -torch.inf), 1)
    slope = tail * for_lse.unsqueeze(1) + for_mean.unsqueeze(1) / (classes - k)
    slope = slope.scatter(1, at, for_kept) * inverse
    if mask is not None:
        slope = slope.masked_fill(hidden, 0.0)
    return slope.view(student.shape).to(student.dtype)
