"""Arms: which there are, in which order, what they set, and what ``--arms`` picks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdzoo import catalog
from kdzoo.arms import Arm, arms_of, roles_of, select, settings_of, ships_of, stages_of
from kdzoo.errors import KdzooError
from kdzoo.method import EVALUATE, FIT

ARMS = """
[switches.soft]
off = { kd_weight = 0 }
component = "C1"
default = true

[switches.elsewhere]
off = { kd_weight = 0 }
component = "C1"
tasks = ["other-task"]

[arms."toy-kd.hot"]
text = "hotter"
set = { lr = 0.5 }
grid = { kd_weight = [1.0, 2.5] }

[arms."toy-kd.grid"]
text = "two axes"
grid = { kd_weight = [1.0, 2.0], steps = [5, 6] }

[arms."toy-kd.longer"]
text = "longer"
set = { steps = 20 }
differs = ["steps"]
why = "twice the steps"
default = true
control = true

[tasks.other-task]
"""


def cards_of(write_cards: Any, method: Any = ARMS, task: Any = "") -> catalog.Catalog:
    package: Path = write_cards(method=method, task=task)
    found = catalog.collect([package / "methods", package / "tasks"])
    assert not found.broken, found.broken
    return found


def add_method(found: catalog.Catalog, slug: str, change: Any = ("", "")) -> None:
    """A second method, made of the toy card."""
    path = found.paths["toy-kd"]
    text = path.read_text().replace("toy-kd", slug).replace(*change)
    path.with_name(f"{slug}.toml").write_text(text)
    again = catalog.collect([path.parent, path.parents[1] / "tasks"])
    assert not again.broken, again.broken
    found.methods.update(again.methods)
    found.paths.update(again.paths)


@pytest.fixture
def found(write_cards: Any) -> catalog.Catalog:
    return cards_of(write_cards)


@pytest.fixture
def arms(found: catalog.Catalog) -> dict[str, Arm]:
    return arms_of(found, found.methods["toy-kd"], found.tasks["toy-task"])


def test_the_order_of_the_table(arms: dict[str, Arm]) -> None:
    """Teacher, student, method, switches, arms; a method that is the task's baseline is there once."""
    assert list(arms) == [
        "teacher",
        "student",
        "toy-kd",
        "toy-kd.without-soft",
        "toy-kd.hot[1.0]",
        "toy-kd.hot[2.5]",
        "toy-kd.grid[kd_weight=1.0,steps=5]",
        "toy-kd.grid[kd_weight=1.0,steps=6]",
        "toy-kd.grid[kd_weight=2.0,steps=5]",
        "toy-kd.grid[kd_weight=2.0,steps=6]",
        "toy-kd.longer",
    ]


def test_switches_and_grids_set_what_they_say(arms: dict[str, Arm]) -> None:
    """An arm's name and its settings must not drift apart."""
    assert arms["toy-kd.without-soft"].set == {"kd_weight": 0}
    assert arms["toy-kd.without-soft"].text == "without soft targets"
    assert arms["toy-kd.hot[2.5]"].set == {"lr": 0.5, "kd_weight": 2.5}
    assert arms["toy-kd.grid[kd_weight=2.0,steps=5]"].set == {"kd_weight": 2.0, "steps": 5}
    longer = arms["toy-kd.longer"]
    assert (longer.differs, longer.why, longer.control) == (("steps",), "twice the steps", True)
    assert arms["student"].method is None


def test_another_tasks_switch_is_no_arm_here(arms: dict[str, Arm]) -> None:
    """Its setting may not even exist on this task."""
    assert "toy-kd.without-elsewhere" not in arms


def test_the_baseline_of_another_method(write_cards: Any) -> None:
    """The task's plain baseline stands beside every other method, with the settings the task gives it."""
    found = cards_of(
        write_cards,
        task=('kd = { method = "toy-kd" }', 'kd = { method = "toy-kd", set = { kd_weight = 3 } }'),
    )
    add_method(found, "my-kd")
    arms = arms_of(found, found.methods["my-kd"], found.tasks["toy-task"])
    assert list(arms)[:4] == ["teacher", "student", "toy-kd", "my-kd"]
    assert arms["toy-kd"].set == {"kd_weight": 3}
    assert arms["toy-kd"].default


def test_what_a_whole_method_differs_in_holds_for_all_its_arms(write_cards: Any) -> None:
    """Each arm would have to say it again; one that forgets is refused after its training."""
    own = 'differs = ["order"]\nwhy = "its own data"\n\n[paper]'
    found = cards_of(write_cards)
    add_method(found, "my-kd", ("[paper]", own))
    arms = arms_of(found, found.methods["my-kd"], found.tasks["toy-task"])
    mine = {name: arm for name, arm in arms.items() if arm.method == "my-kd"}
    assert {"my-kd", "my-kd.without-soft", "my-kd.longer"} <= set(mine)
    assert all("order" in arm.differs and "its own data" in arm.why for arm in mine.values())
    assert set(mine["my-kd.longer"].differs) == {"order", "steps"}
    assert "twice the steps" in mine["my-kd.longer"].why
    assert [arms[name].differs for name in ("student", "toy-kd")] == [(), ()]


def test_a_method_that_differs_must_say_why(write_cards: Any) -> None:
    """A table with a star and no reason below it."""
    package: Path = write_cards(method=("[paper]", 'differs = ["order"]\n\n[paper]'))
    found = catalog.collect([package / "methods", package / "tasks"])
    assert "differs = ['order'] needs a why" in found.broken["toy-kd"]


def test_a_task_without_baseline_and_teacher(write_cards: Any) -> None:
    """The columns are absent, not empty."""
    found = cards_of(write_cards, task=('kd = { method = "toy-kd" }', 'kd = "none: no logits"'))
    add_method(found, "my-kd")
    assert "toy-kd" not in arms_of(found, found.methods["my-kd"], found.tasks["toy-task"])
    found = cards_of(
        write_cards, task=('[teacher]\ntext = "a curve trained on all points"\nset = { steps = 30 }\n', "")
    )
    assert "teacher" not in arms_of(found, found.methods["toy-kd"], found.tasks["toy-task"])


def test_claims_bring_the_arms_of_other_methods(write_cards: Any) -> None:
    """A claim "better than X" can only be answered where X runs too; but not in the plain bench."""
    claim = '[[claims]]\nclaim = 1\nkind = "order"\nmetric = "test/accuracy"\narms = ["toy-kd", "my-kd"]\n'
    found = cards_of(write_cards, method=ARMS + claim)
    assert "my-kd" not in arms_of(found, found.methods["toy-kd"], found.tasks["toy-task"])
    add_method(found, "my-kd", (claim, ""))
    arms = arms_of(found, found.methods["toy-kd"], found.tasks["toy-task"])
    assert list(arms)[-1] == "my-kd"
    assert not arms["my-kd"].default


def test_a_claim_about_another_task_brings_no_arm(write_cards: Any) -> None:
    """A bench must not train a method for a claim on a metric that this task does not have."""
    claim = '[[claims]]\nclaim = 1\nkind = "order"\nmetric = "test/recall@1"\narms = ["toy-kd", "my-kd"]\n'
    found = cards_of(write_cards, method=ARMS + claim)
    add_method(found, "my-kd", (claim, ""))
    assert "my-kd" not in arms_of(found, found.methods["toy-kd"], found.tasks["toy-task"])


# --- --arms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("default", ["toy-kd", "toy-kd.without-soft", "toy-kd.longer"]),
        ("toy-kd", ["toy-kd"]),
        ("kd", ["toy-kd"]),
        ("toy-kd.hot*", ["toy-kd.hot[1.0]", "toy-kd.hot[2.5]"]),
        ("toy-kd.hot[1.0]", ["toy-kd.hot[1.0]"]),
        ("*[2.5]", ["toy-kd.hot[2.5]"]),
        ("toy-kd.hot[?.5]", ["toy-kd.hot[2.5]"]),
        ("toy-kd.grid[kd_weight=2.0,steps=6]", ["toy-kd.grid[kd_weight=2.0,steps=6]"]),
        (
            "toy-kd.grid[kd_weight=2.0,steps=6], toy-kd.longer",
            ["toy-kd.grid[kd_weight=2.0,steps=6]", "toy-kd.longer"],
        ),
        ("*?steps=5]", ["toy-kd.grid[kd_weight=1.0,steps=5]", "toy-kd.grid[kd_weight=2.0,steps=5]"]),
        ("student", []),
        ("teacher,", []),
        ("default,toy-kd.hot[1.0]", ["toy-kd", "toy-kd.without-soft", "toy-kd.hot[1.0]", "toy-kd.longer"]),
        ("toy-kd.longer,toy-kd", ["toy-kd", "toy-kd.longer"]),
    ],
)
def test_select(found: catalog.Catalog, arms: dict[str, Arm], wanted: str, expected: list[str]) -> None:
    """Teacher and student always come along, the order stays the table's, and commas in brackets belong to names."""
    assert list(select(arms, wanted, found.tasks["toy-task"])) == ["teacher", "student", *expected]


def test_select_all(found: catalog.Catalog, arms: dict[str, Arm]) -> None:
    assert select(arms, "all", found.tasks["toy-task"]) == arms
    assert select(arms, "*", found.tasks["toy-task"]) == arms


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            "toy-kd.hott",
            r"unknown arm 'toy-kd.hott'\. Did you mean toy-kd.hot\[2.5\], .*Known: teacher, student, toy-kd",
        ),
        ("toy-kd,nope*", r"unknown arm 'nope\*'"),
        ("toy-kd.hot[1.0", r"unknown arm 'toy-kd.hot\[1.0'"),
        ("]x,toy-kd", r"unknown arm '\]x'"),
        ("", "--arms got '', expected 'default', 'all', or names: teacher, student"),
        (" , ", "--arms got ' , ', expected"),
    ],
)
def test_select_refuses(found: catalog.Catalog, arms: dict[str, Arm], wanted: str, message: str) -> None:
    """An arm that is not run because its name was misspelt would look like a claim without an answer."""
    with pytest.raises(KdzooError, match=message):
        select(arms, wanted, found.tasks["toy-task"])


def test_kd_where_there_is_none(write_cards: Any) -> None:
    """The reason is the task's own."""
    found = cards_of(write_cards, task=('kd = { method = "toy-kd" }', 'kd = "none: no logits"'))
    task = found.tasks["toy-task"]
    with pytest.raises(
        KdzooError, match=r"--arms kd: task 'toy-task' has no plain baseline \(none: no logits\)"
    ):
        select(arms_of(found, found.methods["toy-kd"], task), "kd", task)


# --- settings, roles, stages --------------------------------------------------------------------------------------


def test_an_arms_own_setting_beats_the_users(found: catalog.Catalog, arms: dict[str, Arm]) -> None:
    """--set kd_weight=5 must not turn an ablation back on."""
    task = found.tasks["toy-task"]
    assert settings_of(arms["toy-kd"], found, task, {"kd_weight": 5.0})["kd_weight"] == 5.0
    assert settings_of(arms["toy-kd.without-soft"], found, task, {"kd_weight": 5.0})["kd_weight"] == 0
    assert "kd_weight" not in settings_of(arms["student"], found, task, {"kd_weight": 5.0})


@pytest.mark.parametrize("where", ["user", "task", "arm"])
def test_accumulation_is_refused_where_the_batch_couples(write_cards: Any, where: str) -> None:
    """The mean of a relational loss over micro-batches is another loss, whoever asked for them."""
    arm = '[arms."toy-kd.acc"]\ntext = "accumulated"\nset = { accumulate = 2 }\n'
    text = ARMS + (arm if where == "arm" else "")
    found = cards_of(write_cards, method=text)
    path = found.paths["toy-kd"]
    changed = path.read_text().replace("family =", "couples_batch = true\nfamily =")
    if where == "task":
        changed = changed.replace("[tasks.toy-task]\n", "[tasks.toy-task]\nset = { accumulate = 2 }\n")
    path.write_text(changed)
    found = catalog.collect([path.parent, path.parents[1] / "tasks"])
    task = found.tasks["toy-task"]
    arms = arms_of(found, found.methods["toy-kd"], task)
    user = {"accumulate": 2} if where == "user" else {}
    with pytest.raises(
        KdzooError, match=r"accumulate = 2 with 'toy-kd.*couples the samples.*Use accumulate = 1"
    ):
        settings_of(arms["toy-kd.acc" if where == "arm" else "toy-kd"], found, task, user)
    assert settings_of(arms["student"], found, task, user)["accumulate"] == (2 if where == "user" else 1)


def test_roles_and_what_ships(found: catalog.Catalog, arms: dict[str, Arm]) -> None:
    """The student alone builds no teacher; the teacher's arm ships the teacher."""
    task = found.tasks["toy-task"]
    assert [role.name for role in roles_of(arms["student"], found, task)] == ["student"]
    assert [(role.name, role.kind) for role in roles_of(arms["toy-kd"], found, task)] == [
        ("student", "train"),
        ("teacher", "frozen"),
    ]
    assert ships_of(arms["teacher"], found, task) == ("teacher",)
    assert ships_of(arms["toy-kd"], found, task) == ("student",)


def test_a_task_may_train_several_models(write_cards: Any) -> None:
    """A task of two models must not hand its student arm one that is called student, nor ship only that."""
    roles = 'roles = { wide = {}, deep = {}, wide-ema = { kind = "own" } }\nships = ["wide-ema"]\n'
    found = cards_of(write_cards, task=('kind = "classification"\n', 'kind = "classification"\n' + roles))
    task = found.tasks["toy-task"]
    arms = arms_of(found, found.methods["toy-kd"], task)
    assert [(role.name, role.kind) for role in roles_of(arms["student"], found, task)] == [
        ("wide", "train"),
        ("deep", "train"),
        ("wide-ema", "own"),
    ]
    assert ships_of(arms["student"], found, task) == ("wide-ema",)
    assert stages_of(arms["student"], found, task, {})[-1].roles[0].source == "stage:fit/wide-ema"
    assert ships_of(arms["toy-kd"], found, task) == ("student",)


def plan_of(name: str, found: catalog.Catalog, arms: dict[str, Arm]) -> list[Any]:
    task = found.tasks["toy-task"]
    return stages_of(arms[name], found, task, settings_of(arms[name], found, task, {}))


def test_the_default_plan(found: catalog.Catalog, arms: dict[str, Arm]) -> None:
    """Teacher (one for all seeds), fit, evaluate; the student's fit does not wait for a teacher it never asks."""
    stages = plan_of("toy-kd", found, arms)
    assert [(s.name, s.call, s.needs, s.seeded) for s in stages] == [
        ("teacher", FIT, (), False),
        ("fit", FIT, ("teacher",), True),
        ("evaluate", EVALUATE, ("fit", "teacher"), True),
    ]
    assert stages[0].set == {"steps": 30}
    student = {stage.name: stage for stage in plan_of("student", found, arms)}
    assert student["fit"].needs == ()
    assert [stage.name for stage in plan_of("teacher", found, arms)] == ["teacher", "evaluate"]


def test_a_pipelines_own_plan_and_until(found: catalog.Catalog, arms: dict[str, Arm]) -> None:
    """An arm that stops at an intermediate stage is evaluated there; an unknown stage is named."""
    found.paths["toy-kd"].with_name("toy_kd.py").write_text(
        "from kdzoo.method import Stage, fit_stage\n"
        "def plan(cfg):\n"
        "    fit = fit_stage(needs=('write',), set={'lr': cfg.lr / 2})\n"
        "    return [Stage('write', 'm:f'), fit, Stage('prune', 'm:g', ('fit',))]\n"
    )
    assert [stage.name for stage in plan_of("toy-kd", found, arms)] == [
        "teacher",
        "write",
        "fit",
        "prune",
        "evaluate",
    ]
    assert plan_of("toy-kd.hot[1.0]", found, arms)[2].set == {"lr": 0.25}
    stopped = {"toy-kd": replace(arms["toy-kd"], until="fit")}
    stages = plan_of("toy-kd", found, stopped)
    assert [stage.name for stage in stages] == ["teacher", "write", "fit", "evaluate"]
    assert stages[-1].needs == ("fit", "teacher")
    stopped = {"toy-kd": replace(arms["toy-kd"], until="prone")}
    with pytest.raises(KdzooError, match=r"unknown stage 'prone'\. Did you mean prune\?"):
        plan_of("toy-kd", found, stopped)


def test_a_task_may_plan_for_whoever_has_no_plan(found: catalog.Catalog, arms: dict[str, Arm]) -> None:
    """Where classes come in steps, a student alone trained in one piece would be compared with those of many."""
    found.paths["toy-task"].with_name("toy_task.py").write_text(
        "from kdzoo.method import fit_stage\n"
        "def plan(cfg):\n"
        "    return [fit_stage('first'), fit_stage('second', needs=('first',))]\n"
    )
    for name in ("student", "toy-kd"):
        assert [s.name for s in plan_of(name, found, arms)] == ["teacher", "first", "second", "evaluate"]


def test_a_methods_own_plan_goes_before_the_tasks(found: catalog.Catalog, arms: dict[str, Arm]) -> None:
    """Its stages would never run."""
    for card, stage in (("toy-task", "task"), ("toy-kd", "own")):
        found.paths[card].with_name(f"{card.replace('-', '_')}.py").write_text(
            f"from kdzoo.method import fit_stage\ndef plan(cfg):\n    return [fit_stage('{stage}')]\n"
        )
    assert [s.name for s in plan_of("toy-kd", found, arms)] == ["teacher", "own", "evaluate"]
    assert [s.name for s in plan_of("student", found, arms)] == ["teacher", "task", "evaluate"]


def test_a_plan_may_name_who_else_is_to_be_measured(found: catalog.Catalog, arms: dict[str, Arm]) -> None:
    """A method with teachers of its own would be measured against the task's alone; a stage left out has no weights."""
    found.paths["toy-kd"].with_name("toy_kd.py").write_text(
        "from kdzoo.method import Role, Stage, evaluate_stage, fit_stage\n"
        "def plan(cfg):\n"
        "    mine, late = Role('mine', 'own', 'stage:mine/student'), Role('late', 'frozen', 'stage:late')\n"
        "    shown = evaluate_stage(roles=(Role('student'), mine, late))\n"
        "    return [fit_stage('mine'), fit_stage(needs=('mine',)), Stage('late', 'm:f', ('fit',)), shown]\n"
    )
    last = plan_of("toy-kd", found, {"toy-kd": replace(arms["toy-kd"], until="fit")})[-1]
    assert last.needs == ("fit", "teacher", "mine")
    assert [(role.name, role.kind, role.source) for role in last.roles or ()] == [
        ("student", "frozen", "stage:fit/student"),
        ("teacher", "frozen", "task"),
        ("mine", "frozen", "stage:mine/student"),
    ]
    assert plan_of("toy-kd", found, arms)[-1].needs == ("late", "teacher", "mine")
