"""Metric names, ``split/metric[subset]:derive(args)``: ``test/miou[edge2]``, ``val/recall@1:steps_to(0.55)``.

split    where it was measured: train, pool, dev, val, test, or what a stage made: corpus, space, cost, ...
metric   what was measured: miou, recall@1, selection_correlation
subset   optional, comma separated. A word is a sub-population of the samples (``edge2``), ``key=value``
         selects a model or a reference instead (``teacher=deep``, ``model=cnn``)
derive   optional: a number read off the metric's validation curve
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from kdzoo.errors import KdzooError, unknown

Better = Literal["higher", "lower"]

# derive -> the argument it takes, in words. Every derive reads the val curve, so the split must be val.
DERIVES = {"steps_to": "steps_to(target): the first step at which the val curve reaches the target"}
EXAMPLE = "test/accuracy, test/miou[edge2] or val/recall@1:steps_to(0.55)"

_GRAMMAR = re.compile(
    r"(?P<split>[a-z][a-z0-9_-]*)/(?P<name>[A-Za-z][A-Za-z0-9_.@+-]*)"
    r"(?:\[(?P<subset>[A-Za-z0-9_.=@+-]+(?:,[A-Za-z0-9_.=@+-]+)*)\])?"
    r"(?::(?P<derive>[a-z_]+)(?:\((?P<args>[^()]*)\))?)?"
)


def _malformed(text: str, why: str) -> KdzooError:
    return KdzooError(
        f"metric name {text!r}: {why}. Expected split/metric[subset]:derive, e.g. {EXAMPLE}. "
        "A name that cannot be read would look like a metric that was never measured. Correct it in the card."
    )


def _what_is_wrong(text: str) -> str:
    """The first thing that breaks the grammar, in words."""
    if text != "".join(text.split()):
        return "it holds white space"
    head = text.partition("[")[0].partition(":")[0]
    split, slash, metric = head.partition("/")
    if not slash:
        return "it names no split (there is no '/')"
    if not split or not metric:
        return "the split before '/' is empty" if not split else "the metric after '/' is empty"
    if "[]" in text:
        return "the subset in brackets is empty"
    if text.count("[") != text.count("]"):
        return "a bracket is not closed"
    if text.count("(") != text.count(")"):
        return "a parenthesis is not closed"
    if text.endswith(":"):
        return "nothing follows ':'"
    return "its parts are out of order or hold a character that is not allowed"


@dataclass(frozen=True, slots=True)
class MetricName:
    """A metric's name, taken apart. ``parse(str(name)) == name`` for every name that can be built.

    Raises:
        KdzooError: a part that would not survive being written and read again, or an unknown derive.
    """

    split: str
    name: str
    subset: str | None = None
    derive: str | None = None
    args: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        text = str(self)
        match = _GRAMMAR.fullmatch(text)
        if not match or (self.split, self.name, self.subset, self.derive) != match.group(
            "split", "name", "subset", "derive"
        ):
            raise _malformed(text, _what_is_wrong(text))
        if self.derive is None:
            if self.args:
                raise _malformed(text, f"arguments {self.args} without a derive")
            return
        if self.derive not in DERIVES:
            raise unknown(
                "derive",
                self.derive,
                DERIVES,
                f"In metric name {text!r}; known: {'; '.join(DERIVES.values())}.",
            )
        if self.split != "val":
            raise _malformed(text, f"{self.derive} reads the val curve, but the split is {self.split!r}")
        if len(self.args) != 1 or not math.isfinite(self.args[0]):
            raise _malformed(text, f"{self.derive} takes one finite number")

    def __str__(self) -> str:
        subset = "" if self.subset is None else f"[{self.subset}]"
        if self.derive is None:
            return f"{self.split}/{self.name}{subset}"
        # Shortest digits that read back as the same float; 400.0 is written 400.
        args = ",".join(repr(float(a)).removesuffix(".0") for a in self.args)
        return f"{self.split}/{self.name}{subset}:{self.derive}" + (f"({args})" if args else "")

    @property
    def base(self) -> MetricName:
        """The metric itself, without what is derived from it: the key of its values, counts and curves."""
        return self if self.derive is None else replace(self, derive=None, args=())

    @property
    def is_population(self) -> bool:
        """True if the subset narrows the samples (``edge2``), False if it only selects (``teacher=deep``)."""
        return self.subset is not None and any("=" not in part for part in self.subset.split(","))


def parse(text: str) -> MetricName:
    """Read a metric name.

    Raises:
        KdzooError: what was given, what is wrong with it, and examples of what is expected.
    """
    match = _GRAMMAR.fullmatch(text)
    if not match:
        raise _malformed(text, _what_is_wrong(text))
    args: tuple[float, ...] = ()
    if match["args"]:
        try:
            args = tuple(float(a) for a in match["args"].split(","))
        except ValueError:
            raise _malformed(text, f"{match['args']!r} is not a number") from None
    return MetricName(match["split"], match["name"], match["subset"], match["derive"], args)


def better_of(name: MetricName, better: Mapping[str, Better]) -> Better:
    """Which way the metric itself (``name.base``) is better.

    Args:
        better: metric -> "higher" or "lower", under ``test/miou[edge2]``, else ``test/miou``, else ``miou``.
            Where it lists subsets of ``test/miou``, a subset that it does not list is unknown: a misspelt one
            must not pass as the whole.

    Raises:
        KdzooError: no key fits; with the nearest ones.
    """
    full, plain = str(name.base), f"{name.split}/{name.name}"
    listed = name.subset is not None and any(key.startswith(f"{plain}[") for key in better)
    for key in (full,) if listed else (full, plain, name.name):
        if key in better:
            return better[key]
    known = [key if "/" in key else f"{name.split}/{key}" for key in better]
    raise unknown("metric", full, known, "Use a metric that the card of the task or method declares.")


def direction(name: MetricName, better: Mapping[str, Better]) -> Better:
    """Which way the named number is better: for ``steps_to`` fewer steps, else as `better_of`."""
    own = better_of(name, better)
    return own if name.derive is None else "lower"


class Reached(NamedTuple):
    """Result of `steps_to`. ``reached=False``: the true number is at least `value`, the budget."""

    value: float
    reached: bool


def steps_to(
    curve: Iterable[tuple[float, float | None]], target: float, better: Better, budget: float | None = None
) -> Reached | None:
    """The first step at which a validation curve is at least as good as `target`.

    Not interpolated: the answer is as coarse as the validation interval, equally for all arms. A target
    that is never reached counts as the whole budget and is flagged.

    Args:
        curve: (step, value) pairs in any order; None and NaN values count as not reached.
        better: "higher" reaches the target at value >= target, "lower" at value <= target.
        budget: optimiser steps the run was given; None takes the curve's last step.

    Returns:
        Steps and whether the target was reached; None if the curve holds no point.
    """
    if better not in ("higher", "lower"):
        raise ValueError(f"better: got {better!r}, expected 'higher' or 'lower'")
    points = sorted(curve, key=lambda point: point[0])
    for step, value in points:
        if value is not None and (value >= target if better == "higher" else value <= target):
            return Reached(float(step), True)
    return Reached(float(points[-1][0] if budget is None else budget), False) if points else None
