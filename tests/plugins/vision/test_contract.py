"""The contract of kdzoo on every method of the plugin, and what only this plugin's tasks can show."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdzoo.artefacts import Store
from kdzoo.bench import make_record
from kdzoo.errors import KdzooError
from kdzoo.execute import source_hash
from kdzoo.plan import Request, make_plan
from kdzoo.testing.contract import MethodContract
from kdzoo.workers import Options, run_all


class TestContract(MethodContract):
    plugin = "vision"


@pytest.mark.parametrize("seed", [0, 1])
def test_student_starts_alike_in_all_arms(tmp_path: Path, seed: int) -> None:
    """One more projector or teacher must not move the student's initialisation or the data order."""
    plan = make_plan(Request(method="fitnets", arms="fitnets,hinton-kd", seeds=seed + 1, smoke=True))
    made = run_all(plan.specs, Options(tmp_path, jobs=0), lambda *_: None)
    record = make_record(plan, made, Store(tmp_path), "kdzoo bench", {})
    rows = [row for row in record.runs if row.seed == seed]
    assert len(rows) == 3
    assert len({row.init_hash for row in rows}) == 1
    assert len({row.order_hash for row in rows}) == 1
    assert len({row.steps for row in rows}) == 1


def test_a_loss_that_couples_the_batch_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the triplet loss over two half batches is another loss than the student's in the record."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(KdzooError, match="2 processes with 'student'"):
        make_plan(Request("fitnets", task="emoji-retrieval"))
    make_plan(Request("hinton-kd"))


def test_code_that_tasks_share_counts_as_their_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed triplet loss must not pass for unchanged because it is not in the task's own file."""
    spec = next(iter(make_plan(Request("rkd", smoke=True)).specs.values()))
    before = source_hash(spec)
    monkeypatch.setattr(
        "kdzoo.execute._code", lambda module: module.__name__.replace("vision.retrieval", "changed")
    )
    named = source_hash(spec)
    monkeypatch.setattr("kdzoo.execute._code", lambda module: module.__name__)
    assert len({before, named, source_hash(spec)}) == 3


def test_seeds_may_begin_elsewhere() -> None:
    """A search on the records' own seeds would choose what fits their luck."""
    plan = make_plan(Request("hinton-kd", seeds=2, first_seed=100))
    assert {seed for arm, seed in plan.runs if arm == "student"} == {100, 101}
