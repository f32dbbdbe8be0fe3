"""Divergences with their own backward, in chunks that stay in cache: made for large vocabularies.

Legend: N rows (tokens), V classes, T temperature; q = softmax(student / T), p = softmax(teacher / T).

The textbook form keeps several arrays of N x V alive until the backward pass. This form keeps none: the forward pass
works through chunks in a few reused buffers (`kdzoo.losses.chunks`) and saves only its inputs; the backward pass
computes both softmaxes once more, since the derivative by the student's logits, for the KL

    d KL / d student = (q - p) / T,

needs no intermediate result (`kdzoo.losses.chunk_forms` has the others). Beyond the inputs, the peak is the gradient
itself (1.0 times the logits) and the buffers (a few MB). Computing the gradient during the forward pass instead was
measured to be no faster: what it saves in exponentials it pays for in a second walk over N x V cold numbers when the
upstream gradient arrives.

Elsewhere: fusion with the output embedding in `kdzoo.losses.fused_head`, top-k teachers in `kdzoo.losses.top_k`, other
vocabularies in `kdzoo.losses.transport`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdzoo.losses.chunk_forms import KL, Form, Inverse
from kdzoo.losses.chunks import accumulation_dtype, buffers, chunk_size, fit, lay_out, parts, write

__all__ = ["accumulation_dtype", "chunked", "chunked_kl"]


def chunked(
    form: Form,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: tuple[float, float],
    axis: int,
    mask: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """A divergence per item, without the intermediate arrays of autograd.

    The functions of `kdzoo.losses.divergences` and `kdzoo.losses.bounded` are the front doors: they check their
    arguments and reduce; this function trusts them.

    Args:
        form: which divergence; see `kdzoo.losses.chunk_forms`.
        student_logits: (..., V, ...), class axis at `axis`; float16, bfloat16, float32 or float64.
        teacher_logits: same shape, any of these dtypes; receives no gradient.
        temperature: (T_student, T_teacher), both > 0.
        axis: class axis, 0 <= axis < ndim. No usual layout is copied: class axis last, a slice of it such as
            ``logits[:, :-1]``, or maps in either memory format.
        mask: bool, the shape without the class axis; False costs 0, has gradient 0, and may hide NaN.
        chunk: elements per buffer; None takes the device's number.

    Returns:
        The shape without the class axis; float32 (float64 if an input is).

    Second derivatives are supported (``create_graph=True``, `torch.func.grad`); the gradient is then computed
    in plain form, with the memory that this costs.
    """
    laid = lay_out((student_logits, teacher_logits.detach()), axis, mask)
    inverse = (1.0 / temperature[0], 1.0 / temperature[1])
    size = chunk_size(student_logits) if chunk is None else chunk
    loss: Tensor = _Chunked.apply(*laid.tensors, laid.mask, form, inverse, laid.maps, size)
    return loss.reshape(laid.items)


def chunked_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: tuple[float, float],
    axis: int,
    mask: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """KL(teacher || student) per item, in nats: `chunked` for the form that is used most.

    Formula: sum_v p_v (log p_v - log q_v), p = softmax(teacher / T_teacher), q = softmax(student / T_student).
    Arguments and result as in `chunked`.
    """
    return chunked(
        KL(), student_logits, teacher_logits, temperature=temperature, axis=axis, mask=mask, chunk=chunk
    )


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None,
        form: Form,
        inverse: Inverse,
        maps: bool,
        chunk: int,
    ) -> Tensor:
        dtype = accumulation_dtype(student, teacher)
        classes = student.shape[1] if maps else student.shape[-1]
        items = (student.shape[0], student.shape[2]) if maps else (student.shape[:-1].numel(),)
        make = torch.zeros if mask is not None else torch.empty
        loss = make(items, dtype=dtype, device=student.device)
        flat = buffers(form.buffers, student, classes, chunk, dtype)
        for (s_part, t_part), _, where in parts((student, teacher), mask, maps, chunk):
            loss[where] = form.values(s_part, t_part, inverse, fit(flat, s_part))
        if maps and mask is not None:
            loss.masked_fill_(~mask, 0.0)
        return loss

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        student, teacher, mask, ctx.form, ctx.inverse, ctx.maps, ctx.chunk = inputs
        ctx.save_for_backward(student, teacher, mask)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # With gradients enabled, somebody will differentiate the gradient.
        compute = _plain_gradient if torch.is_grad_enabled() else _gradient
        student, teacher, mask = ctx.saved_tensors
        gradient = compute(student, teacher, mask, ctx.form, ctx.inverse, ctx.maps, ctx.chunk, upstream[0])
        return gradient, None, None, None, None, None, None


def _gradient(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    form: Form,
    inverse: Inverse,
    maps: bool,
    chunk: int,
    upstream: Tensor,
) -> Tensor:
    """upstream * (d value / d student), chunk by chunk."""
    dtype = accumulation_dtype(student, teacher)
    classes = student.shape[1] if maps else student.shape[-1]
    make = torch.zeros if mask is not None and not maps else torch.empty
    gradient = make(student.shape, dtype=student.dtype, device=student.device)
    target = gradient if maps else gradient.view(-1, classes)
    flat = buffers(form.buffers, student, classes, chunk, dtype)
    scale = upstream.to(dtype) * (inverse[0] * form.factor)
    for (s_part, t_part), where, items in parts((student, teacher), mask, maps, chunk):
        values = form.gradient(s_part, t_part, inverse, fit(flat, s_part))
        hidden = ~mask[items].unsqueeze(1) if maps and mask is not None else None
        write(target, where, values, scale[items].unsqueeze(1), hidden)
    return gradient


def _plain_gradient(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    form: Form,
    inverse: Inverse,
    maps: bool,
    chunk: int,
    upstream: Tensor,
) -> Tensor:
    """The same gradient in operations that autograd can follow."""
    axis = 1 if maps else -1
    upstream = upstream if maps else upstream.view(student.shape[:-1])
    if mask is not None:
        # q = p where hidden, hence gradient 0; not after the softmax, whose derivative of NaN is NaN.
        hidden = ~mask.reshape(upstream.shape).unsqueeze(axis)
        student, teacher = student.masked_fill(hidden, 0.0), teacher.masked_fill(hidden, 0.0)
    dtype = accumulation_dtype(student, teacher)
    slope = form.plain_gradient(student.to(dtype) * inverse[0], teacher.to(dtype) * inverse[1], axis)
    return (slope * (upstream.to(dtype) * inverse[0]).unsqueeze(axis)).to(student.dtype)
