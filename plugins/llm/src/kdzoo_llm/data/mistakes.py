"""What a scripted teacher gets wrong in one of its chains of thought."""

from __future__ import annotations

from typing import NamedTuple


class Mistake(NamedTuple):
    """One wrong intermediate value.

    Attributes:
        place: in [0, 1): which step of the chain is wrong.
        choice: in [0, 1): which wrong value is written.
        carried: whether the next steps go on from it. If not, the chain is wrong and its answer right, unless the
            wrong step is the last one.
    """

    place: float
    choice: float
    carried: bool
