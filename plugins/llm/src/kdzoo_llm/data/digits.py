"""Whole numbers as words, one digit a word: a closed vocabulary that can write any of them."""

from __future__ import annotations

from typing import Literal

Order = Literal["most", "least"]
"""Which digit is written first: the most or the least significant one."""

DIGITS = tuple("0123456789")


def spell(number: int, order: Order = "most", width: int = 1) -> str:
    """A number >= 0 as words; zeros fill it up to `width` digits.

    Example:
        >>> spell(305), spell(305, "least"), spell(7, width=2)
        ('3 0 5', '5 0 3', '0 7')
    """
    written = str(number).zfill(width)
    return " ".join(written if order == "most" else reversed(written))


def read(text: str, order: Order = "most") -> int:
    """The number that such words spell; zeros in front do not matter.

    Raises:
        ValueError: a word that is no digit, or none at all.
    """
    written = text.split()
    if not written or not set(written) <= set(DIGITS):
        raise ValueError(f"{text!r} is no number, expected digits with spaces between them")
    return int("".join(written if order == "most" else reversed(written)))
