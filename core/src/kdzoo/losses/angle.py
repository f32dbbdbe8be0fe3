"""RKD's angle-wise loss from N x N distances, anchor by anchor, in buffers that do not grow to N^2 x D or N^3.

Relational Knowledge Distillation, CVPR 2019, https://arxiv.org/abs/1904.05068 (card `rkd`, component C2).

Legend: N rows, D embedding size, B anchors of one block; j the anchor (the vertex of the angle), i and k its
two ends; a_i = d_ij^2 and r_i = 1 / d_ij for the anchor at hand; psi_ik = cosine of the angle at j between i
and k.

The textbook form makes the N x N x D unit vectors e_ij and multiplies them, 2 D operations for each of N^3
cosines. The law of cosines needs none of that once the N^2 squared distances are there:

    psi_ik = (a_i + a_k - d_ik^2) / 2 * r_i r_k

a handful of elementwise operations, in three reused buffers that stay in the cache. With g = dL/dpsi
(symmetric in i and k for every anchor) the gradient needs only N x N numbers as well, dL/d(d^2) summed over
the anchors:

    from d_ik^2:             - g_ik r_i r_k / 2
    from a_i and a_k alike:  (r_i sum_k g_ik r_k - r_i^2 sum_k g_ik psi_ik) / 2

and one N x N by N x D product at the end turns it into dL/de.

The numerator cancels when one end is much nearer to the anchor than another: its error in psi is about
eps * d_max / d_min. So anchors whose neighbors' distances spread too far (near-duplicates) take the same
passes in float64, and the others in float32.

Under torch.compile it stays eager (a graph break): which anchors need float64 depends on the data.

Not here: second derivatives (refused), torch.func transforms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdzoo.losses.distances import centered, check_same_batch, full_precision, squared_distances, wide_dtype
from kdzoo.losses.masks import Reduction, check_reduction

# Rows closer than this have no direction: cosines with them are 0, without gradient. The official code
# divides by max(d, 1e-12) (eps of F.normalize), which is 0 for coinciding rows too, but with gradients
# multiplied by 1e12.
COINCIDED = -0.5 * 1e-12**2  # as minus half of a squared distance, the form of the tables below
# d_max / d_min of an anchor beyond which float32 is left: there a cosine's error is about 16 * 1.2e-7 = 2e-6.
SPREAD_FLOAT32 = 16.0
# Elements per buffer. CPU: three float32 buffers of 1 MB; smaller ones pay more Python per element, and one
# anchor is taken at a time from N = 512 on. Accelerators: fewer, larger launches; 8 MB a buffer.
BLOCK_CPU = 1 << 18
BLOCK_ACCELERATOR = 1 << 21


def _wide_spread(halves: Tensor) -> Tensor:
    """(N,) bool: anchors whose farthest row is over `SPREAD_FLOAT32` times as far as their nearest one."""
    nearest = halves.masked_fill(halves >= COINCIDED, -torch.inf).amax(dim=1)
    return halves.amin(dim=1) < SPREAD_FLOAT32**2 * nearest


def _inverse(halves: Tensor) -> Tensor:
    """1 / d, and 0 where two rows coincide. Written so that NaN stays NaN."""
    return halves.mul(-2.0).rsqrt_().masked_fill_(halves >= COINCIDED, 0.0)


def _passes(
    student: Tensor, teacher: Tensor, anchors: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Loss sums of the given anchors, and with `weights` the gradient of their weighted sum.

    Args:
        student, teacher: (N, N) minus half the squared distances (so that no pass spends a multiplication on
            it), in the dtype that the passes are to compute in.
        anchors: (A,) indices j.
        weights: (A,) factor of each anchor's sum in the total that is differentiated; None = no gradient.

    Returns:
        (A,) sums over i and k of SmoothL1, and (N, N) derivatives with respect to the student's squared
        distances, not yet symmetrized.
    """
    n, device, dtype = len(student), student.device, student.dtype
    block = max(1, (BLOCK_CPU if device.type == "cpu" else BLOCK_ACCELERATOR) // (n * n))
    block = min(block, len(anchors))
    buffers = [torch.empty(block, n, n, dtype=dtype, device=device) for _ in range(3)]
    sums = torch.empty(len(anchors), dtype=dtype, device=device)
    slopes = None if weights is None else torch.zeros(n, n, dtype=dtype, device=device)
    for start in range(0, len(anchors), block):
        here = slice(start, start + block)
        j = anchors[here]
        psi, error, clipped = (buffer[: len(j)] for buffer in buffers)
        a, t_a = student[j], teacher[j]  # (B, N), minus half of the text's a_i
        r, t_r = _inverse(a), _inverse(t_a)
        row, column = r.unsqueeze(1), r.unsqueeze(2)
        t_row, t_column = t_r.unsqueeze(1), t_r.unsqueeze(2)
        # psi = r_i ((a_k + a_i - d_ik^2) r_k / 2), the teacher's last factor taken along with the difference.
        torch.addcmul(-a.mul(r).unsqueeze(1), student, row, out=psi)
        psi.addcmul_(a.unsqueeze(2), row, value=-1.0).mul_(column)
        torch.addcmul(-t_a.mul(t_r).unsqueeze(1), teacher, t_row, out=clipped)
        clipped.addcmul_(t_a.unsqueeze(2), t_row, value=-1.0)
        torch.addcmul(psi, clipped, t_column, value=-1.0, out=error)
        # SmoothL1 with beta 1: g = clamp(z, -1, 1) is its derivative and g (z - g / 2) its value.
        torch.clamp(error, -1.0, 1.0, out=clipped)
        error.sub_(clipped, alpha=0.5).mul_(clipped)
        torch.sum(error.flatten(1), dim=1, out=sums[here])
        if weights is None or slopes is None:
            continue
        weighted = r * weights[here].to(dtype).unsqueeze(1)
        along = psi.mul_(clipped).sum(dim=2)
        across = clipped.mul_(row).sum(dim=2)
        # i and k play the same part, so each sum counts twice: no factor 1/2.
        slopes.index_add_(0, j, across.sub_(along.mul_(r)).mul_(weighted))
        if len(j) == 1:
            slopes.addcmul_(clipped[0], weighted[0].unsqueeze(1), value=-0.5)
        else:
            slopes.sub_(clipped.mul_(weighted.unsqueeze(2)).sum(dim=0), alpha=0.5)
    return sums, slopes


def angle_pass(
    student_embeddings: Tensor, teacher_embeddings: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Per-anchor losses (N,) and, given `weights` (N,), the gradient (N, D) of their weighted sum."""
    rows = centered(student_embeddings)
    student = squared_distances(rows).mul_(-0.5)
    teacher = squared_distances(centered(teacher_embeddings)).mul_(-0.5)
    n, wide = len(student), student.dtype
    out_dtype = torch.promote_types(student_embeddings.dtype, torch.float32)
    spread = _wide_spread(student) | _wide_spread(teacher)
    if out_dtype == torch.float64:
        spread = torch.ones_like(spread)
    items = torch.empty(n, dtype=wide, device=rows.device)
    slopes: Tensor | None = None
    # The wide ones first: then their tables can go before the others' are made.
    for chosen, dtype in ((spread, wide), (~spread, torch.float32)):
        anchors = torch.nonzero(chosen)[:, 0]
        if len(anchors) == 0:
            continue
        student, teacher = student.to(dtype), teacher.to(dtype)
        sums, part = _passes(student, teacher, anchors, None if weights is None else weights[anchors])
        items[anchors] = sums.to(wide)
        if part is not None:
            slopes = part.to(wide) if slopes is None else slopes.add_(part)
    # Per anchor: the mean over the N^2 pairs (i, k), so that the mean over anchors is the mean over N^3.
    items /= n * n
    if slopes is None:
        return items.to(out_dtype), None
    slopes = slopes + slopes.T
    with full_precision(rows):
        # d(d_ik^2)/de_i = 2 (e_i - e_k); in float64, for the products cancel where rows nearly coincide.
        gradient = slopes.sum(dim=1, keepdim=True).mul(rows).sub_(slopes @ rows).mul_(2.0 / (n * n))
    return items.to(out_dtype), gradient.to(student_embeddings.dtype)


class _NoSecondDerivative(torch.autograd.Function):
    """Hands a gradient through and refuses to be differentiated: else a second derivative would be 0."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "rkd_angle: got a request for a second derivative, expected first derivatives only; its gradient "
            "is computed in closed form and would silently count as a constant. Drop create_graph=True for "
            "this term, or write the angles with plain tensor operations where a second derivative is needed"
        )


class _Angle(torch.autograd.Function):
    """Losses and gradients of both sides. With known weights the gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, reduction: Reduction) -> Tensor:
        ctx.reduction = reduction
        n = len(student)
        needs_student, needs_teacher, _ = ctx.needs_input_grad
        weights = None
        if reduction != "none":
            # A total's weights are known before backward runs, so one walk over the N^3 angles serves both.
            weights = torch.full((n,), 1.0 / n if reduction == "mean" else 1.0, dtype=torch.float64)
            weights = weights.to(student.device, wide_dtype(student.device))
        items, student_gradient = angle_pass(student, teacher, weights if needs_student else None)
        teacher_gradient = None
        if weights is not None and needs_teacher:
            # SmoothL1 is even, so the teacher's gradient is the student's with the roles exchanged.
            _, teacher_gradient = angle_pass(teacher, student, weights)
        ctx.save_for_backward(student, teacher, student_gradient, teacher_gradient)
        if reduction == "none":
            return items
        return items.mean() if reduction == "mean" else items.sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        student, teacher, student_gradient, teacher_gradient = ctx.saved_tensors
        needs_student, needs_teacher, _ = ctx.needs_input_grad
        with torch.no_grad():
            if ctx.reduction == "none":
                # Every anchor may have another factor: walk again, now with the factors.
                if needs_student:
                    _, student_gradient = angle_pass(student, teacher, grad_output)
                if needs_teacher:
                    _, teacher_gradient = angle_pass(teacher, student, grad_output)
            else:
                student_gradient = student_gradient * grad_output if needs_student else None
                teacher_gradient = teacher_gradient * grad_output if needs_teacher else None
        if torch.is_grad_enabled():  # create_graph=True
            inputs = (student, teacher, grad_output)
            if student_gradient is not None:
                student_gradient = _NoSecondDerivative.apply(student_gradient, *inputs)
            if teacher_gradient is not None:
                teacher_gradient = _NoSecondDerivative.apply(teacher_gradient, *inputs)
        return student_gradient, teacher_gradient, None


def rkd_angle(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    *,
    reduction: Reduction,
    teacher_grad: bool = False,
) -> Tensor:
    """How far the angles between all triplets of the student's batch are from the teacher's.

    ``l_j = 1/N^2 sum_ik SmoothL1(psi^s_ijk, psi^t_ijk)`` with
    ``psi_ijk = <(e_i - e_j)/||e_i - e_j||, (e_k - e_j)/||e_k - e_j||>`` (0 where a row coincides with the
    anchor) and SmoothL1(x, y) = z^2 / 2 for |z| < 1, else |z| - 1/2, z = x - y.

    Args:
        student_embeddings: (N, Ds) floating point, any scale; N >= 1. Time grows with N^3, memory with N^2.
        teacher_embeddings: (N, Dt), the same samples in the same order; Dt may differ from Ds.
        reduction: "none" = one value per anchor j, "mean" = the paper's mean over all N^3 entries (trivial
            zeros included), "sum" = N times that.
        teacher_grad: let the gradient flow into the teacher too (mutual and meta-learning).

    Returns:
        (N,) or scalar, >= 0, squared cosine (unitless); float32, or float64 for float64 students. 0 if both
        sides agree up to rotation, shift and scale, and always for N <= 2. A NaN row gives NaN.

    Raises:
        TypeError: integer embeddings.
        ValueError: not (N, D), different N or devices, unknown reduction.
        RuntimeError: a second derivative is asked for.

    Source: arXiv 1904.05068 equations 6 to 8; lenscloth/RKD@0a6c3c0 metric/loss.py:RKdAngle. Differs: the
    gradient of rows that coincide (d <= 1e-12) is 0 here; there it is multiplied by 1e12.

    Example:
        >>> corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> bool((rkd_angle(3.0 * corner + 1.0, corner, reduction="none") < 1e-12).all())
        True
    """
    check_reduction(reduction)
    check_same_batch(student_embeddings, teacher_embeddings)
    teacher = teacher_embeddings if teacher_grad else teacher_embeddings.detach()
    student = student_embeddings
    if not torch.is_grad_enabled():
        # Inside forward the grad mode is always off: the last place where evaluation can be told apart.
        student, teacher = student.detach(), teacher.detach()
    loss: Tensor = _Angle.apply(student, teacher, reduction)
    return loss
