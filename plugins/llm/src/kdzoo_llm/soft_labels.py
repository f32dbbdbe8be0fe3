"""Soft labels of a white-box teacher along an answer: how far both sides' logits are apart, position by position.

Shapes: B rows, T positions of an answer, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdzoo.errors import unknown
from kdzoo.losses.divergences import kl_divergence, soft_cross_entropy
from kdzoo.losses.masks import check_mask
from kdzoo_llm.sequences import IGNORE

KINDS = ("kl", "mse", "ce")


def soft_label_values(
    student: Tensor, teacher: Tensor, *, kind: str, temperature: float, mask: Tensor
) -> Tensor:
    """What soft labels cost at each position.

    "kl" ``KL(softmax(t / T) || softmax(s / T))``; "mse" ``mean over v of (s_v - t_v)^2``; "ce" the cross-entropy
    ``-sum over v of softmax(t)_v log softmax(s)_v``, which is not 0 at equality. None has a factor T^2.

    Args:
        student, teacher: (B, T, V) logits; the teacher is detached.
        kind: one of `KINDS`.
        temperature: T > 0 of both softmaxes, of "kl" alone.
        mask: (B, T) bool, positions that count.

    Returns:
        (B, T), 0 where the mask is off; nats, or squared units of a logit.

    Raises:
        KdzooError: no such kind.
        ValueError: shapes differ, temperature <= 0.

    Source: 2hojae/mentor-kd@ec9ea11 src/kd_tools.py:VanillaKDLoss and scripts/kd/mentor_kd.py, whose means over rows are
    taken by the caller.
    """
    options = {"axis": -1, "reduction": "none", "mask": mask}
    if kind == "kl":
        return kl_divergence(student, teacher, temperature=temperature, **options)
    if kind == "ce":
        return soft_cross_entropy(student, teacher, temperature=1.0, **options)
    if kind != "mse":
        raise unknown("kind of soft labels", kind, KINDS, "Set soft_loss to one of them.")
    if student.shape != teacher.shape:
        raise ValueError(
            f"logits: got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}, expected equal shapes; "
            "broadcasting would compare a position with another one"
        )
    check_mask(mask, student.shape[:-1])
    wide = torch.promote_types(student.dtype, torch.float32)
    apart = (student.to(wide) - teacher.detach().to(wide)).masked_fill(~mask[..., None], 0.0)
    return apart.square().mean(-1)


def counted(labels: Tensor, kind: str) -> Tensor:
    """(B, T) bool: which positions of the answer soft labels are for.

    Args:
        labels: (B, T), `kdzoo_llm.sequences.IGNORE` where nothing is to be said.
        kind: "answer": those with a label; "official": ``labels != 0`` as in 2hojae/mentor-kd@ec9ea11
            scripts/kd/mentor_kd.py, which is all of them, padding too, as long as no label is the token 0.
    """
    return labels != (0 if kind == "official" else IGNORE)
