"""Paired statistics: t intervals over seeds, bootstrap over items."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest

from kdzoo.intervals import Comparison, bootstrap, mean_interval, paired, sd

# Student's t at 97.5 % and 2 degrees of freedom has a closed form: (2p - 1) / sqrt(2p(1 - p)).
T2 = 0.95 / math.sqrt(2 * 0.975 * 0.025)


def test_t_interval_of_three_values_by_hand() -> None:
    """The normal quantile, n in place of n - 1, or a missing square root."""
    got = mean_interval([1.0, 2.0, 3.0])  # mean 2, sd 1
    assert got.n == 3
    assert got.mean == pytest.approx(2.0)
    assert got.low == pytest.approx(2.0 - T2 / math.sqrt(3), abs=1e-12)
    assert got.high == pytest.approx(2.0 + T2 / math.sqrt(3), abs=1e-12)
    assert pytest.approx(4.302652729911275) == T2  # as printed in tables
    assert sd([1.0, 2.0, 3.0]) == pytest.approx(1.0)
    assert sd([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) == pytest.approx(math.sqrt(32 / 7))


def test_equal_values_give_an_interval_of_no_width() -> None:
    """NaN, or a width made of rounding: the float mean of three 0.1 is not 0.1."""
    got = mean_interval([0.1, 0.1, 0.1])
    assert (got.n, got.mean, got.low, got.high) == (3, 0.1, 0.1, 0.1)
    assert sd([0.1, 0.1, 0.1]) == 0.0


def test_too_few_values_have_no_interval() -> None:
    """A division by zero, or one seed shown as an interval of no width, which looks like certainty."""
    assert mean_interval([]) == Comparison(0, None, None, None)
    assert mean_interval([0.5]) == Comparison(1, 0.5, None, None)
    assert sd([0.5]) is None


@pytest.mark.parametrize(
    ("values", "level"), [([1.0, math.nan], 0.95), ([1.0, math.inf], 0.95), ([1.0, 2.0], 1.0)]
)
def test_non_finite_values_and_impossible_levels_are_refused(values: list[float], level: float) -> None:
    """NaN that turns into an interval which no comparison is true of, and so into a verdict."""
    with pytest.raises(ValueError, match="expected level in"):
        mean_interval(values, level)


def test_t_interval_covers_the_truth_as_often_as_it_says() -> None:
    """A quantile with wrong degrees of freedom: at n = 5 the normal one covers 88 %, n for n - 1 94 %."""
    rng = random.Random(7)
    rounds, inside = 6000, 0
    for _ in range(rounds):
        got = mean_interval([rng.gauss(0.3, 2.0) for _ in range(5)])
        assert got.low is not None
        assert got.high is not None
        inside += got.low <= 0.3 <= got.high
    assert inside / rounds == pytest.approx(0.95, abs=0.0085)  # three standard errors of this simulation


def test_paired_difference_by_hand() -> None:
    """Values paired by position in place of seed, or an unpaired interval, here thirty times as wide."""
    a = {2: 0.93, 0: 0.71, 1: 0.82}
    b = {0: 0.70, 1: 0.80, 2: 0.90}  # differences 0.01, 0.02, 0.03
    got = paired(a, b)
    assert (got.n, got.mean) == (3, pytest.approx(0.02))
    assert got.low == pytest.approx(0.02 - T2 * 0.01 / math.sqrt(3))
    assert got.high == pytest.approx(0.02 + T2 * 0.01 / math.sqrt(3))
    assert paired(b, a).mean == pytest.approx(-0.02)


def test_paired_leaves_out_what_has_no_partner() -> None:
    """None read as 0, a seed that failed in one arm compared with nothing."""
    got = paired({0: 0.5, 1: None, 2: 0.7, 3: 0.9, 5: math.nan}, {0: 0.4, 1: 0.1, 2: 0.5, 4: 0.2, 5: 0.1})
    assert (got.n, got.mean) == (2, pytest.approx(0.15))
    assert paired({0: None}, {0: 1.0}).n == 0


def test_paired_with_an_arm_without_seeds() -> None:
    """A shared teacher that pairs with no seed, or that is counted as one seed only."""
    got = paired({None: 0.9}, {0: 0.5, 1: 0.6, 2: 0.7})
    assert (got.n, got.mean) == (3, pytest.approx(0.3))
    assert got.low == pytest.approx(0.3 - T2 * 0.1 / math.sqrt(3))
    assert paired({0: 0.5, 1: 0.6, 2: 0.7}, {None: 0.9}).mean == pytest.approx(-0.3)
    assert paired({None: 0.9}, {None: 0.8}).n == 1
    with pytest.raises(ValueError, match="one key None"):
        paired({None: 0.9, 0: 0.8}, {0: 0.5})


def test_bootstrap_against_all_resamples_of_few_items() -> None:
    """Items drawn without replacement, or a and b drawn apart: compared with every one of the 4^6 draws."""
    a, b = [1.0, 0.2, 0.7, 0.45], [0.3, 0.4, 0.1, 0.4]
    difference = [x - y for x, y in zip(a, b, strict=True)]
    n = len(difference)
    means = sorted(sum(draw) / n for draw in itertools.product(difference, repeat=n))
    low, high = bootstrap(a, b, np.random.default_rng(0), resamples=40_000)
    for got, tail in ((low, 0.025), (high, 0.975)):
        share = sum(mean <= got + 1e-9 for mean in means) / len(means)
        below = sum(mean < got - 1e-9 for mean in means) / len(means)
        assert below - 0.01 <= tail <= share + 0.01


@pytest.mark.parametrize("binary", [True, False], ids=["few values", "many values"])
def test_bootstrap_against_a_slow_reference(binary: bool) -> None:
    """The shortcut for few values, or the chunks, drawing from another distribution than plain loops do."""
    rng = random.Random(3)
    n, seeds = 120, 1 if binary else 3  # three values in 120 items take the shortcut

    def arm(mean: float) -> list[list[float]]:
        draw = (lambda: float(rng.random() < mean)) if binary else (lambda: rng.gauss(mean, 1.0))
        return [[draw() for _ in range(n)] for _ in range(seeds)]

    a, b = arm(0.8), arm(0.6)
    each = [sum(r[i] for r in a) / seeds - sum(r[i] for r in b) / seeds for i in range(n)]
    means = sorted(sum(rng.choices(each, k=n)) / n for _ in range(4000))
    low, high = bootstrap(a, b, np.random.default_rng(5))
    width = high - low
    assert low == pytest.approx(means[100], abs=0.06 * width)
    assert high == pytest.approx(means[3900], abs=0.06 * width)


def test_bootstrap_averages_over_seeds_first() -> None:
    """Seeds taken for new test items: ten copies of one seed would shrink the interval by sqrt(10)."""
    rng = np.random.default_rng(1)
    a, b = rng.random(200), rng.random(200)
    once = bootstrap(a, b, np.random.default_rng(2))
    assert bootstrap(np.tile(a, (10, 1)), b, np.random.default_rng(2)) == pytest.approx(once)


@pytest.mark.parametrize("items", [200, 4], ids=["many values", "few values"])
def test_bootstrap_depends_on_the_generator_and_on_nothing_else(items: int) -> None:
    """A hidden global generator, or a result that changes with the memory allowed."""
    a = np.tile(np.random.default_rng(1).random(items), 200 // items)
    b = np.zeros(200)
    one = bootstrap(a, b, np.random.default_rng(2), resamples=999)
    assert bootstrap(a, b, np.random.default_rng(2), resamples=999, chunk=777) == one
    assert bootstrap(a, b, np.random.default_rng(3), resamples=999) != one


def test_bootstrap_of_equal_arms_has_no_width() -> None:
    """Items of a and b drawn apart: two equal arms would seem to differ."""
    a = np.random.default_rng(1).random((3, 50))
    assert bootstrap(a, a, np.random.default_rng(2), resamples=100) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [([], []), ([1.0, 2.0], [1.0]), ([1.0, math.nan], [1.0, 2.0]), (np.zeros((1, 2, 2)), [1.0, 2.0])],
)
def test_bootstrap_refuses_items_it_cannot_pair(a: Any, b: Any) -> None:
    """Broadcasting of one item against all, or NaN in every resample."""
    with pytest.raises(ValueError, match="expected"):
        bootstrap(a, b, np.random.default_rng(0))
