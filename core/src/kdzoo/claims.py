"""What the runs answer to the claims of a card: verdicts from paired statistics.

A claim row becomes ONE number per seed, positive in the claimed direction, and a 95 % t interval over seeds:

    gain   of a over b: a - b, or b - a where lower is better
    order  gain of each arm over the next one
    level  a - above, or below - a
    same   a - b, as it is
    gap    gain of a over b on the first metric minus that on the second
    trend  least-squares slope, per grid step, of the gain of a over b, or of a alone as it is; times -1 where
           the sense is falling

    reproduced            the whole interval lies above `by` (same: within +-by)
    not reproduced        the whole interval lies below `by` (same: outside +-by)
    no difference shown   neither; so is a tie with `by` (same: a tie is within)
    not run               an arm has no finished run
    not testable          `why` says it: too few seeds or samples, a metric that was not measured, ...

All rows of one claim number, and all pairs of a chain, must hold. "Reproduced" then needs no correction for
several tests: the chance of affirming a false conjunction is at most that of its weakest part, 2.5 %. "Not
reproduced" needs one part only, so with k parts its chance of error is up to k x 2.5 %.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import msgspec

from kdzoo.claim_rows import MIN_ITEMS, Claim, Kind, grid, metric_names, validate
from kdzoo.intervals import BySeed, Comparison, at, bootstrap, common_seeds, mean_interval, paired, sd
from kdzoo.metric_names import Better, MetricName, better_of, direction, steps_to

__all__ = [
    "MIN_ITEMS",
    "MIN_SEEDS_COMMITTED",
    "MIN_SEEDS_TESTABLE",
    "PRECEDENCE",
    "Answer",
    "Claim",
    "Comparison",
    "Finding",
    "Kind",
    "Results",
    "Verdict",
    "answer",
    "bootstrap",
    "combined",
    "mean_interval",
    "paired",
    "sd",
    "validate",
    "verdicts",
]

Verdict = Literal["reproduced", "not reproduced", "no difference shown", "not run", "not testable"]

MIN_SEEDS_TESTABLE = 3  # at three the interval already reaches 2.5 sd each way; at two 9 sd
MIN_SEEDS_COMMITTED = 5  # what a record kept in the repository needs

# The verdict on parts that must all hold is the first of these that a part has. A refuted part refutes the
# whole whatever the others say. A missing run or an untestable part leaves the whole open; "no difference
# shown" is said only where everything was tested.
PRECEDENCE: tuple[Verdict, ...] = (
    "not reproduced",
    "not run",
    "not testable",
    "no difference shown",
    "reproduced",
)

# 0.7 - 0.6 is not 0.1 in floats: what lies within this share of the readings' size counts as a tie with `by`.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Results:
    """What the runs of a bench measured: arm -> seed -> metric name (without derive) -> ...

    The one seed of an arm without seeds (a shared teacher) is None; its values pair with every seed of the
    others. Copies of one artefact must not be entered under several seeds: they would pass for several runs.

    Attributes:
        values: the value, None where undefined (an empty subset). Failed runs are absent.
        counts: number of samples behind the value; needed for sub-populations.
        curves: [(step, value)] on the validation split; needed for derives.
        budgets: arm -> seed -> optimiser steps given; without it, the last step of the curve.
    """

    values: Mapping[str, BySeed]
    counts: Mapping[str, BySeed] = field(default_factory=dict)
    curves: Mapping[str, BySeed] = field(default_factory=dict)
    budgets: Mapping[str, BySeed] = field(default_factory=dict)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one comparison. `estimate`, `low`, `high` are positive in the claimed direction."""

    label: str
    verdict: Verdict
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    why: str | None = None


class Answer(Finding, frozen=True, kw_only=True):
    """The answer to one row.

    `parts` keeps every pair of a chain. The row shows the numbers of the pair with the smallest estimate
    among those that have the row's verdict, so that the interval shown and the verdict never disagree.
    """

    claim: int
    kind: Kind | None
    text: str | None
    parts: tuple[Finding, ...]


def answer(
    claim: Claim,
    results: Results,
    better: Mapping[str, Better],
    arms: Collection[str],
    min_seeds: int = MIN_SEEDS_TESTABLE,
) -> Answer:
    """Answer one row that passed `validate`.

    Args:
        better: metric -> "higher" or "lower", as for `validate`.
        arms: all declared arms, run or not: a trend over half of its grid would be another claim.
        min_seeds: `MIN_SEEDS_COMMITTED` for a record that is kept.
    """
    if claim.kind is None or claim.why:
        parts = [Finding(label=f"claim {claim.claim}", verdict="not testable", why=claim.why)]
    else:
        sums = _sums(claim, better, arms)
        parts = [_find(claim, one, results, better, max(min_seeds, 2)) for one in sums]
    verdict = combined(part.verdict for part in parts)
    deciding = [part for part in parts if part.verdict == verdict]
    shown = min(deciding, key=lambda part: math.inf if part.estimate is None else part.estimate)
    numbers = msgspec.structs.asdict(shown)
    return Answer(claim=claim.claim, kind=claim.kind, text=claim.text, parts=tuple(parts), **numbers)


def combined(parts: Iterable[Verdict]) -> Verdict:
    """The verdict on one or more parts that must all hold: the first of `PRECEDENCE` that occurs."""
    return min(parts, key=PRECEDENCE.index)


def verdicts(answers: Iterable[Answer]) -> dict[int, Verdict]:
    """Claim number -> verdict on all of its rows together, in order of number."""
    rows: dict[int, list[Verdict]] = {}
    for one in answers:
        rows.setdefault(one.claim, []).append(one.verdict)
    return {number: combined(rows[number]) for number in sorted(rows)}


class _Term(NamedTuple):
    weight: float
    arm: str
    metric: MetricName


class _Sum(NamedTuple):
    """All five kinds are linear: the number of a seed is constant + sum of weight * reading."""

    label: str
    terms: list[_Term]
    constant: float = 0.0


def _sums(claim: Claim, better: Mapping[str, Better], arms: Collection[str]) -> list[_Sum]:
    """What a row computes: one sum, or one per pair of a chain."""
    metrics, who = metric_names(claim), claim.arms
    metric = metrics[0]

    def gain(metric: MetricName, a: str, b: str, weight: float = 1.0) -> list[_Term]:
        weight = weight if direction(metric, better) == "higher" else -weight
        return [_Term(weight, a, metric), _Term(-weight, b, metric)]

    if claim.kind == "order":
        return [_Sum(f"{a} > {b}", gain(metric, a, b)) for a, b in pairwise(who)]
    if claim.kind == "same":
        return [_Sum(f"{who[0]} = {who[1]}", [_Term(1.0, who[0], metric), _Term(-1.0, who[1], metric)])]
    if claim.kind == "gap":
        a, b = who
        label = f"{a} > {b}: more on {metrics[0]} than on {metrics[1]}"
        return [_Sum(label, gain(metrics[0], a, b) + gain(metrics[1], a, b, -1.0))]
    if claim.kind == "level":
        sign, bound = (1.0, claim.above) if claim.above is not None else (-1.0, claim.below)
        bound = bound or 0.0
        label = f"{who[0]} {'>' if sign > 0 else '<'} {bound:g}"
        return [_Sum(label, [_Term(sign, who[0], metric)], -sign * bound)]
    levels = list(zip(*([name for _, name in grid(claim, arm, arms)] for arm in who), strict=True))
    middle = (len(levels) - 1) / 2
    spread = math.fsum((step - middle) ** 2 for step in range(len(levels)))
    terms: list[_Term] = []
    for step, pair in enumerate(levels):
        weight = (step - middle) / spread * (1.0 if claim.sense == "rising" else -1.0)
        if len(pair) == 1:
            terms.append(_Term(weight, pair[0], metric))
        else:
            terms += gain(metric, pair[0], pair[1], weight)
    return [_Sum(f"{' - '.join(who)} {claim.sense} along {claim.along}", terms)]


def _find(claim: Claim, one: _Sum, results: Results, better: Mapping[str, Better], min_seeds: int) -> Finding:
    """One comparison: look the readings up, make one number per seed, judge the interval."""
    absent = sorted({term.arm for term in one.terms if not results.values.get(term.arm)})
    if absent:
        return Finding(label=one.label, verdict="not run", why=f"no finished run of {', '.join(absent)}")
    seeds = common_seeds(results.values[term.arm] for term in one.terms)
    every = {seed for term in one.terms for seed in results.values[term.arm]} - {None}
    numbers: list[float] = []
    scale, short, readings = 0.0, 0, 0
    more = less = False  # a target that was not reached: the seed's true number may be larger, smaller
    for seed in seeds:
        read = [(term.weight, *_read(term, seed, results, better)) for term in one.terms]
        products = [weight * value for weight, value, _ in read if value is not None]
        if len(products) < len(read):
            continue
        numbers.append(one.constant + math.fsum(products))
        scale = max(scale, abs(one.constant) + math.fsum(map(abs, products)))
        readings += len(read)
        short += sum(censored for _, _, censored in read)
        more |= any(censored and weight > 0 for weight, _, censored in read)
        less |= any(censored and weight < 0 for weight, _, censored in read)
    interval = mean_interval(numbers)
    notes = (
        [f"target not reached in {short} of {readings} readings, which count as the budget"] if short else []
    )
    lack = _lack(claim, one.terms, seeds, results)
    if len(numbers) < len(every) and not lack:
        notes.append(f"{len(every) - len(numbers)} of {len(every)} seeds left out for a missing run or value")
    if not lack and interval.n < min_seeds:
        lack = f"paired seeds: {interval.n}, needed: {min_seeds}"
    if not lack and short == readings:
        lack = "no run reached the target"
    verdict: Verdict = "not testable" if lack else _judge(claim, interval, _ROUNDING * scale, more, less)
    if not lack and verdict == "not testable":
        lack = (
            "runs that stopped short of the target could turn the verdict: train longer or lower the target"
        )
    return Finding(
        label=one.label,
        verdict=verdict,
        estimate=interval.mean,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        why="; ".join([lack, *notes] if lack else notes) or None,
    )


def _judge(claim: Claim, interval: Comparison, slack: float, more: bool, less: bool) -> Verdict:
    """Where the interval lies. `more`, `less`: some seed's true number may be larger, smaller than counted.

    A verdict that such a number could overturn is not given ("not testable"): a run that did not reach its
    target in the budget shows that it is slower than that, not by how much.
    """
    low, high, by = interval.low, interval.high, claim.by
    if low is None or high is None:
        raise ValueError(f"got {interval}; expected an interval over two seeds or more")
    if claim.kind == "same":
        if low >= -by - slack and high <= by + slack:
            return "not testable" if more or less else "reproduced"
        if low > by + slack:
            return "not testable" if less else "not reproduced"
        if high < -by - slack:
            return "not testable" if more else "not reproduced"
    elif low > by + slack:
        return "not testable" if less else "reproduced"
    elif high < by - slack:
        return "not testable" if more else "not reproduced"
    return "no difference shown"


def _read(
    term: _Term, seed: int | None, results: Results, better: Mapping[str, Better]
) -> tuple[float | None, bool]:
    """(value, censored): censored if a target was not reached, so that the true number of steps is larger."""
    name = str(term.metric.base)
    if term.metric.derive is None:
        value = at(results.values[term.arm], seed).get(name)
        return (float(value) if value is not None and math.isfinite(value) else None), False
    curve = (at(results.curves.get(term.arm, {}), seed) or {}).get(name) or ()
    budget = at(results.budgets.get(term.arm, {}), seed)
    reached = steps_to(curve, term.metric.args[0], better_of(term.metric, better), budget)
    return (None, False) if reached is None else (reached.value, not reached.reached)


def _lack(claim: Claim, terms: Sequence[_Term], seeds: Sequence[int | None], results: Results) -> str | None:
    """Why the readings cannot carry a claim: a metric that was not measured, a sub-population too small."""
    for term in terms:
        name = str(term.metric.base)
        source = results.values if term.metric.derive is None else results.curves
        if not any(name in (at(source.get(term.arm, {}), seed) or {}) for seed in seeds):
            what = "metric" if term.metric.derive is None else "the curve of"
            return f"{what} {name} is missing in the runs of {term.arm}" if seeds else "no seed in common"
        if term.metric.is_population:
            counts = [(at(results.counts.get(term.arm, {}), seed) or {}).get(name) for seed in seeds]
            known = [count for count in counts if count is not None]
            if len(known) < len(counts):
                return f"the number of samples of {name} is not recorded for {term.arm}"
            if min(known) < claim.min_items:
                return f"{name} holds {min(known)} samples, needed: {claim.min_items}"
    return None
