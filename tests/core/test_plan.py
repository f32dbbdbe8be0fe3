"""The plan of a bench: every artefact once, shared by whoever would make the same thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdzoo import catalog
from kdzoo.errors import KdzooError
from kdzoo.plan import Plan, Request, claims_on, make_plan

MODULE = """
from types import SimpleNamespace
asked = []
def data(run, name):
    asked.append(name)
    return SimpleNamespace(hash=f"{name} of {run.cfg['labels']}")
"""
LABELS = '\nlabels = { default = 500, text = "labels", low = 1 }\n'
ARMS = """
[switches.soft]
off = { kd_weight = 0 }
component = "C1"

[arms."toy-kd.fine"]
text = "finer bins"
set = { "eval.bins" = 30 }

[arms."toy-kd.same"]
text = "the default, said again"
set = { kd_weight = 1.0 }
"""
CLAIMS = """
[[claims]]
claim = 1
kind = "order"
metric = "test/accuracy"
arms = ["toy-kd", "student"]

[[claims]]
claim = 2
kind = "order"
metric = "test/recall"
arms = ["toy-kd", "student"]
"""


@pytest.fixture
def bench(write_cards: Any, plugged: Any) -> Any:
    """Write the toy cards (and a second method, my-kd), install them, and plan benches on them."""

    def install(method: str = ARMS, task: Any = LABELS, other: tuple[str, str] = ("", "")) -> Any:
        package: Path = write_cards(method=method, task=task)
        (package / "tasks" / "toy_task.py").write_text(MODULE)
        text = (package / "methods" / "toy-kd.toml").read_text().replace("toy-kd", "my-kd").replace(*other)
        (package / "methods" / "my-kd.toml").write_text(text)
        (package / "methods" / "my_kd.py").write_text("")
        plugged(
            toy=f"from pathlib import Path\n@hookimpl\ndef cards():\n"
            f"    return [Path({str(package)!r}) / 'methods', Path({str(package)!r}) / 'tasks']",
            extensions={"ext": "@hookimpl\ndef after_step(run): pass"},
        )

        def plan(slug: str = "toy-kd", **request: Any) -> Plan:
            return make_plan(Request(slug, **{"seeds": 2, "arms": "all", **request}))

        return plan

    return install


def keys(plan: Plan, arm: str, seed: int | None = 0) -> dict[str, str]:
    return {spec.stage.name: spec.key for spec in plan.runs[(arm, seed)]}


def test_every_arm_and_seed_is_planned(bench: Any) -> None:
    """The teacher's arm has no seed: one teacher serves all."""
    plan = bench()()
    seeded = ["student", "toy-kd", "toy-kd.without-soft", "toy-kd.fine", "toy-kd.same"]
    assert list(plan.runs) == [("teacher", None), *((arm, seed) for arm in seeded for seed in (0, 1))]
    assert {spec.seed for spec in plan.runs[("toy-kd", 1)] if spec.stage.seeded} == {1}


def test_the_teacher_is_made_once(bench: Any) -> None:
    """Every arm and seed that needs it names the same artefact, whatever the arm sets."""
    plan = bench()()
    teachers = {spec.key for specs in plan.runs.values() for spec in specs if spec.stage.name == "teacher"}
    assert len(teachers) == 1
    (spec,) = [spec for spec in plan.specs.values() if spec.stage.name == "teacher"]
    assert (spec.method, spec.seed, spec.arm) == (None, None, "teacher")
    assert spec.settings["steps"] == 30
    assert "kd_weight" not in spec.settings


def test_needs_come_before_what_needs_them(bench: Any) -> None:
    """Workers are handed stages in this order."""
    seen: set[str] = set()
    for spec in bench()().specs.values():
        assert set(spec.needs.values()) <= seen
        seen.add(spec.key)


def test_two_methods_share_the_student(bench: Any) -> None:
    """The student alone is trained once for all methods of a task, and the baseline too."""
    plan = bench()
    mine, toy = plan("my-kd"), plan("toy-kd")
    assert keys(mine, "student") == keys(toy, "student")
    assert keys(mine, "toy-kd") == keys(toy, "toy-kd")
    assert keys(mine, "my-kd")["fit"] != keys(toy, "toy-kd")["fit"]
    assert keys(mine, "my-kd")["teacher"] == keys(toy, "toy-kd")["teacher"]


def test_settings_of_evaluation_share_the_fit(bench: Any) -> None:
    """An arm that only evaluates otherwise must not be trained again."""
    plan = bench()()
    plain, fine = keys(plan, "toy-kd"), keys(plan, "toy-kd.fine")
    assert plain["fit"] == fine["fit"]
    assert plain["evaluate"] != fine["evaluate"]


def test_equal_arms_are_one(bench: Any) -> None:
    """Sharing needs no declaration: an arm that sets what is the default is the method."""
    plan = bench()()
    assert keys(plan, "toy-kd.same") == keys(plan, "toy-kd")
    assert keys(plan, "toy-kd.without-soft")["fit"] != keys(plan, "toy-kd")["fit"]


@pytest.mark.parametrize(
    ("request_", "fit_differs", "student_differs"),
    [
        ({"set": ("lr=0.2",)}, True, True),
        ({"set": ("kd_weight=2",)}, True, False),
        ({"set": ("labels=20",)}, True, True),
        ({"set": ("eval.bins=20",)}, False, False),
        ({"threads": 2}, True, True),
        ({"dtype": "bfloat16"}, True, True),
        ({"extensions": ("ext",)}, True, True),
        ({"smoke": True}, True, True),
        ({"seeds": 3}, False, False),
        ({"arms": "default"}, False, False),
    ],
)
def test_what_enters_the_key(
    bench: Any, request_: dict[str, Any], fit_differs: bool, student_differs: bool
) -> None:
    """All that can change a number, and nothing else: the number of seeds does not retrain seed 0."""
    plan = bench()
    before, after = plan(), plan(**request_)
    assert (keys(before, "toy-kd")["fit"] != keys(after, "toy-kd")["fit"]) is fit_differs
    assert (keys(before, "student")["fit"] != keys(after, "student")["fit"]) is student_differs


def test_seeds_differ_only_where_a_stage_is_seeded(bench: Any) -> None:
    """Seed 1 has its own fit and the same teacher."""
    plan = bench()()
    first, second = keys(plan, "toy-kd", 0), keys(plan, "toy-kd", 1)
    assert first["teacher"] == second["teacher"]
    assert first["fit"] != second["fit"]


def test_a_new_version_of_a_card_makes_new_artefacts(bench: Any) -> None:
    """The method's version enters its arms' keys and nobody else's."""
    plan = bench()
    before = plan()
    path = catalog.load().paths["toy-kd"]
    path.write_text(path.read_text().replace("family =", "version = 2\nfamily ="))
    catalog.load.cache_clear()
    after = plan()
    assert keys(after, "toy-kd")["fit"] != keys(before, "toy-kd")["fit"]
    assert keys(after, "student") == keys(before, "student")


def test_data_is_asked_once_for_each_set_of_values(bench: Any) -> None:
    """Hashing a data set for every arm and seed would make planning slow."""
    import sys

    plan = bench()()
    asked = sys.modules["toy_cards.tasks.toy_task"].asked
    assert len(asked) == 3 * len(plan.data)
    assert len(plan.data) < len(plan.specs)


def test_what_a_bench_of_a_method_changes_for_all_arms(bench: Any) -> None:
    """The schedule of a method's paper is the student's too, and the user still has the last word."""
    plan = bench(method=ARMS, other=("default = true\n", "default = true\nbench = { lr = 0.3 }\n"))
    assert plan("my-kd").settings["student"]["lr"] == 0.3
    assert plan("my-kd").settings["my-kd"]["lr"] == 0.3
    assert plan("my-kd", set=("lr=0.4",)).settings["student"]["lr"] == 0.4
    assert plan("toy-kd").settings["student"]["lr"] == 0.1


def test_smoke_takes_three_steps_everywhere(bench: Any) -> None:
    """The teacher's 30 steps too: a smoke run asks only whether every path runs."""
    plan = bench()(smoke=True)
    assert {spec.settings["steps"] for spec in plan.specs.values()} == {3}


def test_claims_that_speak_of_this_task(bench: Any) -> None:
    """A claim about a metric of another task is that task's; the others are checked before anything runs."""
    plan = bench(method=ARMS + CLAIMS)
    made = plan()
    assert [claim.claim for claim in claims_on(made.card, made.task)] == [1]
    wrong = bench(method=ARMS + CLAIMS.replace('["toy-kd", "student"]', '["toy-kd", "studnt"]'))
    with pytest.raises(KdzooError, match=r"unknown arm 'studnt'. Did you mean student"):
        wrong()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"seeds": 0}, "--seeds got 0, expected at least 1"),
        ({"seeds": 1001}, "--seeds got 1001, expected at most 1000"),
        ({"task": "toy"}, "unknown task 'toy'. Did you mean toy-task"),
        ({"profile": "paper"}, "toy-kd has no profile 'paper'.*it has local"),
        ({"arms": "toy-kf"}, "unknown arm 'toy-kf'. Did you mean toy-kd"),
        ({"set": ("lrr=1",)}, "unknown setting 'lrr'. Did you mean lr"),
        ({"extensions": ("exz",)}, "unknown extension 'exz'. Did you mean ext"),
        ({"set": ("kd_weight=-1",)}, "--set kd_weight=-1: got -1.0, expected at least 0"),
    ],
)
def test_what_is_refused_before_anything_runs(bench: Any, request_: dict[str, Any], message: str) -> None:
    """A mistake costs a second, not the first arm's training."""
    with pytest.raises(KdzooError, match=message):
        bench()(**request_)


def test_a_task_that_does_not_fit_the_method(bench: Any) -> None:
    """Both exist, but not together."""
    plan = bench(other=("[tasks.toy-task]", "[tasks.other-task]"))
    with pytest.raises(KdzooError, match=r"unknown task for my-kd 'toy-task'.*my-kd runs on: other-task"):
        plan("my-kd", task="toy-task")
