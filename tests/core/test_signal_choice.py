"""What ``--signals`` may ask for, and what it does to keys."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kdzoo import catalog, execute
from kdzoo.errors import KdzooError
from kdzoo.plan import Plan, Request, make_plan
from kdzoo.signal_choice import POLICIES, Choice, check, parse


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("live", Choice()),
        ("recorded", Choice("recorded")),
        ("top-k=8", Choice("top-k", 8, "spread")),
        *((f"top-k=3:{policy}", Choice("top-k", 3, policy)) for policy in POLICIES),
    ],
)
def test_choices_are_parsed_and_written_back(text: str, choice: Choice) -> None:
    """What is written into keys must not depend on how it was typed."""
    assert parse(text) == choice
    assert parse(str(choice)) == choice


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recordet", "unknown signals 'recordet'. Did you mean recorded"),
        ("top-k", "got '' as K"),
        ("top-k=0", "got '0' as K"),
        ("top-k=x", "got 'x' as K"),
        ("top-k=3:tail", "unknown tail policy 'tail'. Did you mean tail-bucket"),
        ("top-k=3:", "unknown tail policy ''"),
    ],
)
def test_choices_that_are_none(text: str, message: str) -> None:
    """A policy by mistake would be another teacher."""
    with pytest.raises(KdzooError, match=message):
        parse(text)


def fits(
    text: str, teacher: Sequence[str], k_classes: int = 10, fixed: bool = True, taught: bool = True
) -> None:
    cards = catalog.load()
    card = cards.method("hinton-kd")
    roles = (
        card.roles if taught else {name: role for name, role in card.roles.items() if role.kind != "frozen"}
    )
    changed = type(card)(
        **{**{n: getattr(card, n) for n in card.__struct_fields__}, "teacher": list(teacher), "roles": roles}
    )
    task = cards.task("fashion-few-labels")
    check(parse(text), task, [("the-arm", changed)], fixed)


@pytest.mark.parametrize(
    ("text", "teacher", "message"),
    [
        (
            "top-k=3",
            ["features", "logits"],
            "'the-arm'.*takes features, logits.*its features would be missing",
        ),
        ("top-k=3", ["embedding"], "its embedding would be missing"),
        ("top-k=3:tail-bucket", ["logits"], "does not bring its student's logits into the same classes"),
        ("top-k=10", ["logits"], "got K = 10, expected less than the 10 classes"),
        ("recorded", ["text"], "no arm of this bench pulls embedding, features, logits"),
    ],
)
def test_what_a_method_does_not_take_is_refused(text: str, teacher: list[str], message: str) -> None:
    """Found after the teacher was loaded and recorded, the mistake costs hours."""
    with pytest.raises(KdzooError, match=message):
        fits(text, teacher)


@pytest.mark.parametrize(
    ("text", "teacher"),
    [
        ("live", ["text"]), ("recorded", ["features", "logits"]), ("recorded", ["embedding"]), ("top-k=9", ["logits"]),
        ("top-k=3:drop", ["logits"]), ("top-k=3:tail-bucket", ["logits", "top-k"]),
    ],
)  # fmt: skip
def test_what_a_method_takes_is_served(text: str, teacher: list[str]) -> None:
    """A refusal too many sends people back to the live teacher for nothing."""
    fits(text, teacher)


def test_without_fixed_views_there_is_nothing_to_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording that no step could use would be made for nothing, and the user would believe in it."""
    with pytest.raises(KdzooError, match=r"draws a new view of each sample at each step.*--signals live"):
        fits("recorded", ["logits"], fixed=False)
    monkeypatch.setattr(execute, "fixed_splits", lambda spec: [])
    with pytest.raises(KdzooError, match="fashion-few-labels draws a new view"):
        make_plan(Request("hinton-kd", seeds=1, signals="recorded"))


def test_an_arm_without_a_teacher_takes_everything() -> None:
    """Self-distillation beside a taught arm must not stop the bench."""
    with pytest.raises(KdzooError, match="no arm of this bench"):
        fits("recorded", ["logits"], taught=False)
    fits("top-k=3", ["features"], taught=False)


def keys(signals: str, arm: str) -> dict[str, str]:
    plan: Plan = make_plan(Request("hinton-kd", seeds=1, signals=signals))
    return {spec.stage.name: spec.key for spec in plan.runs[(arm, 0)]}


def test_recorded_signals_enter_the_keys_of_taught_stages_only() -> None:
    """The student alone is shared with live benches; a result on recorded or shortened answers is never passed off as
    a live one."""
    found = {
        text: (keys(text, "student"), keys(text, "hinton-kd"))
        for text in ("live", "recorded", "top-k=3", "top-k=3:drop")
    }
    students, taught = zip(*found.values(), strict=True)
    assert all(one == students[0] for one in students)
    assert len({one["fit"] for one in taught}) == 4
    assert len({one["evaluate"] for one in taught}) == 4
    assert keys("top-k=3", "hinton-kd") == keys("top-k=3:spread", "hinton-kd")
