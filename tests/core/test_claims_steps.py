"""Claims about steps to a target, where a run that never got there only tells "more than the budget"."""

from __future__ import annotations

from typing import Any

import pytest

from kdzoo.claims import Answer, Claim, Results, answer, validate
from kdzoo.metric_names import Better

BETTER: dict[str, Better] = {"recall@1": "higher"}
ARMS = ["student", "rkd"]
STEPS: dict[str, Any] = {"claim": 1, "metric": "val/recall@1:steps_to(0.55)", "arms": ("rkd", "student")}
BELOW_500 = Claim(**STEPS | {"kind": "level", "arms": ("rkd",), "below": 500.0})


def order(**settings: Any) -> Claim:
    return Claim(kind="order", **STEPS, **settings)


def ask(row: Claim, found: Results) -> Answer:
    validate(row, ARMS, BETTER)
    return answer(row, found, BETTER, ARMS)


def curves(rkd: list[int | None], student: list[int | None], budget: int = 400) -> Results:
    """Each run's curve crosses 0.55 at the given step, or never."""

    def runs(steps: list[int | None]) -> dict[int | None, Any]:
        points = [
            [(s, 0.6 if at is not None and s >= at else 0.2) for s in range(100, 500, 100)] for at in steps
        ]
        return {seed: {"val/recall@1": curve} for seed, curve in enumerate(points)}

    return Results(
        values={arm: {s: {} for s in range(len(rkd))} for arm in ("rkd", "student")},
        curves={"rkd": runs(rkd), "student": runs(student)},
        budgets={arm: dict.fromkeys(range(len(rkd)), budget) for arm in ("rkd", "student")},
    )


def test_fewer_steps_to_a_target_win() -> None:
    """Steps ranked by the metric's direction, or read from the values in place of the curve."""
    got = ask(order(), curves([100, 100, 100], [300, 300, 400]))
    assert (got.verdict, got.estimate) == ("reproduced", pytest.approx(700 / 3))
    assert got.why is None
    assert ask(order(), curves([300, 300, 400], [100, 100, 100])).verdict == "not reproduced"


def test_a_target_not_reached_counts_as_the_budget_and_is_said() -> None:
    """Runs that never arrive left out, which keeps only the lucky ones of the slow arm."""
    got = ask(order(), curves([100, 100, 200], [None, 400, None], budget=450))
    assert (got.verdict, got.estimate) == ("reproduced", pytest.approx((450 + 400 + 450 - 400) / 3))
    assert got.why == "target not reached in 2 of 6 readings, which count as the budget"


@pytest.mark.parametrize(
    ("row", "rkd", "student"),
    [
        (
            order(by=250),
            [200, 200, 200],
            [None, None, None],
        ),  # true margin may exceed 250
        (Claim(kind="same", **STEPS, by=50), [400, 400, 400], [None, None, None]),  # may be far apart
        (
            Claim(**STEPS | {"kind": "level", "arms": ("rkd",), "below": 500.0}),
            [None, None, 400],
            [100, 100, 100],
        ),
        (order(by=-350), [None, None, None], [100, 100, 100]),  # may lose by more
    ],
)
def test_a_target_not_reached_cannot_support_what_it_leaves_open(
    row: Claim, rkd: list[int | None], student: list[int | None]
) -> None:
    """The budget, a lower bound, taken for the steps needed: longer training would overturn the verdict."""
    got = ask(row, curves(rkd, student))
    assert got.verdict == "not testable"
    assert "could turn the verdict" in str(got.why)


def test_a_target_that_no_run_reached_tells_nothing() -> None:
    """Arms that all failed called the same."""
    for row in (order(), Claim(kind="same", **STEPS, by=50)):
        got = ask(row, curves([None] * 3, [None] * 3))
        assert got.verdict == "not testable"
        assert str(got.why).startswith("no run reached the target")


def test_a_missing_curve_is_not_testable() -> None:
    """A run without validation taken as one that needed the whole budget."""
    found = curves([100] * 3, [200] * 3)
    got = ask(order(), Results(found.values, curves={"rkd": found.curves["rkd"]}))
    assert (got.verdict, got.why) == (
        "not testable",
        "the curve of val/recall@1 is missing in the runs of student",
    )
