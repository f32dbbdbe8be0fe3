"""The k largest logits of a teacher, and what becomes of the others.

Legend: (..., C) logits, class axis last; K kept classes, K < C; p = softmax(logits) at temperature 1.

What is kept determines the teacher's distribution on the K classes exactly, and the mass of the C - K others, at
temperature 1; how that mass is shared among them is lost. At another temperature T even the tail's mass is an
estimate, since sum exp(z / T) of numbers that are gone cannot be known: the three policies then are three teachers,
not one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kdzoo.signal_choice import Policy

DROPPED = -1e4
"""How far below the largest a dropped logit lies: its probability is 0 in float32 up to a temperature of 90, and
unlike -inf it can be subtracted from another one without giving NaN."""


class TopK(NamedTuple):
    """K logits of each item.

    Attributes:
        values: (..., K) the largest logits, in falling order.
        indices: (..., K) int32, their classes.
        tail: (...) float32 (float64 for float64 logits), logsumexp of the other C - K logits.
    """

    values: Tensor
    indices: Tensor
    tail: Tensor


def compress(logits: Tensor, k: int) -> TopK:
    """The K largest logits, their classes, and the log-sum-exp of the rest.

    Args:
        logits: (..., C) floating point, class axis last.
        k: K, 1 to C - 1.

    Returns:
        `TopK`. Summed in float32 at least, whatever the logits' precision.

    Raises:
        ValueError: k out of range.
    """
    classes = logits.shape[-1]
    if not 1 <= k < classes:
        raise ValueError(
            f"k: got {k}, expected 1 to {classes - 1}: of {classes} classes, at least one must be left to be the tail"
        )
    values, indices = logits.topk(k, dim=-1)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    tail = wide.scatter(-1, indices, -torch.inf).logsumexp(-1)
    return TopK(values, indices.int(), tail)


def dense(kept: TopK, classes: int, policy: Policy) -> Tensor:
    """Logits of all C classes again, by `policy`.

    "spread": every other class gets tail - log(C - K): at temperature 1 the K classes and the tail as a whole have
    the teacher's own probabilities. "drop": every other class gets the largest logit - 10,000: softmax gives it 0,
    and the K classes share the whole mass in proportion.

    Args:
        kept: what `compress` gave.
        classes: C.
        policy: "spread" or "drop"; for "tail-bucket" see `bucket`.

    Returns:
        (..., C) in the dtype of the values.
    """
    values, indices, tail = kept
    if policy == "spread":
        rest = (tail - math.log(classes - values.shape[-1])).unsqueeze(-1).to(values.dtype)
    elif policy == "drop":
        rest = values[..., :1] + DROPPED
    else:
        raise ValueError(f"policy: got {policy!r}, expected 'spread' or 'drop'; a bucket has K + 1 classes")
    whole = rest.expand(*values.shape[:-1], classes)
    return whole.scatter(-1, indices.long(), values)


def bucket(kept: TopK) -> Tensor:
    """(..., K + 1) logits: the K classes, and one that holds the mass of all others, exactly so at temperature 1."""
    return torch.cat((kept.values, kept.tail.unsqueeze(-1).to(kept.values.dtype)), dim=-1)


def from_bucket(logits: Tensor, classes: Tensor) -> TopK:
    """`bucket` undone: the answer of a recorded teacher under ``tail-bucket`` as `TopK` again.

    Args:
        logits: (..., K + 1), of which the last is the tail.
        classes: (..., K): ``run.signal(...).extra["classes"]``.
    """
    return TopK(logits[..., :-1], classes, logits[..., -1])


def bucketed(student_logits: Tensor, indices: Tensor) -> Tensor:
    """The student's logits in the teacher's K + 1 classes.

    KL(teacher || student) over these classes is the KL over all classes of a teacher whose tail has the student's own
    shape: the student is told how much mass the tail has, and is left free in how to share it. For large vocabularies
    `kdzoo.losses.top_k.top_k_kl` computes that KL with less memory.

    Args:
        student_logits: (..., C), with gradient.
        indices: (..., K) the classes that were kept: ``run.signal(...).extra["classes"]``.

    Returns:
        (..., K + 1): the K classes in the order of `indices`, then logsumexp of the others.

    Source: sum over the tail of p log(p / q) is P log(P / Q) where p is proportional to q.
    """
    at = indices.long()
    tail = student_logits.scatter(-1, at, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat((student_logits.gather(-1, at), tail), dim=-1)
