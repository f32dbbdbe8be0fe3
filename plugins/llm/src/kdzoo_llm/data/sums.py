"""Arithmetic word problems of a few steps, with numbers written digit by digit.

Every number in a problem and in its chain of thought is below 100. Values are written with two digits, what changes
them with as many as the largest change has, so that each number has its place.
"""

from __future__ import annotations

from typing import NamedTuple

from kdzoo.errors import KdzooError
from kdzoo_llm.data.digits import DIGITS, read, spell
from kdzoo_llm.data.draws import Draws
from kdzoo_llm.data.mistakes import Mistake

PEOPLE = ("tom", "ann", "sam", "eva")
THINGS = ("apples", "cards", "coins", "eggs", "nuts", "pens", "shells", "stamps")
HOLDERS = ("bags", "boxes", "jars")
MORE, LESS = ("buys", "finds", "gets"), ("drops", "loses", "sells")
LOWEST, HIGHEST = 1, 98  # of gold values: one more or one less then stays writable with two digits
SLIPS = (1, -1, 2, -2, 10, -10)  # a slip in the ones, or a carry forgotten


class Ranges(NamedTuple):
    """How hard the problems are; both ends of a range are included.

    Attributes:
        steps: operations of a problem.
        start: what somebody has at first.
        change: what is added or taken away.
        holders: bags, boxes or jars, where the first step is a product ...
        filling: ... and how many things are in each.
        products: share of the problems whose first step is a product.
    """

    steps: tuple[int, int] = (2, 3)
    start: tuple[int, int] = (2, 40)
    change: tuple[int, int] = (1, 9)
    holders: tuple[int, int] = (2, 4)
    filling: tuple[int, int] = (2, 9)
    products: float = 1.0


class Step(NamedTuple):
    operation: str  # "plus", "minus" or "times"
    written: str  # the number, as the problem spells it

    @property
    def number(self) -> int:
        return read(self.written)


def draw(draws: Draws, ranges: Ranges) -> str:
    """A problem whose values stay in LOWEST ... HIGHEST.

    Raises:
        KdzooError: the ranges lead outside.
    """
    person, thing = draws.one(PEOPLE), draws.one(THINGS)
    number = draws.between(*ranges.steps)
    if product := draws.chance(ranges.products):
        many, each = draws.between(*ranges.holders), draws.between(*ranges.filling)
        value, start = many * each, f"{spell(many)} {draws.one(HOLDERS)} of {spell(each)}"
    else:
        value = draws.between(*ranges.start)
        start = spell(value, width=2)
    changes, width = [], len(str(ranges.change[1]))
    for _ in range(number - product):
        change = draws.between(*ranges.change)
        fits = [sign for sign in (1, -1) if LOWEST <= value + sign * change <= HIGHEST]
        if not fits or not LOWEST <= value <= HIGHEST:
            raise KdzooError(
                f"{ranges} lead to {value} plus or minus {change}, expected values in {LOWEST} ... {HIGHEST}: others "
                "could not be written with two digits, or a slip could not. Narrow the ranges."
            )
        sign = draws.one(fits)
        value += sign * change
        verb = draws.one(MORE if sign > 0 else LESS)
        changes.append(f"{person} {verb} {spell(change, width=width)} .")
    return f"{person} has {start} {thing} . {' '.join(changes)} how many {thing} does {person} have ?"


def chain(problem: str, mistake: Mistake | None = None) -> tuple[str, str]:
    """One line for each operation, and the last value.

    Returns:
        (chain of thought, answer); with a mistake, both as they follow from it.

    Raises:
        ValueError: the text is not of this kind.
    """
    first, steps = _read(problem)
    wrong_at = int(mistake.place * len(steps)) if mistake else None
    value, spelled = read(first), first
    lines = []
    for number, step in enumerate(steps):
        seen = after = _apply(value, step)
        if mistake and number == wrong_at:
            carried = mistake.carried or number == len(steps) - 1
            slips = _slips(seen, steps[number + 1 :] if carried else [])
            seen += slips[int(mistake.choice * len(slips))]
            after = seen if carried else after
        lines.append(f"{spelled} {step.operation} {step.written} is {spell(seen, width=2)}")
        value, spelled = after, spell(after, width=2)
    return " ; ".join(lines), spelled


def words() -> list[str]:
    """All words that problems and chains can have, sorted."""
    fixed = {"has", "of", "how", "many", "does", "have", "plus", "minus", "times", "is", ".", "?", ";"}
    return sorted({*DIGITS, *PEOPLE, *THINGS, *HOLDERS, *MORE, *LESS, *fixed})


def _read(problem: str) -> tuple[str, list[Step]]:
    """What there is at first, as the problem spells it, and the operations."""
    try:
        start, *changes, _ = problem.split(" . ")
        held = start.split()[2:-1]
        steps = []
        if "of" in held:
            at = held.index("of")
            steps.append(Step("times", " ".join(held[at + 1 :])))
            held = held[: at - 1]
        for change in changes:
            verb, *number = change.split()[1:]
            operation = "plus" if (MORE + LESS).index(verb) < len(MORE) else "minus"
            steps.append(Step(operation, " ".join(number)))
        return " ".join(held), steps
    except ValueError as error:
        raise ValueError(f"{problem!r} is no arithmetic problem") from error


def _apply(value: int, step: Step) -> int:
    if step.operation == "times":
        return value * step.number
    return value + step.number if step.operation == "plus" else value - step.number


def _slips(value: int, later: list[Step]) -> list[int]:
    """By how much a value may be wrong, so that it and all that follows can still be written with two digits."""
    values = [value]
    for step in later:
        values.append(_apply(values[-1], step))
    return [slip for slip in SLIPS if min(values) + slip >= 0 and max(values) + slip < 100]
