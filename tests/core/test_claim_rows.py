"""Rows of ``[[claims]]``: what is read, what is refused before anything runs."""

from __future__ import annotations

import math
import tomllib
from typing import Any

import msgspec
import pytest

from kdzoo.claim_rows import Claim, validate
from kdzoo.errors import KdzooError
from kdzoo.metric_names import Better

BETTER: dict[str, Better] = {"acc": "higher", "ppl": "lower", "miou": "higher", "recall@1": "higher"}
ARMS = ["student", "teacher", "rkd", "rkd.d", "fitnets", "m[0]", "m[0.5]", "m[1]", "n[0]", "n[0.5]", "n[1]"]

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"claim": 0}, "numbered from 1"),
    ({"kind": None}, "has no kind"),
    ({"arms": ("rkd",)}, "expected 2 or more"),
    ({"arms": ("rkd", "rkd")}, "all different"),
    ({"arms": ("rkd", "studnet")}, "unknown arm 'studnet'. Did you mean student"),
    ({"arms": ("rkd", "kd")}, "Name the baseline by its slug"),
    ({"metric": None}, "`metric` is missing"),
    ({"metric": "acc"}, "names no split"),
    ({"metric": "test/ac"}, "unknown metric 'test/ac'. Did you mean test/acc"),
    ({"above": 0.5}, "`above` would be ignored"),
    ({"metrics": ("test/acc", "test/ppl")}, "`metrics` would be ignored"),
    ({"by": math.nan}, "must be finite"),
    ({"min_items": 0}, "expected 1 or more"),
    ({"kind": "level"}, "expected one of `above` and `below`"),
    ({"kind": "level", "above": 0.0, "below": 1.0}, "expected one of `above` and `below`"),
    ({"kind": "level", "above": 0.0}, "expected 1, all different"),
    ({"kind": "level", "above": math.inf, "arms": ("rkd",)}, "must be finite"),
    ({"kind": "same"}, "give by > 0"),
    ({"kind": "same", "by": 0.1, "arms": ("rkd", "student", "fitnets")}, "expected 2, all different"),
    ({"kind": "gap"}, "`metric` would be ignored"),
    ({"kind": "gap", "metric": None}, "`metrics` is missing"),
    ({"kind": "gap", "metric": None, "metrics": ("test/acc",)}, "expected two, the larger gain first"),
    ({"kind": "gap", "metric": None, "metrics": ("test/acc", "test/acc")}, "expected two"),
    ({"kind": "trend", "arms": ("m",)}, "`along` is missing"),
    ({"kind": "trend", "arms": ("m",), "along": "share"}, "`sense` is missing"),
    ({"kind": "trend", "arms": ("rkd",), "along": "share", "sense": "rising"}, "two or more levels"),
    ({"kind": "trend", "arms": ("m", "n", "rkd"), "along": "share", "sense": "rising"}, "expected 1 or 2"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_claims_that_could_not_be_answered_are_refused(changes: dict[str, Any], message: str) -> None:
    """A mistake in a card found after hours of training, or not at all."""
    row = msgspec.convert(
        {"claim": 3, "kind": "order", "metric": "test/acc", "arms": ("rkd", "student")} | changes, Claim
    )
    with pytest.raises(KdzooError) as caught:
        validate(row, ARMS, BETTER)
    assert message in str(caught.value)
    assert f"claim {row.claim}" in str(caught.value) or "metric" in message or "split" in message


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [("kind", "ordr", "unknown kind 'ordr'. Did you mean order"), ("sense", "rise", "unknown sense 'rise'")],
)
def test_words_that_the_type_check_would_catch_are_caught_here_too(
    setting: str, value: str, message: str
) -> None:
    """A claim built in code, where msgspec checks nothing, that falls through to the last kind."""
    settings: dict[str, Any] = {"kind": "trend", "sense": "rising", setting: value}
    with pytest.raises(KdzooError) as caught:
        validate(Claim(claim=1, metric="test/acc", arms=("m",), along="share", **settings), ARMS, BETTER)
    assert message in str(caught.value)


def test_grids_that_do_not_match_are_refused() -> None:
    """The gain at one level made of two different levels; one level trained twice counted as two."""
    row = Claim(claim=1, kind="trend", metric="test/acc", arms=("m", "n"), along="share", sense="rising")
    with pytest.raises(KdzooError, match="different grids"):
        validate(row, ["m[0]", "m[1]", "n[0]", "n[0.5]"], BETTER)
    with pytest.raises(KdzooError, match="each once"):
        validate(row, ["m[0]", "m[1]", "m[share=1]", "n[0]", "n[1]"], BETTER)


def test_the_rows_of_the_design_are_read() -> None:
    """A card in the documented form refused."""
    rows = tomllib.loads(
        """
        [[claims]]
        claim = 5
        kind = "order"
        metric = "val/recall@1:steps_to(0.55)"
        arms = ["rkd.d", "rkd"]
        [[claims]]
        claim = 4
        kind = "level"
        metric = "train/acc"
        arms = ["rkd"]
        above = 0
        [[claims]]
        claim = 3
        kind = "gap"
        metrics = ["test/miou[edge2]", "test/miou[interior2]"]
        arms = ["rkd", "student"]
        [[claims]]
        claim = 6
        kind = "trend"
        metric = "test/acc"
        arms = ["m", "n"]
        along = "share"
        sense = "falling"
        """
    )["claims"]
    for row in msgspec.convert(rows, list[Claim]):
        validate(row, ARMS, BETTER)


def test_an_unknown_setting_is_refused() -> None:
    """`margin = 0.01` ignored, and the claim judged at a margin of 0."""
    with pytest.raises(msgspec.ValidationError, match="margin"):
        msgspec.convert({"claim": 1, "kind": "order", "margin": 0.01}, Claim)
