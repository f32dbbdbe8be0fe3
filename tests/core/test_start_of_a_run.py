"""Where a run starts, when it trains more than one thing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kdzoo.bench import _start_of
from kdzoo.method import EVALUATE, FIT, Role


def stage(
    name: str, source: str, beside: str = "task", *, seeded: bool = True, call: str = FIT
) -> tuple[Any, dict[str, Any]]:
    """A stage that trains a student from `source` beside a frozen role; the hash of its start is its name's."""
    spec = SimpleNamespace(
        stage=SimpleNamespace(name=name, seeded=seeded),
        roles=(Role("previous", "frozen", beside), Role("student", "train", source)),
    )
    return spec, {"call": call, "facts": {"init_hash": f"start of {name}"}}


@pytest.mark.parametrize(
    ("stages", "start"),
    [
        ([stage("fit", "init")], "fit"),
        ([stage("critic", "init"), stage("fit", "init")], "fit"),  # a critic is no part of the student
        ([stage("fit", "init"), stage("tune", "stage:fit"), stage("cut", "stage:tune/student")], "fit"),
        (
            [stage("one", "init"), stage("two", "init", "stage:one"), stage("three", "init", "stage:two")],
            "one",
        ),
        ([stage("base", "init", seeded=False), stage("fit", "stage:base")], "fit"),  # all seeds' base
        ([stage("fit", "init"), stage("evaluate", "stage:fit", call=EVALUATE)], "fit"),
    ],
)
def test_the_first_training_of_what_ships(stages: list[tuple[Any, dict[str, Any]]], start: str) -> None:
    """An arm with a critic was called unfair: the critic's start was taken for the student's."""
    specs, manifests = zip(*stages, strict=True)
    assert _start_of(specs, manifests) == f"start of {start}"


def test_nothing_that_is_trained() -> None:
    """A teacher that comes as it is."""
    spec, manifest = stage("evaluate", "task", call=EVALUATE)
    assert _start_of([spec], [manifest]) is None
