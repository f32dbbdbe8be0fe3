"""Whole numbers for programs that write examples: a function of a seed and of how many were drawn before."""

from __future__ import annotations

from collections.abc import Callable

from kdzoo.rng import extend

Draw = Callable[[int, int], int]
"""(low, high) -> a whole number between them, both included."""


def draws(seed: int) -> Draw:
    """Whole numbers, each a function of the seed and of how many came before it."""
    count = 0

    def draw(low: int, high: int) -> int:
        nonlocal count
        count += 1
        return low + extend(seed, count) % (high - low + 1)

    return draw
