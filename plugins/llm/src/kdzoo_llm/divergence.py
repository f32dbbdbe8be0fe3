"""The divergences of next-token distributions by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdzoo.errors import unknown
from kdzoo.losses.bounded import skew_kl, skew_reverse_kl, total_variation
from kdzoo.losses.divergences import js_divergence, kl_divergence, reverse_kl

NAMES = ("forward", "reverse", "jsd", "skew", "skew-reverse", "tvd")


def token_divergence(
    name: str, student: Tensor, teacher: Tensor, *, temperature: float, mixture: float, mask: Tensor
) -> Tensor:
    """A divergence of two distributions of the next token.

    Args:
        name: "forward" KL(teacher || student), "reverse" KL(student || teacher), "jsd" the generalised Jensen-Shannon
            divergence (GKD, arXiv:2306.13649), "skew" and "skew-reverse" the KL to a mixture (DistiLLM,
            arXiv:2402.03898), "tvd" the total variation.
        student, teacher: (B, T, V) logits.
        temperature: of both.
        mixture: the teacher's share in the mixture of "jsd"; of "skew" and "skew-reverse" the share of the side that
            comes first in the KL.
        mask: (B, T) bool, where tokens count.

    Returns:
        (B, T) values in nats ("tvd": in [0, 1]), 0 where the mask is off.

    Raises:
        KdzooError: no such divergence.
    """
    options: dict[str, Any] = {"temperature": temperature, "axis": -1, "reduction": "none", "mask": mask}
    if name == "forward":
        return kl_divergence(student, teacher, **options)
    if name == "reverse":
        return reverse_kl(student, teacher, **options)
    if name == "jsd":
        return js_divergence(student, teacher, beta=mixture, **options)
    if name == "skew":
        return skew_kl(student, teacher, alpha=mixture, **options)
    if name == "skew-reverse":
        return skew_reverse_kl(student, teacher, alpha=mixture, **options)
    if name == "tvd":
        return total_variation(student, teacher, **options)
    raise unknown("divergence", name, NAMES, "Set divergence to one of them.")
