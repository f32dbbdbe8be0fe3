"""Metric names: the grammar, its round trip, directions, and steps read off a curve."""

from __future__ import annotations

import pytest

from kdzoo.errors import KdzooError
from kdzoo.metric_names import Better, MetricName, Reached, better_of, direction, parse, steps_to

NAMES = {
    "test/miou[edge2]": MetricName("test", "miou", "edge2"),
    "train/agreement[teacher=deep]": MetricName("train", "agreement", "teacher=deep"),
    "corpus/acceptance": MetricName("corpus", "acceptance"),
    "val/recall@1:steps_to(0.55)": MetricName("val", "recall@1", None, "steps_to", (0.55,)),
    "val/ppl[old]:steps_to(12)": MetricName("val", "ppl", "old", "steps_to", (12.0,)),
    "cost/seconds": MetricName("cost", "seconds"),
    "test/map[rare,model=cnn]": MetricName("test", "map", "rare,model=cnn"),
}


@pytest.mark.parametrize(("text", "name"), NAMES.items())
def test_names_of_cards_are_read_and_written_back(text: str, name: MetricName) -> None:
    """A name that changes on its way through a record, so that its values are no longer found."""
    assert parse(text) == name
    assert str(name) == text
    assert parse(str(name)) == name


@pytest.mark.parametrize("target", [0.1, 1 / 3, 1e-7, 2.5e20, -4.0, 123456789.125])
def test_targets_keep_all_their_digits(target: float) -> None:
    """A target rounded when the name is written: 0.3333 would be another claim than 1/3."""
    name = MetricName("val", "acc", None, "steps_to", (target,))
    assert parse(str(name)).args == (target,)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("miou", "names no split"),
        ("", "names no split"),
        ("/miou", "split before '/' is empty"),
        ("test/", "metric after '/' is empty"),
        ("test/[edge2]", "metric after '/' is empty"),
        ("test/miou[]", "subset in brackets is empty"),
        ("test/miou[edge2", "bracket is not closed"),
        ("test/miou edge", "white space"),
        ("test/miou\n", "white space"),
        ("test/miou:steps_to(1)[edge2]", "out of order"),
        ("test/miou[a][b]", "out of order"),
        ("test/miou[a,]", "out of order"),
        ("test/miou/x", "out of order"),
        ("Test/miou", "out of order"),
        ("val/acc:", "nothing follows ':'"),
        ("val/acc:steps_to(0.5", "parenthesis is not closed"),
        ("val/acc:steps_to", "takes one finite number"),
        ("val/acc:steps_to()", "takes one finite number"),
        ("val/acc:steps_to(1,2)", "takes one finite number"),
        ("val/acc:steps_to(nan)", "takes one finite number"),
        ("val/acc:steps_to(high)", "'high' is not a number"),
        ("test/acc:steps_to(0.5)", "reads the val curve"),
    ],
)
def test_malformed_names_are_refused_with_the_reason(text: str, why: str) -> None:
    """A typo that passes as a metric nobody measured, and makes a claim silently untestable."""
    with pytest.raises(KdzooError) as caught:
        parse(text)
    message = str(caught.value)
    assert why in message
    assert repr(text)[:-1].removesuffix("()") in message, "the name that was given"
    assert "test/miou[edge2]" in message, "no example of a right name"


def test_an_unknown_derive_gets_the_nearest_known_one() -> None:
    """A misspelt derive that is ignored: the claim would then be about the metric itself."""
    with pytest.raises(KdzooError, match=r"unknown derive 'step_to'\. Did you mean steps_to\?"):
        parse("val/acc:step_to(0.5)")


@pytest.mark.parametrize(
    "parts",
    [
        ("test", "acc[old]"),
        ("test", "acc", ""),
        ("te st", "acc"),
        ("val", "acc", "a:b"),
        ("val", "acc", None, None, (0.5,)),
        ("val", "acc", None, "steps_to"),
    ],
)
def test_a_name_that_would_not_be_read_back_cannot_be_built(parts: tuple) -> None:
    """Code that builds names from parts and smuggles brackets in: two different names with one text."""
    with pytest.raises(KdzooError):
        MetricName(*parts)


def test_a_selector_is_not_a_sub_population() -> None:
    """`teacher=deep` held against the fewest-samples rule, or `edge2` exempted from it."""
    assert parse("test/miou[edge2]").is_population
    assert parse("test/map[rare,model=cnn]").is_population
    assert not parse("train/agreement[teacher=deep]").is_population
    assert not parse("test/acc").is_population


def test_base_drops_the_derive_only() -> None:
    """The curve of the whole read for a subset."""
    assert str(parse("val/ppl[old]:steps_to(12)").base) == "val/ppl[old]"
    assert parse("test/acc").base == parse("test/acc")


def test_the_most_exact_direction_counts() -> None:
    """A subset's own direction overruled by the general one, or a general one not found at all."""
    assert better_of(parse("test/shift"), {"shift": "lower"}) == "lower"
    assert better_of(parse("test/shift"), {"shift": "lower", "test/shift": "higher"}) == "higher"
    assert better_of(parse("test/shift[old]"), {"test/shift": "higher", "shift": "lower"}) == "higher"
    assert (
        better_of(parse("test/shift[old]"), {"test/shift": "higher", "test/shift[old]": "lower"}) == "lower"
    )


def test_an_undeclared_subset_is_unknown_where_subsets_are_declared() -> None:
    """`edge3` for `edge2` accepted because the whole metric is declared."""
    declared: dict[str, Better] = {"test/miou": "higher", "test/miou[edge2]": "higher"}
    with pytest.raises(KdzooError, match=r"Did you mean test/miou\[edge2\]"):
        better_of(parse("test/miou[edge3]"), declared)
    assert better_of(parse("test/miou"), declared) == "higher"


def test_an_unknown_metric_gets_the_nearest_known_ones() -> None:
    """A direction guessed for a metric that the card does not declare."""
    with pytest.raises(KdzooError, match="Did you mean test/accuracy"):
        better_of(parse("test/acuracy"), {"test/accuracy": "higher", "cost/seconds": "lower"})


def test_fewer_steps_are_better_whatever_the_metric() -> None:
    """Steps to a target ranked like the metric: the slowest arm would win."""
    better: dict[str, Better] = {"recall@1": "higher", "loss": "lower"}
    assert direction(parse("val/recall@1"), better) == "higher"
    assert direction(parse("val/recall@1:steps_to(0.5)"), better) == "lower"
    assert direction(parse("val/loss:steps_to(0.5)"), better) == "lower"
    with pytest.raises(KdzooError):
        direction(parse("val/map:steps_to(0.5)"), better)


CURVE = [(100, 0.2), (200, 0.5), (300, 0.4), (400, 0.7)]


def test_steps_to_is_the_first_step_at_the_target() -> None:
    """The last crossing taken for the first, a strict comparison, or points in the order they arrive."""
    assert steps_to(CURVE, 0.5, "higher") == Reached(200.0, True)
    assert steps_to(reversed(CURVE), 0.5, "higher") == Reached(200.0, True)
    assert steps_to(CURVE, 0.51, "higher") == Reached(400.0, True)


def test_steps_to_follows_the_direction() -> None:
    """A loss said to have reached its target because it is still above it."""
    falling = [(10, 3.0), (20, 1.5), (30, 2.0)]
    assert steps_to(falling, 1.5, "lower") == Reached(20.0, True)
    assert steps_to(falling, 1.0, "lower", budget=40) == Reached(40.0, False)


def test_a_target_not_reached_is_the_budget_flagged() -> None:
    """A run that never got there left out, or taken as one that got there at its last validation."""
    assert steps_to(CURVE, 0.9, "higher", budget=450) == Reached(450.0, False)
    assert steps_to(CURVE, 0.9, "higher") == Reached(400.0, False)


def test_undefined_points_do_not_reach() -> None:
    """None compared with a number, NaN passing a comparison, or an empty curve given a number."""
    assert steps_to([(1, None), (2, float("nan")), (3, 0.6)], 0.5, "higher") == Reached(3.0, True)
    assert steps_to([(1, None)], 0.5, "higher") == Reached(1.0, False)
    assert steps_to([], 0.5, "higher", budget=10) is None


def test_a_misspelt_direction_is_a_programming_error() -> None:
    """Anything but "higher" read as "lower"."""
    with pytest.raises(ValueError, match="expected 'higher' or 'lower'"):
        steps_to(CURVE, 0.5, "max")  # type: ignore[arg-type]
