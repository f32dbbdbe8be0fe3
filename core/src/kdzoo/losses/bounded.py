"""Divergences that stay finite whatever either side forbids: skew KL both ways, total variation.

Legend and conventions as in `kdzoo.losses.divergences`, where the Jensen-Shannon divergence is: p the teacher, q the
student, one value per item in nats (total variation: a probability), class axis and temperature explicit, teacher
detached unless ``teacher_grad=True``.

A KL is infinite where one side forbids what the other allows, and its gradient is dominated by classes where they
differ by orders of magnitude. A share of the side that is averaged over, mixed into the other one, bounds both.
"""

from __future__ import annotations

from torch import Tensor

from kdzoo.losses.chunk_forms import SkewKL, SkewReverseKL, TotalVariation
from kdzoo.losses.divergences import Temperature, divergence_of, expected_log_ratio, log_mixture
from kdzoo.losses.masks import Reduction


def skew_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    alpha: float,
    temperature: Temperature,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
    teacher_grad: bool = False,
) -> Tensor:
    """KL(teacher || mixture): as `kl_divergence`, but the student is helped by a share of the teacher.

    Formula: KL(p || alpha p + (1 - alpha) q); at most -log alpha.

    Args:
        student_logits: (..., C, ...).
        teacher_logits: the same shape; dtypes may differ.
        alpha: the teacher's share, strictly between 0 and 1; DistiLLM takes 0.1.
        temperature: T > 0, or (T_student, T_teacher).
        axis: the class axis: -1 for tokens.
        reduction: "none", "sum" or "mean" (over items that count).
        mask: bool, the item axes; None counts all.
        teacher_grad: let the gradient reach the teacher too; takes the plain form, with more memory.

    Returns:
        (...) for "none", else a scalar; nats.

    Raises:
        ValueError: alpha outside (0, 1); shapes differ, no class, temperature <= 0, axis out of range, mask of
        another shape, empty mean.
        TypeError: logits that are not floating point, or a mask that is not bool.

    Source: DistiLLM, Ko et al. 2024, arXiv 2402.03898, section on skew KL.

    Example:
        >>> import torch
        >>> s, t = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]])
        >>> kl = skew_kl(s, t, alpha=0.1, temperature=1.0, axis=-1, reduction="mean")
        >>> round(kl.item(), 4)  # -log 0.1
        2.3026
    """
    _check_share(alpha, "kl_divergence (the limit at 0); at 1 it is 0 for any student")

    def plain(log_q: Tensor, log_p: Tensor, axis: int) -> Tensor:
        return expected_log_ratio(log_p, log_mixture(log_p, log_q, alpha), axis)

    pair = (student_logits, teacher_logits)
    return divergence_of(SkewKL(alpha), plain, pair, temperature, axis, reduction, mask, teacher_grad)


def skew_reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    alpha: float,
    temperature: Temperature,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
    teacher_grad: bool = False,
) -> Tensor:
    """KL(student || mixture): as `reverse_kl`, but the teacher is helped by a share of the student.

    Formula: KL(q || (1 - alpha) p + alpha q); at most -log alpha.

    Args:
        alpha: the student's share, strictly between 0 and 1; DistiLLM takes 0.1.
        others: as in `skew_kl`.

    Raises:
        ValueError, TypeError: as in `skew_kl`.

    Source: as `skew_kl`; there called skew RKL.

    Example:
        >>> import torch
        >>> s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -torch.inf]])
        >>> kl = skew_reverse_kl(s, t, alpha=0.5, temperature=1.0, axis=-1, reduction="mean")
        >>> round(kl.item(), 4)  # (log(2/3) + log 2) / 2
        0.1438
    """
    _check_share(alpha, "reverse_kl (the limit at 0); at 1 it is 0 for any student")

    def plain(log_q: Tensor, log_p: Tensor, axis: int) -> Tensor:
        return expected_log_ratio(log_q, log_mixture(log_q, log_p, alpha), axis)

    pair = (student_logits, teacher_logits)
    return divergence_of(SkewReverseKL(alpha), plain, pair, temperature, axis, reduction, mask, teacher_grad)


def total_variation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature,
    axis: int,
    reduction: Reduction,
    mask: Tensor | None = None,
    teacher_grad: bool = False,
) -> Tensor:
    """The largest difference that student and teacher can have about the probability of any event.

    Formula: 1/2 sum_c |q_c - p_c|, 0 to 1; symmetric. Its slope by q is +-1/2, and 0 where both are equal.
    Arguments, result (no unit) and errors as in `skew_kl`, without alpha.

    Source: f-distill, Wen et al. 2023, arXiv 2307.15190, one of its four divergences, here per token.

    Example:
        >>> import torch
        >>> s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -torch.inf]])
        >>> total_variation(s, t, temperature=1.0, axis=-1, reduction="mean").item()
        0.5
    """

    def plain(log_q: Tensor, log_p: Tensor, axis: int) -> Tensor:
        return 0.5 * (log_q.exp() - log_p.exp()).abs().sum(axis)

    pair = (student_logits, teacher_logits)
    return divergence_of(TotalVariation(), plain, pair, temperature, axis, reduction, mask, teacher_grad)


def _check_share(alpha: float, instead: str) -> None:
    if not 0.0 < alpha < 1.0:
        raise ValueError(
            f"alpha: got {alpha}, expected 0 < alpha < 1; outside, the mixture is no distribution or the divergence "
            f"another one. Take {instead}"
        )
