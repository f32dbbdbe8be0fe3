"""Paired statistics: intervals over training seeds and over test items.

Two questions, two intervals: Student's t over seeds says how a result would move with other training seeds,
the bootstrap over items how it would move with another test set. Neither covers the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike


# Seed (int, or the one None of an arm without seeds) -> something. The key is Any because Mapping is
# invariant in it: a dict[int, float] would not pass for a Mapping[int | None, float].
BySeed: TypeAlias = Mapping[Any, Any]


class Comparison(msgspec.Struct, frozen=True):
    """Mean of `n` numbers with its 95 % interval; the ends are None under two numbers, the mean under one."""

    n: int
    mean: float | None
    low: float | None
    high: float | None


def sd(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample (divided by n - 1); None under two values."""
    if len(values) < 2:
        return None
    if min(values) == max(values):
        return 0.0  # exactly: the mean of equal numbers may be rounded off them
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def mean_interval(values: Sequence[float], level: float = 0.95) -> Comparison:
    """Student's t interval: mean +- t(n - 1, (1 + level) / 2) * sd / sqrt(n).

    Equal values give an interval of width 0.

    Args:
        values: one finite number per seed.
        level: two-sided confidence, in (0, 1).

    Raises:
        ValueError: a value or the level is out of range.
    """
    if not 0 < level < 1 or not all(math.isfinite(v) for v in values):
        raise ValueError(f"got level {level}, values {list(values)}; expected level in (0, 1), finite values")
    n, spread = len(values), sd(values)
    if spread is None:
        return Comparison(n, float(values[0]) if n else None, None, None)
    from scipy.special import stdtrit  # the t quantile alone: scipy.stats takes three times as long to import

    mean = float(values[0]) if spread == 0 else math.fsum(values) / n
    half = float(stdtrit(n - 1, (1 + level) / 2)) * spread / math.sqrt(n)
    return Comparison(n, mean, mean - half, mean + half)


def paired(a: BySeed, b: BySeed) -> Comparison:
    """Mean of a - b over the seeds that both have, with its t interval.

    Args:
        a, b: seed -> value or None. ``{None: value}`` is an arm without seeds, e.g. a shared teacher: its
            value meets every seed of the other arm, and the interval is conditional on that one model. None
            and non-finite values are left out together with their partner.
    """
    pairs = [(at(a, seed), at(b, seed)) for seed in common_seeds([a, b])]
    kept = [x - y for x, y in pairs if x is not None and y is not None and math.isfinite(x - y)]
    return mean_interval(kept)


def common_seeds(arms: Iterable[BySeed]) -> list[int | None]:
    """Seeds that all seeded arms have, in order; ``[None]`` if no arm has seeds."""
    common: set[int] | None = None
    for runs in arms:
        if None in runs:
            if len(runs) > 1:
                raise ValueError(f"got seeds {list(runs)}; an arm without seeds has the one key None")
            continue
        seeds = {seed for seed in runs if seed is not None}
        common = seeds if common is None else common & seeds
    return [None] if common is None else [*sorted(common)]


def at(per_seed: BySeed, seed: int | None) -> Any:
    """An arm's entry for a seed: the only one of an arm without seeds; None if there is none."""
    return per_seed[None] if None in per_seed else per_seed.get(seed)


def bootstrap(
    items_a: ArrayLike,
    items_b: ArrayLike,
    rng: np.random.Generator,
    resamples: int = 10_000,
    level: float = 0.95,
    chunk: int = 1 << 20,
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(a) - mean(b) over test items.

    For metrics that are means of item values (accuracy, Recall@1), not for ratios of sums (mIoU).
    The seeds of an arm share one test set, so their errors on an item are not independent: items are averaged
    over seeds first, then drawn with replacement, those of a and b together.

    Args:
        items_a, items_b: (N,) or (S, N) values of the same N items in the same order; S may differ.
        rng: the only source of randomness.
        resamples: how many test sets are drawn.
        level: two-sided confidence, in (0, 1).
        chunk: most drawn items held at once (8 bytes each, twice); the result does not depend on it.

    Raises:
        ValueError: no items, unequal N, a non-finite value, a setting out of range.
    """
    import numpy as np

    a, b = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (items_a, items_b))
    n = a.shape[-1]
    if a.ndim != 2 or b.ndim != 2 or b.shape[1] != n or not a.size or not b.size:
        raise ValueError(
            f"got items {a.shape} and {b.shape}; expected (seeds, items), equally many items, not 0"
        )
    if not 0 < level < 1 or resamples < 1 or chunk < 1:
        raise ValueError(
            f"got level {level}, resamples {resamples}, chunk {chunk}; expected (0, 1), >= 1, >= 1"
        )
    difference = a.mean(axis=0) - b.mean(axis=0)
    if not np.isfinite(difference).all():
        raise ValueError("got NaN or infinity among the items; expected them left out of both arms")
    means = np.empty(resamples)
    values, counts = np.unique(difference, return_counts=True)
    if many := len(values) * 20 > n:
        values, counts = difference, np.ones(n, dtype=np.int64)
    rows = max(1, chunk // len(values))
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        if many:
            means[start:stop] = values.take(rng.integers(0, n, size=(stop - start, n))).mean(axis=1)
        else:
            # Right-or-wrong items differ by few values: how often each is drawn is multinomial, which is the
            # same distribution at 1/40 of the time (5,000 items, 11 values).
            means[start:stop] = rng.multinomial(n, counts / n, size=stop - start) @ values / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
