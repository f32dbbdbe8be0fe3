"""Axes: from a range of numbers to places on the page, with ticks that people read easily."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# (largest wanted step, the round step taken for it): the borders lie halfway, by ratio
_STEPS = ((1.5, 1.0), (3.2, 2.0), (7.1, 5.0), (math.inf, 10.0))


def finite(values: Iterable[float | None]) -> list[float]:
    """The numbers among the values: a chart has no place for None, NaN and infinity."""
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def tick_step(low: float, high: float, count: int) -> float:
    """The step of 1, 2 or 5 times a power of ten that puts about `count` ticks between low and high."""
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step for limit, step in _STEPS if raw / power <= limit) * power


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale between `low` and `high`, drawn from place `start` to place `end`; logarithmic with `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value. A value beyond the ends lies beyond the ends; on a log axis it must be above 0."""
        low, high = self._seen(self.low), self._seen(self.high)
        return self.start + (self._seen(value) - low) / (high - low) * (self.end - self.start)

    def _seen(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """(value, text) within the ends: 1, 2 and 5 times powers of ten on a log axis, else equal steps."""
        if self.log and len(values := self._log_ticks(count)) > 1:
            return [(value, compact(value)) for value in values]
        step = tick_step(self.low, self.high, count)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        values = [index * step for index in range(first, last + 1)]
        return [(value, plain(value, digits)) for value in values]

    def _log_ticks(self, count: int) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        decades = math.log10(self.high / self.low)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            if decades * len(factors) <= count + 1 or factors == (1,):
                break
        every = max(1, math.ceil(decades / count)) if factors == (1,) else 1
        inside = [factor * 10.0**power for power in powers if power % every == 0 for factor in factors]
        return [v for v in inside if self.low * (1 - 1e-9) <= v <= self.high * (1 + 1e-9)]


def axis(
    values: Iterable[float | None],
    start: float,
    end: float,
    *,
    log: bool = False,
    pad: float = 0.06,
    include: Sequence[float] = (),
) -> Axis:
    """An axis that holds all numbers among the values, with a margin of `pad` of its length at both ends.

    On a log axis numbers that are not above 0 are left out. No number, or one number only, still gives an axis.
    """
    kept = finite([*values, *include])
    if log:
        kept = [math.log10(value) for value in kept if value > 0]
    low, high = (min(kept), max(kept)) if kept else (0.0, 1.0)
    if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):
        margin = 0.3 if log else abs(low) * 0.1 or 0.5
        low, high, pad = low - margin, high + margin, 0.0
    low, high = low - pad * (high - low), high + pad * (high - low)
    return Axis(10.0**low, 10.0**high, start, end, True) if log else Axis(low, high, start, end)


def wants_log(values: Iterable[float | None], factor: float) -> bool:
    """Whether all numbers are above 0 and the largest is at least `factor` times the smallest."""
    kept = finite(values)
    return len(kept) > 1 and min(kept) > 0 and max(kept) / min(kept) >= factor


def plain(value: float, digits: int) -> str:
    """A number with so many digits after the point, a true minus sign, and no minus zero."""
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", "\u2212")


def compact(value: float) -> str:
    """A number in at most five signs: 6.6k, 1.2M, 0.003, 2e−7."""
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit * 0.9995:
            return (
                plain(float(f"{value / limit:.3g}"), 0 if size >= 100 * limit else 1).replace(".0", "") + unit
            )
    if size and size < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-").replace("-", "\u2212")
    return f"{value:.3g}".replace("-", "\u2212")


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels that lie at least `gap` apart within low..high, as near to the wanted ones as possible.

    Least squares under the order of the wanted places (pool adjacent violators). With more labels than there is
    room for, the gap shrinks.
    """
    if not wanted:
        return []
    count = len(wanted)
    gap = min(gap, (high - low) / max(1, count - 1))
    order = sorted(range(count), key=lambda i: wanted[i])
    pools: list[list[float]] = []  # [sum, number] of blocks whose labels touch
    for rank, index in enumerate(order):
        pools.append([wanted[index] - rank * gap, 1.0])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, number = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += number
    places, rank = [0.0] * count, 0
    for total, number in pools:
        shifted = min(max(total / number, low), high - (count - 1) * gap)
        for _ in range(int(number)):
            places[order[rank]] = shifted + rank * gap
            rank += 1
    return places
