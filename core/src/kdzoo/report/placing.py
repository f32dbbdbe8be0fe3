"""Where the names of points go, so that they cover neither each other nor a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

HALF = 7.0  # px, half the height of a name
_DISTANCES = (11.0, 15.0, 20.0, 25.0)  # px from a point to its name; further off, nobody sees whose it is
_DIRECTIONS = (0, 180, 270, 90, 315, 45, 225, 135, 340, 20, 200, 160)
"""Degrees from the right, clockwise as page coordinates run downwards; the best reading place first."""


class Box(NamedTuple):
    """A rectangle on the page."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def within(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


def place(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float | None],
    taken: Sequence[Box],
    bounds: Box,
) -> list[tuple[float, float] | None]:
    """(left end, middle) of each name, close to its point; None where there is no room.

    Args:
        points: middles of the marks.
        widths: of the names; None for a point whose name is not wanted.
        taken: what no name may cover: the marks themselves.
        bounds: what every name must lie in.
    """
    covered = list(taken)
    found: list[tuple[float, float] | None] = []
    for (x, y), width in zip(points, widths, strict=True):
        spot = None if width is None else _free(x, y, width, covered, bounds)
        if spot is not None and width is not None:
            covered.append(_box(*spot, width))
        found.append(spot)
    return found


def _box(x: float, y: float, width: float) -> Box:
    return Box(x, y - HALF, x + width, y + HALF)


def _free(
    x: float, y: float, width: float, covered: Sequence[Box], bounds: Box
) -> tuple[float, float] | None:
    """The first free place around a point, nearest first."""
    for distance in _DISTANCES:
        for degrees in _DIRECTIONS:
            right, down = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            at_x, at_y = x + distance * right, y + distance * down
            # The end of the name that is nearest to the point: left, right, or its middle above and below.
            left = at_x if right > 0.3 else at_x - width if right < -0.3 else at_x - width / 2
            box = _box(left, at_y, width)
            if box.within(bounds) and not any(box.meets(other) for other in covered):
                return left, at_y
    return None
