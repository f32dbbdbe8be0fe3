"""Comparing several methods at once: ranks within blocks, Friedman's test, Nemenyi's critical difference, Holm.

A block is what all methods were run under alike: one seed on one task. Within a block the methods are ranked, 1 for the
best; over the blocks the ranks are averaged. Source of the procedure: Demšar, Statistical Comparisons of Classifiers
over Multiple Data Sets, JMLR 7 (2006), section 3.2; there a block is a data set.

Shapes in words: k methods, N blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kdzoo.intervals import sd
from kdzoo.metric_names import Better


class Test(NamedTuple):
    """A statistic, its degrees of freedom, and the probability of one as large if all methods were alike."""

    statistic: float
    df: int
    p: float


def ranks(values: Sequence[float], better: Better) -> list[float]:
    """Ranks of the values of one block, 1 for the best; equal values share the mean of their ranks.

    Example:
        >>> ranks([0.9, 0.7, 0.9], "higher")
        [1.5, 3.0, 1.5]
    """
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"got {list(values)}, expected finite numbers: the others have no place in an order")
    best_first = [-value if better == "higher" else value for value in values]
    return [
        sum(other < mine for other in best_first) + (sum(other == mine for other in best_first) + 1) / 2
        for mine in best_first
    ]


def friedman(table: Sequence[Sequence[float]]) -> Test:
    """Friedman's test that all methods have equal mean ranks, with the correction for ties.

        chi^2 = (k - 1) * sum_j (R_j - N (k + 1) / 2)^2 / (sum_ij r_ij^2 - N k (k + 1)^2 / 4),   R_j = sum_i r_ij

    Its p is that of the chi^2 distribution with k - 1 degrees of freedom, an approximation that is cautious for few
    blocks. Where all methods are tied in all blocks the statistic is 0 and p is 1.

    Args:
        table: N rows of k ranks, ties averaged.

    Source: Conover, Practical Nonparametric Statistics, 3rd edition (1999), section 5.8, equations 3 to 5.
    """
    n, k = len(table), len(table[0]) if table else 0
    if n < 2 or k < 2 or any(len(row) != k for row in table):
        raise ValueError(f"got {n} blocks of {k} ranks, expected at least 2 of at least 2, all of one length")
    from scipy.special import chdtrc

    middle = n * (k + 1) / 2
    between = math.fsum((math.fsum(row[j] for row in table) - middle) ** 2 for j in range(k))
    within = math.fsum(rank * rank for row in table for rank in row) - n * k * (k + 1) ** 2 / 4
    statistic = (k - 1) * between / within if within > 1e-9 else 0.0
    return Test(statistic, k - 1, float(chdtrc(k - 1, statistic)))


def critical_difference(methods: int, blocks: int, level: float = 0.95) -> float:
    """Nemenyi's critical difference: mean ranks that are further apart differ, all pairs tested at once.

        CD = q sqrt(k (k + 1) / (6 N)),   q: quantile of the studentised range of k normal values, over sqrt(2)

    Args:
        methods: k, at least 2.
        blocks: N, at least 1.
        level: 1 - the chance of a false difference among all pairs.
    """
    if methods < 2 or blocks < 1 or not 0 < level < 1:
        raise ValueError(
            f"got {methods} methods, {blocks} blocks, level {level}; expected >= 2, >= 1, in (0, 1)"
        )
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(level, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def groups(mean_ranks: Mapping[str, float], difference: float) -> list[list[str]]:
    """The largest groups of neighbours in rank that do not differ, best first; groups of one are left out."""
    order = sorted(mean_ranks, key=lambda name: mean_ranks[name])
    found: list[list[str]] = []
    end = 0
    for start, name in enumerate(order):
        reach = max(
            i for i, other in enumerate(order) if mean_ranks[other] - mean_ranks[name] <= difference + 1e-12
        )
        if reach > start and reach + 1 > end:
            found.append(order[start : reach + 1])
        end = max(end, reach + 1)
    return found


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of Student's t test that paired differences have mean 0; None for fewer than two.

    Differences that are all the same number leave no doubt: p is 1 for 0 and 0 for any other.
    """
    spread = sd(differences)
    if spread is None:
        return None
    mean = math.fsum(differences) / len(differences)
    if spread == 0:
        return 0.0 if differences[0] else 1.0
    from scipy.special import stdtr

    n = len(differences)
    return float(2 * stdtr(n - 1, -abs(mean) / (spread / math.sqrt(n))))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's corrected p values, in the order given: the chance of any false difference stays at the level.

        p'_(i) = max over j <= i of min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Statist. 6 (1979).
    """
    corrected = [0.0] * len(values)
    largest = 0.0
    for place, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - place) * values[i]))
        corrected[i] = largest
    return corrected
