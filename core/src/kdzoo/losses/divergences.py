"""How far the student's distribution is from the teacher's: KL both ways, Jensen-Shannon, cross-entropy.

Skewed divergences and total variation are in `kdzoo.losses.bounded`.

Legend: (..., C, ...) logits with the class axis at `axis`; (...) the item axes that are left. T temperature,
p = softmax(teacher / T) the teacher's distribution, q = softmax(student / T) the student's. All values in
nats.

Common to all functions here:
- one value per item, then `reduction`: "none", "sum", "mean" = per item, never per class.
- `temperature`: one number > 0 for both sides, or a pair (student, teacher). No T^2 is hidden inside:
  gradients shrink like 1/T^2 as T grows, and who wants Hinton's compensation (arXiv 1503.02531, section 2)
  multiplies by T^2.
- the teacher is detached, unless ``teacher_grad=True`` (mutual and meta learning).
- `mask`: bool, item axes, True = counts. Hidden items may hold anything, NaN too, and receive gradient 0.
- a class with logit -inf has probability 0, and 0 log 0 = 0. A class the teacher allows and the student
  forbids makes KL(teacher || student) inf, as it should. An item whose logits hold NaN or +inf, or only -inf,
  yields NaN for that item alone.
- half precision is read and summed in float32; the result is float32 (float64 if an input is).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kdzoo.losses.chunk_forms import KL, Form, JensenShannon, ReverseKL
from kdzoo.losses.masks import Reduction, blank, check_mask, check_reduction, reduce
from kdzoo.losses.vocabulary import accumulation_dtype, chunked

Temperature = float | tuple[float, float]

# Up to this many logits the plain form is used: at 64 x 10 the calls of the chunked form cost three times the
# arithmetic, at 256 x 1000 both take the same time (benchmarks/speed/logit_losses.py).
SMALL = 1 << 17


def kl_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
    teacher_grad: bool = False,
) -> Tensor:
    """KL(teacher || student): the extra cost of coding the teacher's classes with the student's beliefs.

    Formula: sum_c p_c (log p_c - log q_c). 0 exactly where both are equal.

    Args:
        student_logits: (..., C, ...).
        teacher_logits: the same shape; dtypes may differ.
        temperature: T > 0, or (T_student, T_teacher).
        axis: the class axis: -1 for tokens, 1 for maps (B, C, H, W).
        reduction: "none", "sum" or "mean" (over items that count).
        mask: bool, the item axes; None counts all.
        teacher_grad: let the gradient reach the teacher too; takes the plain form, with more memory.

    Returns:
        (...) for "none", else a scalar; nats. Rounding may leave about -1e-7 where the true value is 0.

    Raises:
        ValueError: shapes differ, no class, temperature <= 0, axis out of range, mask of another shape, empty
        mean.
        TypeError: logits that are not floating point, or a mask that is not bool.

    Source: Hinton et al. 2015, arXiv 1503.02531, section 2, without its factor T^2. Gradient (q - p) / T in
    `kdzoo.losses.vocabulary`.

    Example:
        >>> s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
        >>> kl = kl_divergence(s, t, temperature=1.0, axis=-1, reduction="mean")
        >>> round(kl.item(), 4)  # log 2 - H(3/4, 1/4)
        0.1308
    """

    def plain(log_q: Tensor, log_p: Tensor, axis: int) -> Tensor:
        return expected_log_ratio(log_p, log_q, axis)

    pair = (student_logits, teacher_logits)
    return divergence_of(KL(), plain, pair, temperature, axis, reduction, mask, teacher_grad)


def reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
    teacher_grad: bool = False,
) -> Tensor:
    """KL(student || teacher): punishes the student for mass where the teacher has none (mode seeking).

    Formula: sum_c q_c (log q_c - log p_c). inf where the student allows a class that the teacher forbids.
    Arguments, result and errors as in `kl_divergence`.

    Source: MiniLLM, Gu et al. 2024, arXiv 2306.08543, equation 1, here per token and from full distributions.

    Example:
        >>> s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
        >>> kl = reverse_kl(s, t, temperature=1.0, axis=-1, reduction="mean")
        >>> round(kl.item(), 4)  # log 2 - (log 3) / 2
        0.1438
    """
    pair = (student_logits, teacher_logits)
    return divergence_of(
        ReverseKL(), expected_log_ratio, pair, temperature, axis, reduction, mask, teacher_grad
    )


def js_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float,
    temperature: Temperature,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
    teacher_grad: bool = False,
) -> Tensor:
    """Generalised Jensen-Shannon divergence: both sides against their mixture; finite whatever they forbid.

    Formula: beta KL(p || m) + (1 - beta) KL(q || m), with m = beta p + (1 - beta) q.
    beta = 0.5 is the symmetric one, at most log 2. Divided by beta it tends to KL(p || q) for beta -> 0,
    divided by (1 - beta) to KL(q || p) for beta -> 1; at either end itself it is 0.

    Args:
        beta: the teacher's weight in the mixture, strictly between 0 and 1.
        others: as in `kl_divergence`.

    Raises:
        ValueError: beta outside (0, 1), and as in `kl_divergence`.

    Source: GKD, Agarwal et al. 2024, arXiv 2306.13649, equation 1.

    Example:
        >>> s, t = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]])
        >>> js = js_divergence(s, t, beta=0.5, temperature=1.0, axis=-1, reduction="mean")
        >>> round(js.item(), 4)  # log 2
        0.6931
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(
            f"beta: got {beta}, expected 0 < beta < 1; at 0 and 1 this divergence is 0 for any student. "
            "Take kl_divergence (the limit at 0) or reverse_kl (the limit at 1)"
        )

    def plain(log_q: Tensor, log_p: Tensor, axis: int) -> Tensor:
        log_m = log_mixture(log_p, log_q, beta)
        teachers, students = expected_log_ratio(log_p, log_m, axis), expected_log_ratio(log_q, log_m, axis)
        return beta * teachers + (1.0 - beta) * students

    pair = (student_logits, teacher_logits)
    return divergence_of(JensenShannon(beta), plain, pair, temperature, axis, reduction, mask, teacher_grad)


def soft_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
    teacher_grad: bool = False,
) -> Tensor:
    """Cross-entropy under the teacher's soft labels. No divergence: at equality it is the teacher's entropy.

    Formula: -sum_c p_c log q_c = KL(p || q) + H(p). With the teacher detached its gradient is that of
    `kl_divergence`; only the value differs. Arguments, result and errors as there.

    Source: Hinton et al. 2015, arXiv 1503.02531, section 2.

    Example:
        >>> same = torch.zeros(1, 4)
        >>> ce = soft_cross_entropy(same, same, temperature=1.0, axis=-1, reduction="mean")
        >>> round(ce.item(), 4)  # log 4
        1.3863
    """
    axis, temperatures = check_pair(student_logits, teacher_logits, temperature, axis, reduction, mask)
    log_q, log_p = log_pair(student_logits, teacher_logits, temperatures, axis, mask, teacher_grad)
    return reduce(-_expectation(log_p, log_q, axis), reduction=reduction, mask=mask)


def entropy(
    logits: Tensor, *, temperature: float, axis: int, reduction: Reduction, mask: Tensor | None = None
) -> Tensor:
    """Shannon entropy of softmax(logits / T), in nats: 0 (certain) to log C (knows nothing). Not detached.

    Arguments and errors as in `kl_divergence`.

    Example:
        >>> round(entropy(torch.zeros(1, 4), temperature=1.0, axis=-1, reduction="mean").item(), 4)
        1.3863
    """
    axis, temperatures = check_pair(logits, logits, temperature, axis, reduction, mask)
    log_p = log_probabilities(blank(logits, mask, axis), temperature=temperatures[0], axis=axis)
    return reduce(-_expectation(log_p, log_p, axis), reduction=reduction, mask=mask)


def log_probabilities(logits: Tensor, *, temperature: float, axis: int) -> Tensor:
    """log softmax(logits / T) in float32, or float64 for float64 logits: (..., C, ...)."""
    return _log_softmax(logits, temperature, axis, accumulation_dtype(logits))


def _log_softmax(logits: Tensor, temperature: float, axis: int, dtype: torch.dtype) -> Tensor:
    # Each call saved counts: at 8 x 10 the loss is nothing but calls.
    if logits.dtype != dtype:
        logits = logits.to(dtype)
    return torch.log_softmax(logits if temperature == 1.0 else logits / temperature, axis)


def divergence_of(
    form: Form,
    plain: Callable[[Tensor, Tensor, int], Tensor],
    pair: tuple[Tensor, Tensor],
    temperature: Temperature,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None,
    teacher_grad: bool,
) -> Tensor:
    """Check, take the plain form for few logits or a teacher that learns, the chunked one else, and reduce.

    Args:
        form: the divergence in chunks.
        plain: the same of (log q, log p, axis), for autograd.
        pair: logits of student and teacher.
        others: as in `kl_divergence`.
    """
    axis, temperatures = check_pair(*pair, temperature, axis, reduction, mask)
    if teacher_grad or pair[0].numel() <= SMALL:
        values = plain(*log_pair(*pair, temperatures, axis, mask, teacher_grad), axis)
    else:
        values = chunked(form, *pair, temperature=temperatures, axis=axis, mask=mask)
    return reduce(values, reduction=reduction, mask=mask)


def check_pair(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Temperature,
    axis: int,
    reduction: str,
    mask: Tensor | None,
) -> tuple[int, tuple[float, float]]:
    """Refuse what would broadcast or divide in silence; returns (axis >= 0, (T_student, T_teacher))."""
    check_reduction(reduction)
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if not logits.is_floating_point():
            raise TypeError(
                f"{name}: got dtype {logits.dtype}, expected floating point logits, not class indices"
            )
    shape = tuple(student_logits.shape)
    if shape != tuple(teacher_logits.shape):
        raise ValueError(
            f"logits: got student {shape} and teacher {tuple(teacher_logits.shape)}, expected equal shapes; "
            "broadcasting would compare a student with another item's teacher, and padding the classes takes "
            "probability mass that depends on an arbitrary offset of the logits"
        )
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis: got {axis}, expected a class axis of logits of shape {shape}")
    axis %= len(shape)
    if shape[axis] == 0:
        raise ValueError(
            f"logits: got no class (shape {shape}, axis {axis}), expected at least one; softmax is 0/0"
        )
    check_mask(mask, shape[:axis] + shape[axis + 1 :])
    return axis, check_temperature(temperature)


def check_temperature(temperature: Temperature) -> tuple[float, float]:
    """(T_student, T_teacher), both finite and > 0."""
    pair = temperature if isinstance(temperature, tuple) else (temperature, temperature)
    if len(pair) != 2 or not all(0.0 < t < math.inf for t in pair):
        raise ValueError(
            f"temperature: got {temperature}, expected a finite number > 0 or a pair (student, teacher); "
            "0 divides by zero and a negative one turns the ranking of the classes around"
        )
    return float(pair[0]), float(pair[1])


def log_pair(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperatures: tuple[float, float],
    axis: int,
    mask: Tensor | None,
    teacher_grad: bool,
) -> tuple[Tensor, Tensor]:
    """(log q, log p) for autograd; items that do not count are uniform, the teacher is detached unless asked."""
    if not teacher_grad:
        teacher_logits = teacher_logits.detach()
    dtype = accumulation_dtype(student_logits, teacher_logits)
    student_logits, teacher_logits = blank(student_logits, mask, axis), blank(teacher_logits, mask, axis)
    log_q = _log_softmax(student_logits, temperatures[0], axis, dtype)
    log_p = _log_softmax(teacher_logits, temperatures[1], axis, dtype)
    return log_q, log_p


def _expectation(log_p: Tensor, values: Tensor, axis: int) -> Tensor:
    """sum_c p_c values_c with 0 * inf = 0; masked before the product, since after it the gradient has NaN."""
    p = log_p.exp()
    return (p * values.masked_fill(p == 0, 0.0)).sum(axis)


def log_mixture(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """log(weight p + (1 - weight) q), 0 < weight < 1; anything finite where both are 0, since it weighs nothing."""
    # logaddexp(-inf, -inf) is right, but its derivative is NaN.
    neither = log_p.isneginf() & log_q.isneginf()
    return torch.logaddexp(
        log_p.masked_fill(neither, 0.0) + math.log(weight),
        log_q.masked_fill(neither, 0.0) + math.log1p(-weight),
    )


def expected_log_ratio(log_p: Tensor, log_q: Tensor, axis: int) -> Tensor:
    """sum_c p_c (log p_c - log q_c)."""
    return _expectation(log_p, log_p - log_q, axis)
