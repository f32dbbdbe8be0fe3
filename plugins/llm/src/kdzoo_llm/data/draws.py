"""Chance for rows that are computed: a row's numbers depend on its own name only, not on the rows before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from kdzoo.rng import extend, mix

T = TypeVar("T")


class Draws:
    """A stream of numbers that belongs to one row: ``Draws("operators", "test", 17)``.

    Equal in every process and library version.
    """

    def __init__(self, *name: int | str) -> None:
        self._seed, self._count = mix(*name), 0

    def below(self, bound: int) -> int:
        """One of 0 ... bound - 1."""
        self._count += 1
        return extend(self._seed, self._count) % bound  # bounds are small: the modulo's bias is below 1e-15

    def between(self, low: int, high: int) -> int:
        """One of low ... high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.below(1 << 32) < probability * (1 << 32)

    def one(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def some(self, choices: Sequence[T], number: int) -> list[T]:
        """That many different ones, in the order in which they were drawn."""
        left = list(choices)
        return [left.pop(self.below(len(left))) for _ in range(number)]
