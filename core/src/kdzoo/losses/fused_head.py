"""Token losses fused with the output head: the N x V logits never exist, neither the student's nor the teacher's.

Legend: N rows (tokens) that count, D width of the hidden states, V classes; z = hidden @ weight.T + bias.

The head is applied to a few rows at a time. While their logits are there, the losses are computed, their derivative
dz takes the logits' place, and dz @ weight and dz.T @ hidden go to the gradients; then the next rows overwrite them.
So one chunk of logits exists (two with a teacher's head), and the gradients of hidden states and weight, which any
form has. The idea is Liger-Kernel's (arXiv 2410.10989, fused linear cross-entropy).

What it asks for in return: the sum over tokens must be known in the forward pass, because the weight's gradient is one
sum over all of them. So the result is one total (weights of the terms included), and values per token without
gradient; and it can be backpropagated once, and not differentiated twice.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from kdzoo.losses.chunk_forms import Form, Inverse
from kdzoo.losses.chunks import CHUNK_ACCELERATOR, CHUNK_CPU, accumulation_dtype, fit
from kdzoo.losses.divergences import Temperature
from kdzoo.losses.fused_checks import check_arguments

# Rows of one chunk of logits: enough that reading the head's weight from memory does not take longer than multiplying
# with it (256 x 50,000 on one thread: 842 ms by 16 rows, 496 by 64, 436 by 128, 722 with whole logits), at most a 16th
# of the tokens beyond that, and no more than the device's share of elements.
LEAST_ROWS, LEAST_ROWS_ACCELERATOR = 64, 128
MOST_CPU = 1 << 23  # elements
WEIGHT_BLOCK = (
    8192  # rows of the weight whose half-precision product exists at a time, before float32 takes it up
)


class Head(NamedTuple):
    """Hidden states and the output layer over them.

    Attributes:
        hidden: (..., D).
        weight: (V, D), as in `torch.nn.Linear`.
        bias: (V,) or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None


class HeadLoss(NamedTuple):
    """What `head_loss` gives.

    Attributes:
        total: scalar with gradient: the weighted terms, reduced.
        divergence: (...) per token, unweighted, no gradient; zeros where no divergence was asked for.
        cross_entropy: (...) likewise.
    """

    total: Tensor
    divergence: Tensor
    cross_entropy: Tensor


def head_loss(
    student: Head,
    teacher: Head | Tensor | None,
    *,
    divergence: Form | None,
    temperature: Temperature,
    divergence_weight: float,
    labels: Tensor | None,
    label_weight: float,
    reduction: Literal["sum", "mean"],
    mask: Tensor | None = None,
    rows: int | None = None,
) -> HeadLoss:
    """Divergence from the teacher and cross-entropy on labels, from hidden states, without the logits.

    Formula: total = sum_n divergence_weight * D(p_n, q_n) + label_weight * -log softmax(z_n)[label_n], over the tokens
    that count; "mean" divides by their number. p = softmax(teacher / T_teacher), q = softmax(z / T_student). No T^2 is
    hidden inside; labels are at T = 1.

    Args:
        student: hidden states (..., D_s), weight (V, D_s), bias: each receives a gradient if it requires one.
        teacher: the same of the teacher, (..., D_t) and (V, D_t), or its logits (..., V); receives no gradient. None
            where no divergence is asked for.
        divergence: `KL()`, `ReverseKL()`, `JensenShannon(beta)`, `SkewKL(alpha)`, ... of `kdzoo.losses.chunk_forms`.
        temperature: T > 0, or (T_student, T_teacher).
        divergence_weight, label_weight: finite.
        labels: (...) int64 classes, or None; looked at where `mask` is True.
        reduction: "sum" or "mean". A training loop takes "sum" and divides by the count of the whole optimiser step.
        mask: bool, (...); None counts all. Where it is False nothing is computed.
        rows: tokens of one chunk; None chooses by device and size.

    Returns:
        `HeadLoss`; nats; float32 (float64 if an input is). Under autocast, and for half precision, the products run in
        half precision, everything else in float32; the weight's gradient is summed in float32.

    Raises:
        ValueError: shapes that do not fit, V of teacher and student differ, a label that is no class, an empty mean,
        nothing asked for, temperature <= 0.
        TypeError: a mask that is not bool, labels that are not integers.
        RuntimeError: on backward, the second time or with create_graph=True.

    Source: own; the chunking after Liger-Kernel, Hsu et al. 2024, arXiv 2410.10989, section 3.2.

    Example:
        >>> from kdzoo.losses.chunk_forms import KL
        >>> teacher = torch.tensor([[3.0, 1.0]]).log()
        >>> student = Head(torch.zeros(1, 1), torch.zeros(2, 1, requires_grad=True))
        >>> loss = head_loss(student, teacher, divergence=KL(), temperature=1.0,
        ...     divergence_weight=1.0, labels=torch.tensor([0]), label_weight=2.0, reduction="sum")
        >>> round(loss.divergence.item(), 4), round(loss.cross_entropy.item(), 4), round(loss.total.item(), 4)
        (0.1308, 0.6931, 1.5171)
    """
    inverse = check_arguments(
        student, teacher, divergence, temperature, divergence_weight, labels, label_weight, reduction, mask
    )
    items = student.hidden.shape[:-1]
    source = teacher.hidden if isinstance(teacher, Head) else teacher
    wide = [x for x in (student.hidden, student.weight, source) if x is not None]
    plan = _Plan(
        divergence,
        inverse,
        (divergence_weight, label_weight),
        reduction == "mean",
        rows or _rows(student.hidden, student.weight.shape[0]),
        accumulation_dtype(*wide),
        tuple(torch.is_grad_enabled() and x is not None and x.requires_grad for x in student),
    )
    flat = student.hidden.reshape(-1, student.hidden.shape[-1])
    head: tuple[Tensor | None, ...] = (None, None)
    if isinstance(teacher, Head):
        head = tuple(None if x is None else x.detach() for x in teacher[1:])
    if source is not None:
        source = source.detach().reshape(-1, source.shape[-1])
    index = None if mask is None else mask.flatten().nonzero().squeeze(1)
    labels = None if labels is None else labels.flatten()
    total, values = _HeadLoss.apply(flat, student.weight, student.bias, source, *head, labels, index, plan)
    return HeadLoss(total, values[0].view(items), values[1].view(items))


class _Plan(NamedTuple):
    """What does not change from chunk to chunk."""

    form: Form | None
    inverse: Inverse
    weights: tuple[float, float]
    mean: bool
    rows: int
    dtype: torch.dtype  # of sums
    wanted: tuple[bool, ...]  # gradients of hidden, weight, bias


def _rows(hidden: Tensor, classes: int) -> int:
    on_cpu = hidden.device.type == "cpu"
    least, most = (LEAST_ROWS, MOST_CPU) if on_cpu else (LEAST_ROWS_ACCELERATOR, 4 * CHUNK_ACCELERATOR)
    count = hidden.shape[:-1].numel()
    return max(least, min(count // 16, most // classes))


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """In which precision the head multiplies: autocast's where it is on, else the wider of the two."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and torch.float64 not in (hidden.dtype, weight.dtype):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(hidden.dtype, weight.dtype)


class _Logits:
    """A head that writes the logits of some rows into a buffer of its own."""

    def __init__(
        self, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, index: Tensor | None, rows: int
    ) -> None:
        self.hidden, self.index = hidden, index
        if weight is None:  # the logits are given
            self.weight, self.bias = None, None
            return
        dtype = _product_dtype(hidden, weight)
        self.weight, self.bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        count = hidden.shape[0] if index is None else index.shape[0]
        self.buffer = torch.empty((min(rows, count), weight.shape[0]), dtype=dtype, device=hidden.device)

    def take(self, place: slice) -> Tensor:
        return self.hidden[place] if self.index is None else self.hidden[self.index[place]]

    def of(self, h: Tensor) -> Tensor:
        """(R, D) hidden states -> (R, V) logits; given logits as they are."""
        if self.weight is None:
            return h
        out = self.buffer[: h.shape[0]]
        if self.bias is None:
            return torch.mm(h, self.weight.t(), out=out)
        return torch.addmm(self.bias, h, self.weight.t(), out=out)


class _Gradients:
    """The student's gradients, summed chunk by chunk."""

    def __init__(self, head: _Logits, plan: _Plan, weight: Tensor) -> None:
        hidden, dtype, device = head.hidden, plan.dtype, weight.device
        self.head = head
        self.hidden = torch.zeros(hidden.shape, dtype=dtype, device=device) if plan.wanted[0] else None
        self.weight = torch.zeros(weight.shape, dtype=dtype, device=device) if plan.wanted[1] else None
        self.bias = torch.zeros(weight.shape[0], dtype=dtype, device=device) if plan.wanted[2] else None

    def add(self, slope: Tensor, h: Tensor, place: slice) -> None:
        """slope (R, V) = d total / d logits of the rows at `place`, whose hidden states are h (R, D)."""
        if self.hidden is not None:
            assert self.head.weight is not None
            where = place if self.head.index is None else self.head.index[place]
            self.hidden[where] = torch.mm(slope, self.head.weight).to(self.hidden.dtype)
        if self.weight is not None:
            if slope.dtype == self.weight.dtype:
                self.weight.addmm_(slope.t(), h)
            else:
                for start in range(0, self.weight.shape[0], WEIGHT_BLOCK):
                    rows = slice(start, start + WEIGHT_BLOCK)
                    self.weight[rows].add_(torch.mm(slope[:, rows].t(), h))
        if self.bias is not None:
            self.bias.add_(slope.sum(0, dtype=self.bias.dtype))


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        source: Tensor | None,
        teacher_weight: Tensor | None,
        teacher_bias: Tensor | None,
        labels: Tensor | None,
        index: Tensor | None,
        plan: _Plan,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        count = hidden.shape[0] if index is None else index.shape[0]
        ours = _Logits(hidden, weight, bias, index, plan.rows)
        theirs = None if source is None else _Logits(source, teacher_weight, teacher_bias, index, plan.rows)
        gradients = _Gradients(ours, plan, weight) if any(plan.wanted) else None
        values = torch.zeros((2, hidden.shape[0]), dtype=plan.dtype, device=hidden.device)
        inner = _Inner(weight.shape[0], plan, ours.buffer)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, count, plan.rows):
                place = slice(start, min(start + plan.rows, count))
                h = ours.take(place).to(ours.buffer.dtype)
                z = ours.of(h)
                y = None
                if theirs is not None:
                    t = theirs.take(place)
                    y = theirs.of(t if theirs.weight is None else t.to(theirs.weight.dtype))
                where = place if index is None else index[place]
                values[:, where] = inner.run(
                    z, y, None if labels is None else labels[where], gradients is not None
                )
                if gradients is not None:
                    gradients.add(z, h, place)
        total = plan.weights[0] * values[0].sum() + plan.weights[1] * values[1].sum()
        ctx.divisor = count if plan.mean else 1
        ctx.gradients = gradients
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(values)
        return total / ctx.divisor, values

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream[0] is None:
            return (None,) * 9
        if torch.is_grad_enabled():
            raise RuntimeError(
                "head_loss: got create_graph=True, expected a plain backward pass; the derivative of its gradient "
                "would silently be 0. Take kl_divergence and its like on logits for second derivatives"
            )
        held: _Gradients | None = ctx.gradients
        ctx.gradients = None  # given away: the caller's sum takes the arrays over instead of copying them
        if held is None:
            raise RuntimeError(
                "head_loss: got a second backward pass, expected one; the gradients were computed in the forward "
                "pass, scaled and given away. Call head_loss again, or add up the losses before backward"
            )
        scale = upstream[0] / ctx.divisor
        result = []
        for gradient, dtype in zip((held.hidden, held.weight, held.bias), ctx.dtypes, strict=True):
            result.append(None if gradient is None else gradient.mul_(scale).to(dtype))
        held.hidden = held.weight = held.bias = None
        return (*result, None, None, None, None, None, None)


class _Inner:
    """Losses and derivatives of the logits of one chunk, a few rows at a time, in buffers that stay in cache."""

    def __init__(self, classes: int, plan: _Plan, logits: Tensor) -> None:
        on_cpu = logits.device.type == "cpu"
        size = CHUNK_CPU * torch.get_num_threads() if on_cpu else CHUNK_ACCELERATOR
        self.plan, self.step = plan, max(1, min(size // classes, logits.shape[0]))
        count = 1 + (0 if plan.form is None else plan.form.buffers)
        shape = (count, self.step * classes)
        self.for_labels, *self.flat = torch.empty(shape, dtype=plan.dtype, device=logits.device)

    def run(self, z: Tensor, y: Tensor | None, labels: Tensor | None, differentiate: bool) -> Tensor:
        """(R, V) logits of student and teacher -> (2, R) values; z becomes d total / d z if so asked."""
        values = torch.zeros((2, z.shape[0]), dtype=self.plan.dtype, device=z.device)
        form, inverse, weights = self.plan.form, self.plan.inverse, self.plan.weights
        for start in range(0, z.shape[0], self.step):
            rows = slice(start, start + self.step)
            some, slopes = z[rows], []
            if form is not None and y is not None:
                work = fit(self.flat, some)
                values[0, rows] = form.values(some, y[rows], inverse, work)
                if differentiate:
                    slope = form.gradient(some, y[rows], inverse, work)
                    slopes.append(slope.mul_(weights[0] * form.factor * inverse[0]))
            if labels is not None:
                values[1, rows], slope = self._labels(some, labels[rows].unsqueeze(1), weights[1])
                slopes.append(slope)
            if differentiate:
                some.copy_(slopes[0] if len(slopes) == 1 else slopes[0].add_(slopes[1]))
        return values

    def _labels(self, z: Tensor, at: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Cross-entropies (R,), and weight * (softmax z - onehot) (R, V)."""
        (work,) = fit((self.for_labels,), z)
        work.copy_(z)
        top = work.amax(1, keepdim=True)
        chosen = work.gather(1, at)
        total = work.sub_(top).exp_().sum(1, keepdim=True)
        work.mul_(weight / total).scatter_add_(1, at, torch.full_like(total, -weight))
        return (total.log() + top - chosen).squeeze(1), work
