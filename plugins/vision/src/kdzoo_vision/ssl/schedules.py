"""What changes over a run: learning rates, weight decays, the momentum of the averages, the teachers' temperature."""

from __future__ import annotations

import math


def cosine(first: float, last: float, step: int, steps: int, warmup: int = 0, start: float = 0.0) -> float:
    """The value at a step: linear from `start` to `first` over `warmup` steps, then half a cosine towards `last`.

    The value at the last step is one step short of `last`, and the last step of the warm-up reaches `first`.

    Args:
        first, last: of the cosine.
        step: 0 to steps - 1.
        steps: of the whole run.
        warmup: steps of the linear part.
        start: value at step 0 of the linear part.

    Source: skyoux/mokd@f7b1386 utils/utils.py cosine_scheduler.

    Example:
        >>> [round(cosine(1.0, 0.0, step, 4), 3) for step in range(4)]
        [1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return first if warmup == 1 else start + (first - start) * step / (warmup - 1)
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def linear(first: float, last: float, step: int, warmup: float) -> float:
    """The value at a step: linear from `first` to `last` over `warmup` steps, then constant.

    Source: skyoux/mokd@f7b1386 models/mokd.py DINOLoss, which changes it once an epoch.

    Example:
        >>> [round(linear(0.04, 0.07, step, 2), 3) for step in range(4)]
        [0.04, 0.055, 0.07, 0.07]
    """
    return last if step >= warmup else first + (last - first) * step / warmup
