"""Claims: validation, intervals, one number per seed for each kind, verdicts."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import msgspec
import numpy as np
import pytest

from kdzoo.claims import (
    MIN_SEEDS_COMMITTED,
    MIN_SEEDS_TESTABLE,
    PRECEDENCE,
    Answer,
    Claim,
    Results,
    answer,
    combined,
    validate,
    verdicts,
)
from kdzoo.metric_names import Better

# Student's t at 97.5 % and 2 degrees of freedom has a closed form: (2p - 1) / sqrt(2p(1 - p)).
T2 = 0.95 / math.sqrt(2 * 0.975 * 0.025)

BETTER: dict[str, Better] = {"acc": "higher", "ppl": "lower", "miou": "higher", "recall@1": "higher"}
ARMS = ["student", "teacher", "rkd", "rkd.d", "fitnets", "m[0]", "m[0.5]", "m[1]", "n[0]", "n[0.5]", "n[1]"]


def results(metric: Any = "test/acc", counts: Any = None, **arms: Any) -> Results:
    """One metric: arm -> values of seeds 0, 1, ..., or a single number for an arm without seeds."""
    values: dict[str, dict[int | None, dict[str, float | None]]] = {}
    for arm, given in arms.items():
        seeds: list[tuple[int | None, float | None]] = (
            list(enumerate(given)) if isinstance(given, list) else [(None, given)]
        )
        values[arm] = {seed: {metric: value} for seed, value in seeds}
    counted = {a: {s: dict.fromkeys(v, counts) for s, v in runs.items()} for a, runs in values.items()}
    return Results(values, counts=counted if counts is not None else {})


def claim(kind: str = "order", **settings: Any) -> Claim:
    defaults: dict[str, Any] = {"claim": 1, "kind": kind, "arms": ("rkd", "student")}
    if kind != "gap":
        defaults["metric"] = "test/acc"
    return msgspec.convert(defaults | settings, Claim)


def ask(row: Claim, found: Results, **settings: Any) -> Answer:
    arms = settings.pop("arms", ARMS)
    validate(row, arms, BETTER)
    return answer(row, found, BETTER, arms, **settings)


# ---- verdicts of each kind


def test_order_by_hand() -> None:
    """A sign, a pairing or the interval wrong in the commonest kind of claim."""
    got = ask(claim(), results(rkd=[0.71, 0.82, 0.93], student=[0.70, 0.80, 0.90]))
    assert got.estimate == pytest.approx(0.02)
    assert got.low == pytest.approx(0.02 - T2 * 0.01 / math.sqrt(3))
    assert (got.n, got.verdict) == (3, "no difference shown")  # 0.02 +- 0.0248
    assert got.label == "rkd > student"


@pytest.mark.parametrize(
    ("rkd", "by", "verdict"),
    [
        ([0.80, 0.81, 0.80, 0.81], 0.0, "reproduced"),
        ([0.80, 0.81, 0.80, 0.81], 0.09, "reproduced"),
        ([0.80, 0.81, 0.80, 0.81], 0.105, "no difference shown"),
        ([0.80, 0.81, 0.80, 0.81], 0.12, "not reproduced"),
        ([0.60, 0.61, 0.60, 0.61], 0.0, "not reproduced"),
        ([0.60, 0.61, 0.60, 0.61], -0.2, "reproduced"),
        ([0.60, 0.81, 0.60, 0.81], 0.0, "no difference shown"),
    ],
)
def test_order_verdicts(rkd: list[float], by: float, verdict: str) -> None:
    """`by` left out of the comparison, or on the wrong side of it."""
    assert ask(claim(by=by), results(rkd=rkd, student=[0.7] * 4)).verdict == verdict


def test_order_where_lower_is_better() -> None:
    """Perplexity ranked like accuracy."""
    row = claim(metric="test/ppl")
    down = ask(row, results("test/ppl", rkd=[10.0, 11.0, 10.0], student=[20.0, 21.0, 20.5]))
    assert (down.verdict, down.estimate) == ("reproduced", pytest.approx(61.5 / 3 - 31 / 3))
    up = ask(row, results("test/ppl", rkd=[20.0, 21.0, 20.5], student=[10.0, 11.0, 10.0]))
    assert up.verdict == "not reproduced"


def test_a_chain_holds_only_if_every_arm_beats_the_next() -> None:
    """First against last compared, or the best pair shown for the whole chain."""
    row = claim(arms=("rkd", "fitnets", "student"))
    good = ask(row, results(rkd=[0.9, 0.91, 0.9], fitnets=[0.8, 0.81, 0.8], student=[0.75, 0.76, 0.76]))
    assert good.verdict == "reproduced"
    assert [part.label for part in good.parts] == ["rkd > fitnets", "fitnets > student"]
    assert good.label == "fitnets > student", "the smallest margin is shown"
    assert good.estimate == good.parts[1].estimate == pytest.approx(2.41 / 3 - 2.27 / 3)
    swapped = ask(row, results(rkd=[0.9, 0.91, 0.9], fitnets=[0.7, 0.71, 0.7], student=[0.75, 0.76, 0.76]))
    assert [part.verdict for part in swapped.parts] == ["reproduced", "not reproduced"]
    assert (swapped.verdict, swapped.label) == ("not reproduced", "fitnets > student")


def test_the_interval_shown_for_a_chain_is_one_that_has_its_verdict() -> None:
    """The words "no difference shown" printed beside an interval that clearly lies above zero."""
    found = results(rkd=[0.81, 0.81, 0.81], fitnets=[0.80, 0.80, 0.80], student=[0.6, 0.9, 0.75])
    got = ask(claim(arms=("rkd", "fitnets", "student")), found)
    assert [part.verdict for part in got.parts] == ["reproduced", "no difference shown"]
    assert got.label == "fitnets > student"
    assert got.low is not None
    assert got.low < 0


@pytest.mark.parametrize(
    ("bound", "verdict"),
    [
        ({"above": 0.5}, "reproduced"),
        ({"above": 0.6}, "no difference shown"),
        ({"above": 0.9}, "not reproduced"),
        ({"below": 0.9}, "reproduced"),
        ({"below": 0.6}, "no difference shown"),
        ({"below": 0.5}, "not reproduced"),
        ({"above": 0.0}, "reproduced"),
        ({"below": 0.0}, "not reproduced"),
        ({"above": 0.5, "by": 0.2}, "not reproduced"),
    ],
)
def test_level_verdicts(bound: dict[str, float], verdict: str) -> None:
    """`below` read as `above`, or a constant of 0 taken for none."""
    got = ask(claim("level", arms=("rkd",), **bound), results(rkd=[0.59, 0.60, 0.61]))
    assert got.verdict == verdict


def test_level_shows_the_margin() -> None:
    """The level itself compared with `by`, whatever the constant."""
    got = ask(claim("level", arms=("rkd",), below=0.9), results(rkd=[0.5, 0.6, 0.7]))
    assert got.estimate == pytest.approx(0.3)
    assert got.high == pytest.approx(0.3 + T2 * 0.1 / math.sqrt(3))


@pytest.mark.parametrize(
    ("rkd", "verdict"),
    [
        ([0.80, 0.81, 0.79], "reproduced"),
        ([0.84, 0.85, 0.85], "reproduced"),
        ([0.90, 0.91, 0.89], "not reproduced"),
        ([0.70, 0.71, 0.69], "not reproduced"),
        ([0.80, 0.90, 0.70], "no difference shown"),
        ([0.85, 0.87, 0.86], "no difference shown"),
        ([0.74, 0.70, 0.72], "no difference shown"),
    ],
)
def test_same_verdicts(rkd: list[float], verdict: str) -> None:
    """An insignificant difference passed off as sameness: the whole interval has to lie within +-by."""
    assert ask(claim("same", by=0.07), results(rkd=rkd, student=[0.8] * 3)).verdict == verdict


def gap_results(*, edge: list[float], inside: list[float]) -> Results:
    edges = results("test/miou[edge2]", 900, rkd=edge, student=[0.5] * 3)
    insides = results("test/miou[inside]", 900, rkd=inside, student=[0.7] * 3)
    merged = [
        {a: {s: {**first[a][s], **second[a][s]} for s in first[a]} for a in first}
        for first, second in ((edges.values, insides.values), (edges.counts, insides.counts))
    ]
    return Results(merged[0], counts=merged[1])


@pytest.mark.parametrize(
    ("edge", "inside", "verdict"),
    [
        ([0.60, 0.61, 0.62], [0.71, 0.72, 0.73], "reproduced"),
        ([0.51, 0.52, 0.53], [0.80, 0.81, 0.82], "not reproduced"),
        ([0.60, 0.50, 0.62], [0.75, 0.76, 0.74], "no difference shown"),
    ],
)
def test_gap_verdicts(edge: list[float], inside: list[float], verdict: str) -> None:
    """The difference of the two metrics themselves taken for the difference of the gains."""
    row = claim("gap", metrics=("test/miou[edge2]", "test/miou[inside]"))
    got = ask(row, gap_results(edge=edge, inside=inside))
    assert got.verdict == verdict
    assert got.estimate == pytest.approx(sum(edge) / 3 - 0.5 - (sum(inside) / 3 - 0.7))


def test_gap_between_metrics_of_opposite_direction() -> None:
    """A fall in perplexity subtracted as if it were a loss."""
    values = {
        "rkd": {s: {"test/acc": 0.7, "test/ppl": 9.0} for s in range(3)},
        "student": {s: {"test/acc": 0.6, "test/ppl": 10.0} for s in range(3)},
    }
    got = ask(claim("gap", metrics=("test/ppl", "test/acc")), Results(values))
    assert got.estimate == pytest.approx(1.0 - 0.1)


def grid_results(*, m: list[list[float]], n: list[list[float]] | None = None) -> Results:
    """Levels 0, 0.5, 1; each a list of seeds."""
    runs: dict[str, Any] = {f"m[{level}]": seeds for level, seeds in zip((0, 0.5, 1), m, strict=True)}
    if n:
        runs |= {f"n[{level}]": seeds for level, seeds in zip((0, 0.5, 1), n, strict=True)}
    return results(**runs)


RISING = [[0.10, 0.11, 0.12], [0.20, 0.21, 0.23], [0.40, 0.42, 0.42]]


@pytest.mark.parametrize(
    ("sense", "by", "verdict"),
    [
        ("rising", 0.0, "reproduced"),
        ("falling", 0.0, "not reproduced"),
        ("rising", 0.1, "reproduced"),
        ("rising", 0.155, "no difference shown"),
        ("rising", 0.2, "not reproduced"),
    ],
)
def test_trend_of_one_arm(sense: str, by: float, verdict: str) -> None:
    """A slope per unit of the setting (twice as large here) or the sense ignored."""
    got = ask(claim("trend", arms=("m",), along="share", sense=sense, by=by), grid_results(m=RISING))
    assert got.verdict == verdict
    slopes = [
        (last - first) / 2 for first, last in zip(RISING[0], RISING[2], strict=True)
    ]  # by hand: 3 levels
    assert got.estimate == pytest.approx((1 if sense == "rising" else -1) * sum(slopes) / 3)


def test_trend_of_a_gain_removes_what_both_arms_share() -> None:
    """The slope of the first arm alone taken for that of the gain: both rise, the gain falls."""
    found = grid_results(m=RISING, n=[[v - 0.09 + 0.04 * i for v in row] for i, row in enumerate(RISING)])
    got = ask(claim("trend", arms=("m", "n"), along="share", sense="falling"), found)
    assert (got.verdict, got.estimate) == ("reproduced", pytest.approx(0.04))
    assert got.label == "m - n falling along share"


def test_trend_of_a_gain_follows_the_direction_and_of_an_arm_does_not() -> None:
    """A growing gain in perplexity called falling, or a rising perplexity called falling."""
    arms = {"m[0]": [9.0] * 3, "m[1]": [9.5] * 3, "n[0]": [10.0] * 3, "n[1]": [12.0] * 3}
    found, names = results("test/ppl", **arms), list(arms)
    shared: dict[str, Any] = {"metric": "test/ppl", "along": "share", "sense": "rising"}
    gain = ask(claim("trend", arms=("m", "n"), **shared), found, arms=names)
    assert (gain.verdict, gain.estimate) == ("reproduced", pytest.approx(1.5))
    alone = ask(claim("trend", arms=("m",), **shared), found, arms=names)
    assert (alone.verdict, alone.estimate) == ("reproduced", pytest.approx(0.5))


def test_levels_are_ordered_by_number_and_other_settings_stay_fixed() -> None:
    """10 sorted before 9, or arms of another temperature drawn into the grid."""
    arms = {
        "m[k=10,tau=4]": [0.9] * 3,
        "m[k=9,tau=4]": [0.5] * 3,
        "m[k=100,tau=4]": [1.4] * 3,
        "m[k=11,tau=1]": [0.0] * 3,
    }
    got = ask(claim("trend", arms=("m[tau=4]",), along="k", sense="rising"), results(**arms), arms=list(arms))
    assert (got.verdict, got.estimate) == ("reproduced", pytest.approx(0.45))


def test_levels_without_numbers_keep_the_declared_order() -> None:
    """Sizes sorted by the alphabet: base, large, small."""
    arms = {"m[size=small]": [0.1] * 3, "m[size=base]": [0.3] * 3, "m[size=large]": [0.5] * 3}
    got = ask(claim("trend", arms=("m",), along="size", sense="rising"), results(**arms), arms=list(arms))
    assert got.estimate == pytest.approx(0.2)


def test_a_trend_over_part_of_its_grid_is_not_run() -> None:
    """A level that was never trained dropped in silence: the slope of what is left is another claim."""
    found = results(**{"m[0]": [0.1] * 3, "m[1]": [0.3] * 3})
    got = ask(claim("trend", arms=("m",), along="share", sense="rising"), found)
    assert (got.verdict, got.why) == ("not run", "no finished run of m[0.5]")


# ---- what cannot be answered


def test_missing_arms_are_not_run() -> None:
    """A claim about arms that the plain bench leaves out shown as untestable, or as a crash."""
    for found in (results(student=[0.1] * 3), Results({"student": {0: {"test/acc": 0.1}}, "rkd": {}})):
        got = ask(claim(), found)
        assert (got.verdict, got.estimate, got.n) == ("not run", None, 0)
        assert got.why == "no finished run of rkd"


def test_too_few_seeds_are_not_testable() -> None:
    """A verdict from two seeds, whatever the margin; a committed record judged on three."""
    two = ask(claim(), results(rkd=[0.9, 0.9], student=[0.1, 0.1]))
    assert (two.verdict, two.n, two.why) == ("not testable", 2, "paired seeds: 2, needed: 3")
    assert two.estimate == pytest.approx(0.8), "what is known is still shown"
    found = results(rkd=[0.9, 0.9, 0.9, 0.9], student=[0.1, 0.1, 0.1, 0.1])
    assert ask(claim(), found, min_seeds=MIN_SEEDS_TESTABLE).verdict == "reproduced"
    kept = ask(claim(), found, min_seeds=MIN_SEEDS_COMMITTED)
    assert (kept.verdict, kept.why) == ("not testable", "paired seeds: 4, needed: 5")
    assert (MIN_SEEDS_TESTABLE, MIN_SEEDS_COMMITTED) == (3, 5)


def test_a_missing_seed_is_left_out_of_both_arms_and_said() -> None:
    """Seed 3 of one arm paired with seed 2 of the other, or seeds lost without a word."""
    values = {
        "rkd": {s: {"test/acc": 0.5 + 0.1 * s} for s in (0, 1, 2, 4)},
        "student": {s: {"test/acc": 0.4 + 0.1 * s} for s in (0, 1, 3, 4)},
    }
    got = ask(claim(), Results(values))
    assert (got.n, got.verdict) == (3, "reproduced")
    assert got.estimate == pytest.approx(0.1)
    assert got.why == "2 of 5 seeds left out for a missing run or value"


@pytest.mark.parametrize("undefined", [None, math.nan, math.inf])
def test_undefined_values_are_left_out_and_said(undefined: float | None) -> None:
    """None read as 0, NaN carried into the mean, an infinite perplexity into the interval."""
    got = ask(claim(), results(rkd=[0.5, 0.6, 0.7, undefined], student=[0.4, 0.5, 0.6, 0.1]))
    assert (got.n, got.estimate) == (3, pytest.approx(0.1))
    assert got.why == "1 of 4 seeds left out for a missing run or value"
    none = ask(claim(), results(rkd=[undefined] * 3, student=[0.4] * 3))
    assert (none.verdict, none.estimate, none.n) == ("not testable", None, 0)


def test_a_metric_that_was_not_measured_is_not_testable() -> None:
    """A KeyError at the end of a long bench, or no word about which metric it was."""
    got = ask(claim(metric="test/miou"), results(rkd=[0.5] * 3, student=[0.4] * 3))
    assert (got.verdict, got.why) == ("not testable", "metric test/miou is missing in the runs of rkd")


def test_arms_without_a_seed_in_common_are_not_testable() -> None:
    """A crash in a mean of nothing."""
    values = {"rkd": {0: {"test/acc": 0.1}}, "student": {1: {"test/acc": 0.1}}}
    got = ask(claim(), Results(values))
    assert (got.verdict, got.n) == ("not testable", 0)
    assert "no seed in common" in str(got.why)


def test_small_sub_populations_are_not_testable() -> None:
    """A verdict on 49 rare samples; the rule must spare selectors and follow the card's own number."""
    runs: dict[str, Any] = {"rkd": [0.9] * 3, "student": [0.5] * 3}
    rare = claim(metric="test/acc[rare]")
    few = ask(rare, results("test/acc[rare]", 49, **runs))
    assert (few.verdict, few.why) == ("not testable", "test/acc[rare] holds 49 samples, needed: 50")
    assert ask(rare, results("test/acc[rare]", 50, **runs)).verdict == "reproduced"
    assert ask(rare, results("test/acc[rare]", **runs)).verdict == "not testable", "unknown is not enough"
    allowed = claim(metric="test/acc[rare]", min_items=20)
    assert ask(allowed, results("test/acc[rare]", 49, **runs)).verdict == "reproduced"
    selector = claim(metric="test/acc[teacher=deep]")
    assert ask(selector, results("test/acc[teacher=deep]", 7, **runs)).verdict == "reproduced"
    empty = results("test/acc[rare]", 0, rkd=[None] * 3, student=[None] * 3)
    assert ask(rare, empty).why == "test/acc[rare] holds 0 samples, needed: 50"


def test_a_claim_without_a_test_says_why() -> None:
    """A claim that needs what cannot be had left out of the table."""
    row = msgspec.convert({"claim": 7, "why": "needs the authors' private logs"}, Claim)
    got = ask(row, results(rkd=[0.5] * 3))
    assert (got.verdict, got.why, got.kind) == ("not testable", "needs the authors' private logs", None)
    planned = ask(claim(why="the paper's split is lost"), results(rkd=[0.9] * 3, student=[0.1] * 3))
    assert (planned.verdict, planned.why) == ("not testable", "the paper's split is lost")


def test_a_teacher_without_seeds_pairs_with_every_seed() -> None:
    """The teacher compared on one seed only; two single models compared as if they were many."""
    row = claim(arms=("rkd", "teacher"))
    got = ask(row, results(rkd=[0.80, 0.81, 0.82], teacher=0.7))
    assert (got.n, got.verdict, got.estimate) == (3, "reproduced", pytest.approx(0.11))
    assert got.low == pytest.approx(0.11 - T2 * 0.01 / math.sqrt(3))
    single = ask(row, results(rkd=0.9, teacher=0.7))
    assert (single.n, single.verdict) == (1, "not testable")
    assert single.low is None


def test_differences_equal_at_every_seed() -> None:
    """A division by a standard deviation of zero, or ties called a win."""
    same = results(rkd=[0.5, 0.75, 1.0], student=[0.25, 0.5, 0.75])
    got = ask(claim(), same)
    assert (got.verdict, got.low, got.high) == ("reproduced", 0.25, 0.25)
    assert ask(claim(by=0.25), same).verdict == "no difference shown"
    assert ask(claim(by=0.26), same).verdict == "not reproduced"
    tie = results(rkd=[0.5, 0.6, 0.7], student=[0.5, 0.6, 0.7])
    assert ask(claim(), tie).verdict == "no difference shown"
    assert ask(claim("same", by=0.25), same).verdict == "reproduced", "+-by includes its ends"


def test_rounding_of_floats_does_not_decide_a_tie() -> None:
    """0.7 - 0.6 = 0.09999999999999998 failing `by = 0.1`, 0.4 - 0.3 passing it."""
    low = results(rkd=[0.7, 0.7, 0.7], student=[0.6, 0.6, 0.6])
    high = results(rkd=[0.4, 0.4, 0.4], student=[0.3, 0.3, 0.3])
    assert 0.7 - 0.6 < 0.1 < 0.4 - 0.3 + 1e-15
    assert ask(claim(by=0.1), low).verdict == ask(claim(by=0.1), high).verdict == "no difference shown"
    assert ask(claim("same", by=0.1), high).verdict == "reproduced"


# ---- rows together


def test_rows_of_one_claim_must_all_hold() -> None:
    """The claim "BLEU up AND perplexity worse" reproduced because one half is."""
    found = results(rkd=[0.9, 0.91, 0.9], student=[0.5, 0.51, 0.5], fitnets=[0.5, 0.9, 0.7])
    up = claim(claim=4)
    open_ = claim(claim=4, arms=("rkd", "fitnets"))
    down = claim(claim=4, arms=("student", "rkd"))
    absent = claim(claim=4, arms=("rkd", "rkd.d"))
    other = claim(claim=2)

    def together(*rows: Claim) -> dict[int, str]:
        return dict(verdicts(ask(row, found) for row in rows))

    assert together(up, up) == {4: "reproduced"}
    assert together(up, open_) == {4: "no difference shown"}
    assert together(up, absent, open_) == {4: "not run"}
    assert together(open_, down, absent) == {4: "not reproduced"}
    assert list(together(down, other).items()) == [(2, "reproduced"), (4, "not reproduced")]


def test_precedence_does_not_depend_on_the_order_of_rows() -> None:
    """The last row's verdict winning."""
    for first, second in itertools.combinations(PRECEDENCE, 2):
        assert combined([first, second]) == combined([second, first]) == first
    assert PRECEDENCE[0] == "not reproduced"
    assert PRECEDENCE[-1] == "reproduced"


def test_an_answer_goes_into_a_record_and_back() -> None:
    """A record that cannot be written, or numpy numbers that JSON does not know."""
    found = results(rkd=list(np.array([0.5, 0.6, 0.7])), student=[0.4, 0.5, 0.55])
    got = ask(claim(text="rkd helps"), found)
    assert msgspec.json.decode(msgspec.json.encode(got), type=Answer) == got


def test_a_true_null_is_seldom_affirmed() -> None:
    """A one-sided error rate above the 2.5 % the table promises; 1,500 benches of two equal arms."""
    rng = random.Random(11)
    row, wrong = claim(), {"reproduced": 0, "not reproduced": 0, "no difference shown": 0}
    for _ in range(1500):
        noise = [[rng.gauss(0.7, 0.01) for _ in range(5)] for _ in range(2)]
        wrong[answer(row, results(rkd=noise[0], student=noise[1]), BETTER, ARMS).verdict] += 1
    assert 15 <= wrong["reproduced"] <= 60  # 37.5 expected, standard deviation 6
    assert 15 <= wrong["not reproduced"] <= 60
