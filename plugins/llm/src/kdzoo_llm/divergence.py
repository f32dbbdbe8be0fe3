"""Token-level divergences by name, as settings choose them: what token-kd, gkd and others compare distributions with.

Settings: `divergence` (forward-kl, reverse-kl, jsd, skew-kl, skew-reverse-kl, total-variation), `temperature`, and
`share`, the teacher's share of the mixture (jsd: beta; skew: alpha). The mathematics is in `kdzoo.losses`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdzoo.errors import unknown
from kdzoo.losses.bounded import skew_kl, skew_reverse_kl, total_variation
from kdzoo.losses.divergences import js_divergence, kl_divergence, reverse_kl

DIVERGENCES = ("forward-kl", "reverse-kl", "jsd", "skew-kl", "skew-reverse-kl", "total-variation")


def token_divergence(
    cfg: Mapping[str, Any], student_logits: Tensor, teacher_logits: Tensor, mask: Tensor
) -> Tensor:
    """The divergence that the settings name, summed over tokens; nats (total variation: no unit).

    Args:
        cfg: settings, see the module.
        student_logits, teacher_logits: (B, A, V).
        mask: (B, A) bool, True where a token counts.
    """
    name, share = str(cfg["divergence"]), float(cfg.get("share", 0.5))
    temperature = float(cfg.get("temperature", 1.0))
    options: dict[str, Any] = {"temperature": temperature, "axis": 2, "mask": mask, "reduction": "sum"}
    pair = (student_logits, teacher_logits)
    if name == "forward-kl":
        return kl_divergence(*pair, **options)
    if name == "reverse-kl":
        return reverse_kl(*pair, **options)
    if name == "jsd":
        return js_divergence(*pair, beta=share, **options)
    if name == "skew-kl":
        return skew_kl(*pair, alpha=share, **options)
    if name == "skew-reverse-kl":
        return skew_reverse_kl(*pair, alpha=share, **options)
    if name == "total-variation":
        return total_variation(*pair, **options)
    raise unknown("divergence", name, DIVERGENCES, f"It is one of {', '.join(DIVERGENCES)}.")
