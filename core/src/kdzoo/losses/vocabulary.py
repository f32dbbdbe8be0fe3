"""KL(teacher || student) with its own backward, in chunks that stay in cache: made for large vocabularies.

Legend: N rows (tokens), V classes, T temperature; q = softmax(student / T), p = softmax(teacher / T).
Maps (B, C, H, W) are walked as (O, C, I): O = axes before the class axis, I = axes after it.

The textbook form keeps several arrays of N x V alive until the backward pass. On a CPU fresh memory is dearer
than the arithmetic, so this form keeps none: the forward pass works through chunks in three reused buffers
and saves only its inputs; the backward pass computes both softmaxes once more, since

    d KL / d student = (q - p) / T

needs no intermediate result. Beyond the inputs, the peak is the gradient itself (1.0 times the logits) and
the buffers (a few MB). Computing the gradient during the forward pass instead was measured to be no faster:
what it saves in exponentials it pays for in a second walk over N x V cold numbers when the upstream gradient
arrives.

Not here: other divergences, sampled or top-k teachers, fusion with the output embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

# Elements per buffer. CPU, for each thread: three float32 buffers of 1.6 MB; smaller chunks pay more Python
# per element, larger ones leave the cache. Accelerators: large enough to fill the device, 64 MB per buffer.
# Above the CPU's size no buffer exceeds 1/16 of the logits, whatever the number of threads.
CHUNK_CPU = 400_000
CHUNK_ACCELERATOR = 1 << 24

Index = Any  # what stands between the brackets of tensor[...]


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is, else float32: half precision is read, never summed in."""
    return torch.float64 if torch.float64 in [x.dtype for x in tensors] else torch.float32


def chunked_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: tuple[float, float],
    axis: int,
    mask: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """KL(teacher || student) per item, without the intermediate arrays of autograd.

    `kdzoo.losses.divergences.kl_divergence` is the front door: it checks its arguments and reduces; this
    function trusts them.

    Formula: sum_v p_v (log p_v - log q_v), p = softmax(teacher / T_teacher), q = softmax(student /
    T_student).

    Args:
        student_logits: (..., V, ...), class axis at `axis`; float16, bfloat16, float32 or float64.
        teacher_logits: same shape, any of these dtypes; receives no gradient.
        temperature: (T_student, T_teacher), both > 0.
        axis: class axis, 0 <= axis < ndim. No usual layout is copied: class axis last, a slice of it such as
            ``logits[:, :-1]``, or maps in either memory format.
        mask: bool, the shape without the class axis; False costs 0, has gradient 0, and may hide NaN.
        chunk: elements per buffer; None takes the module's constant for the device.

    Returns:
        The shape without the class axis, in nats; float32 (float64 if an input is).

    Second derivatives are supported (``create_graph=True``, `torch.func.grad`); the gradient is then computed
    in plain form, with the memory that this costs.
    """
    items = torch.Size(n for i, n in enumerate(student_logits.shape) if i != axis)
    student, teacher = student_logits.movedim(axis, -1), teacher_logits.detach().movedim(axis, -1)
    maps = axis != student_logits.dim() - 1 and not (student.stride(-1) == teacher.stride(-1) == 1)
    if maps:
        outer, inner = student_logits.shape[:axis].numel(), student_logits.shape[axis + 1 :].numel()
        shape = (outer, student_logits.shape[axis], inner)
        student, teacher = student_logits.reshape(shape), teacher_logits.detach().reshape(shape)
        mask = None if mask is None else mask.reshape(outer, inner)
    elif _viewable(student) and _viewable(teacher):
        count, classes = items.numel(), student.shape[-1]
        student, teacher = student.view(count, classes), teacher.view(count, classes)
    if chunk is None:
        most = CHUNK_CPU * torch.get_num_threads() if student.device.type == "cpu" else CHUNK_ACCELERATOR
        chunk = max(CHUNK_CPU, min(most, student.numel() // 16))
    inverse = (1.0 / temperature[0], 1.0 / temperature[1])
    loss: Tensor = _ChunkedKL.apply(student, teacher, mask, inverse, maps, chunk)
    return loss.reshape(items)


def _viewable(x: Tensor) -> bool:
    """Whether (..., V) can be seen as (N, V) without a copy: each leading axis continues the next one."""
    if x.numel() == 0:
        return True
    sizes, strides = x.shape[:-1], x.stride()[:-1]
    outside_in = [(n, step) for n, step in zip(sizes, strides, strict=True) if n != 1]
    return all(a[1] == b[0] * b[1] for a, b in pairwise(outside_in))


def _parts(student: Tensor, teacher: Tensor, mask: Tensor | None, maps: bool, chunk: int) -> Iterator[Index]:
    """Walk the items: yields (student part, teacher part, where in the gradient, where in the items).

    Parts have the class axis at 1. Rows that a mask excludes are never read; in maps they are (and
    overwritten by the caller), because gathering single pixels across the class axis would cost more than it
    saves.
    """
    if maps:
        outer, classes, inner = student.shape
        width = max(1, min(inner, chunk // classes))
        height = max(1, chunk // (classes * width))
        for top in range(0, outer, height):
            for left in range(0, inner, width):
                o, i = slice(top, top + height), slice(left, left + width)
                yield student[o, :, i], teacher[o, :, i], (o, slice(None), i), (o, i)
        return
    step = max(1, chunk // student.shape[-1])
    lead = student.shape[:-1]
    if mask is None and student.dim() == 2:
        for start in range(0, lead[0], step):
            rows = slice(start, start + step)
            yield student[rows], teacher[rows], rows, rows
        return
    if mask is not None:
        index = mask.flatten().nonzero().squeeze(1)
    else:
        index = torch.arange(lead.numel(), device=student.device)
    for some in index.split(step):
        place = torch.unravel_index(some, lead) if len(lead) > 1 else (some,)
        yield student[place], teacher[place], some, some


def _scaled(part: Tensor, inverse: float, out: Tensor) -> Tensor:
    """part / T in the buffer's dtype; the part itself where that is already so."""
    if part.dtype != out.dtype:
        out.copy_(part)
        return out if inverse == 1.0 else out.mul_(inverse)
    return part if inverse == 1.0 else torch.mul(part, inverse, out=out)


class _ChunkedKL(torch.autograd.Function):
    @staticmethod
    def forward(
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None,
        inverse: tuple[float, float],
        maps: bool,
        chunk: int,
    ) -> Tensor:
        dtype = accumulation_dtype(student, teacher)
        classes = student.shape[1] if maps else student.shape[-1]
        items = (student.shape[0], student.shape[2]) if maps else (student.shape[:-1].numel(),)
        make = torch.zeros if mask is not None else torch.empty
        loss = make(items, dtype=dtype, device=student.device)
        size = min(student.numel(), max(chunk, classes))
        buffers = torch.empty((3, size), dtype=dtype, device=student.device)
        for s_part, t_part, _, where in _parts(student, teacher, mask, maps, chunk):
            q, p, ratio = (buffer[: s_part.numel()].view(s_part.shape) for buffer in buffers)
            x, y = _scaled(s_part, inverse[0], q), _scaled(t_part, inverse[1], p)
            torch.sub(x, x.amax(1, keepdim=True), out=q)  # log q + a constant per item
            torch.sub(y, y.amax(1, keepdim=True), out=p)
            torch.sub(p, q, out=ratio)
            q.exp_()
            p.exp_()
            q_sum, p_sum = q.sum(1), p.sum(1)
            ratio.mul_(p)
            total = ratio.sum(1)
            # Where p = 0 the limit of p log(p/q) is 0, but -inf logits make it 0 * inf. The test costs
            # nothing on a CPU; elsewhere it would wait for the device, so the correction is made unasked.
            if student.device.type != "cpu" or not bool(total.isfinite().all()):
                total = ratio.masked_fill_(p == 0, 0.0).sum(1)
            loss[where] = total / p_sum + (q_sum / p_sum).log()
        if maps and mask is not None:
            loss.masked_fill_(~mask, 0.0)
        return loss

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        student, teacher, mask, ctx.inverse, ctx.maps, ctx.chunk = inputs
        ctx.save_for_backward(student, teacher, mask)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, mask = ctx.saved_tensors
        upstream_items = upstream[0]
        if torch.is_grad_enabled():  # somebody will differentiate the gradient
            gradient = _plain_gradient(student, teacher, mask, ctx.inverse, ctx.maps, upstream_items)
        else:
            gradient = _gradient(student, teacher, mask, ctx.inverse, ctx.maps, ctx.chunk, upstream_items)
        return gradient, None, None, None, None, None


def _gradient(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    inverse: tuple[float, float],
    maps: bool,
    chunk: int,
    upstream: Tensor,
) -> Tensor:
    """upstream * (q - p) / T, chunk by chunk, each number of the result written once."""
    dtype = accumulation_dtype(student, teacher)
    classes = student.shape[1] if maps else student.shape[-1]
    make = torch.zeros if mask is not None and not maps else torch.empty
    gradient = make(student.shape, dtype=student.dtype, device=student.device)
    target = gradient if maps else gradient.view(-1, classes)
    size = min(student.numel(), max(chunk, classes))
    buffers = torch.empty((3, size), dtype=dtype, device=student.device)
    scale = upstream.to(dtype) * inverse[0]
    for s_part, t_part, where, items in _parts(student, teacher, mask, maps, chunk):
        q, p, work = (buffer[: s_part.numel()].view(s_part.shape) for buffer in buffers)
        torch.softmax(_scaled(s_part, inverse[0], work), 1, out=q)
        torch.softmax(_scaled(t_part, inverse[1], work), 1, out=p)
        q.sub_(p)
        factor = scale[items].unsqueeze(1)
        if isinstance(where, Tensor):
            target[where] = q.mul_(factor).to(gradient.dtype)
        elif maps and mask is not None:
            target[where] = q.mul_(factor).masked_fill_(~mask[items].unsqueeze(1), 0.0)
        else:
            torch.mul(q, factor, out=target[where])
    return gradient


def _plain_gradient(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    inverse: tuple[float, float],
    maps: bool,
    upstream: Tensor,
) -> Tensor:
    """The same gradient in operations that autograd can follow."""
    axis = 1 if maps else -1
    upstream = upstream if maps else upstream.view(student.shape[:-1])
    if (
        mask is not None
    ):  # q = p where hidden, hence gradient 0; not after the softmax, whose derivative of NaN is NaN
        hidden = ~mask.reshape(upstream.shape).unsqueeze(axis)
        student, teacher = student.masked_fill(hidden, 0.0), teacher.masked_fill(hidden, 0.0)
    dtype = accumulation_dtype(student, teacher)
    q = torch.softmax(student.to(dtype) * inverse[0], axis)
    p = torch.softmax(teacher.to(dtype) * inverse[1], axis)
    return ((q - p) * (upstream.to(dtype) * inverse[0]).unsqueeze(axis)).to(student.dtype)
