"""The arithmetic of one chunk: value and derivative of each divergence on a part, in buffers, with nothing kept.

Legend: a part has its class axis at 1; x = student / T, y = teacher / T_teacher, q = softmax(x), p = softmax(y).

A `Form` is what `kdzoo.losses.vocabulary` and `kdzoo.losses.fused_head` need to know of a divergence. For a loss
sum_v f(p_v, q_v) with slope g = df/dq the derivative by x is

    d loss / d x = q (g - sum_u q_u g_u).

A constant added to g changes nothing; it is chosen so that g is 0, to the last bit, where p = q. Mixtures are built as
p + w (q - p) for the same reason: where p = q they are p, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kdzoo.losses.chunks import scaled

Inverse = tuple[float, float]  # (1 / T_student, 1 / T_teacher)


class Form(Protocol):
    """A divergence of two softmaxes, chunk by chunk."""

    @property
    def buffers(self) -> int:
        """How many buffers it works in."""

    @property
    def factor(self) -> float:
        """What its `gradient` is still to be multiplied with."""

    def values(self, student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
        """Parts (R, V, ...) -> one value per item (R, ...)."""

    def gradient(self, student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
        """d value / d x, without `factor`, in one of the buffers `work`."""

    def plain_gradient(self, x: Tensor, y: Tensor, axis: int) -> Tensor:
        """The same with `factor`, in operations that autograd can follow."""


def _sum_without_empty(terms: Tensor, probabilities: Tensor) -> Tensor:
    """terms.sum(1), where a term of probability 0 is 0: its limit, which -inf logits turn into 0 * inf = NaN.

    The test costs nothing on a CPU; elsewhere it would wait for the device, so the correction is made unasked.
    """
    total = terms.sum(1)
    if terms.device.type != "cpu" or not bool(total.isfinite().all()):
        total = terms.masked_fill_(probabilities == 0, 0.0).sum(1)
    return total


def _kl(a: Tensor, b: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
    """KL(softmax a || softmax b), from logits: an underflown probability keeps its finite logarithm."""
    first, second, ratio = work[:3]
    x, y = scaled(a, inverse[0], first), scaled(b, inverse[1], second)
    torch.sub(x, x.amax(1, keepdim=True), out=first)  # log probability + a constant per item
    torch.sub(y, y.amax(1, keepdim=True), out=second)
    torch.sub(first, second, out=ratio)
    first.exp_()
    a_sum, b_sum = first.sum(1), second.exp_().sum(1)
    total = _sum_without_empty(ratio.mul_(first), first)
    return total / a_sum + (b_sum / a_sum).log()


def _softmaxes(
    student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(q, p) in the first two buffers; the third is spoilt."""
    torch.softmax(scaled(student, inverse[0], work[2]), 1, out=work[0])
    torch.softmax(scaled(teacher, inverse[1], work[2]), 1, out=work[1])
    return work[0], work[1]


def _kl_to_mixture(a: Tensor, mixture: Tensor, work: Tensor) -> Tensor:
    """sum_v a_v log(a_v / m_v), m never below a share of a; `work` may be the mixture."""
    return _sum_without_empty(torch.div(a, mixture, out=work).log_().mul_(a), a)


def _centred(weighted_slope: Tensor, q: Tensor) -> Tensor:
    """q g -> q (g - sum q g), in place."""
    total = _sum_without_empty(weighted_slope, q)
    return weighted_slope.addcmul_(q, total.unsqueeze(1), value=-1.0)


def _plain_centred(q: Tensor, slope: Tensor, axis: int) -> Tensor:
    """The same in operations that autograd can follow."""
    weighted = q * slope
    return weighted - q * weighted.sum(axis, keepdim=True)


def _plain_softmaxes(x: Tensor, y: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, p, and where q = 0: there the derivative is 0, and 0 / 0 must be kept out of what follows."""
    q, p = torch.softmax(x, axis), torch.softmax(y, axis)
    return q, p, q == 0


@dataclass(frozen=True, slots=True)
class KL:
    """KL(p || q); d / d x = q - p."""

    buffers = 3
    factor = 1.0

    def values(self, student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
        return _kl(teacher, student, (inverse[1], inverse[0]), work)

    def gradient(self, student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
        q, p = _softmaxes(student, teacher, inverse, work)
        return q.sub_(p)

    def plain_gradient(self, x: Tensor, y: Tensor, axis: int) -> Tensor:
        return torch.softmax(x, axis) - torch.softmax(y, axis)


@dataclass(frozen=True, slots=True)
class ReverseKL:
    """KL(q || p); slope log(q / p)."""

    buffers = 3
    factor = 1.0

    def values(self, student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
        return _kl(student, teacher, inverse, work)

    def gradient(self, student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
        q, p, ratio = work[:3]
        x, y = scaled(student, inverse[0], q), scaled(teacher, inverse[1], p)
        torch.sub(x, x.amax(1, keepdim=True), out=q)
        torch.sub(y, y.amax(1, keepdim=True), out=p)
        torch.sub(q, p, out=ratio)
        q_sum, p_sum = q.exp_().sum(1, keepdim=True), p.exp_().sum(1, keepdim=True)
        q.div_(q_sum)
        return _centred(ratio.add_((p_sum / q_sum).log()).mul_(q), q)

    def plain_gradient(self, x: Tensor, y: Tensor, axis: int) -> Tensor:
        log_q, log_p = torch.log_softmax(x, axis), torch.log_softmax(y, axis)
        q = log_q.exp()
        return _plain_centred(q, (log_q - log_p).masked_fill(q == 0, 0.0), axis)


@dataclass(frozen=True, slots=True)
class JensenShannon:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; slope (1 - beta) log(q / m)."""

    beta: float
    buffers = 4

    @property
    def factor(self) -> float:
        return 1.0 - self.beta

    def values(self, student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
        q, p = _softmaxes(student, teacher, inverse, work)
        mixture = torch.lerp(p, q, 1.0 - self.beta, out=work[2])
        from_teacher = _kl_to_mixture(p, mixture, work[3])
        return self.beta * from_teacher + (1.0 - self.beta) * _kl_to_mixture(q, mixture, mixture)

    def gradient(self, student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
        q, p = _softmaxes(student, teacher, inverse, work)
        mixture = torch.lerp(p, q, 1.0 - self.beta, out=work[2])
        return _centred(torch.div(q, mixture, out=mixture).log_().mul_(q), q)

    def plain_gradient(self, x: Tensor, y: Tensor, axis: int) -> Tensor:
        q, p, empty = _plain_softmaxes(x, y, axis)
        mixture = torch.lerp(p, q, 1.0 - self.beta).masked_fill(empty, 1.0)
        return self.factor * _plain_centred(q, (q.masked_fill(empty, 1.0) / mixture).log(), axis)


@dataclass(frozen=True, slots=True)
class SkewKL:
    """KL(p || m), m = alpha p + (1 - alpha) q; slope (1 - alpha) (1 - p / m) = (1 - alpha)^2 (q - p) / m."""

    alpha: float
    buffers = 3

    @property
    def factor(self) -> float:
        return (1.0 - self.alpha) ** 2

    def values(self, student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
        q, p = _softmaxes(student, teacher, inverse, work)
        mixture = torch.lerp(p, q, 1.0 - self.alpha, out=work[2])
        return _kl_to_mixture(p, mixture, mixture)

    def gradient(self, student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
        q, p = _softmaxes(student, teacher, inverse, work)
        mixture = torch.lerp(p, q, 1.0 - self.alpha, out=work[2])
        slope = torch.sub(q, p, out=p).div_(mixture)
        return _centred(slope.mul_(q), q)

    def plain_gradient(self, x: Tensor, y: Tensor, axis: int) -> Tensor:
        q, p, empty = _plain_softmaxes(x, y, axis)
        mixture = torch.lerp(p, q, 1.0 - self.alpha).masked_fill(empty, 1.0)
        return self.factor * _plain_centred(q, (q - p) / mixture, axis)


@dataclass(frozen=True, slots=True)
class SkewReverseKL:
    """KL(q || m), m = (1 - alpha) p + alpha q; slope log(q / m) + alpha (1 - q / m)."""

    alpha: float
    buffers = 3
    factor = 1.0

    def values(self, student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
        q, p = _softmaxes(student, teacher, inverse, work)
        mixture = torch.lerp(p, q, self.alpha, out=work[2])
        return _kl_to_mixture(q, mixture, mixture)

    def gradient(self, student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
        q, p = _softmaxes(student, teacher, inverse, work)
        share = torch.div(q, torch.lerp(p, q, self.alpha, out=work[2]), out=work[2])
        slope = torch.log(share, out=p).sub_(share.sub_(1.0), alpha=self.alpha)
        return _centred(slope.mul_(q), q)

    def plain_gradient(self, x: Tensor, y: Tensor, axis: int) -> Tensor:
        q, p, empty = _plain_softmaxes(x, y, axis)
        share = q.masked_fill(empty, 1.0) / torch.lerp(p, q, self.alpha).masked_fill(empty, 1.0)
        return _plain_centred(q, share.log() + self.alpha * (1.0 - share), axis)


@dataclass(frozen=True, slots=True)
class TotalVariation:
    """1/2 sum |q - p|; slope 1/2 sign(q - p), 0 where both are equal."""

    buffers = 3
    factor = 0.5

    def values(self, student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
        q, p = _softmaxes(student, teacher, inverse, work)
        return q.sub_(p).abs_().sum(1) * 0.5

    def gradient(self, student: Tensor, teacher: Tensor, inverse: Inverse, work: Sequence[Tensor]) -> Tensor:
        q, p = _softmaxes(student, teacher, inverse, work)
        return _centred(torch.sub(q, p, out=p).sign_().mul_(q), q)

    def plain_gradient(self, x: Tensor, y: Tensor, axis: int) -> Tensor:
        q, p, _ = _plain_softmaxes(x, y, axis)
        return self.factor * _plain_centred(q, (q - p).sign(), axis)
