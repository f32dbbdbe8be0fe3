"""Settings: what a stage may read, which layer wins, and what ``--set`` makes of text."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from kdzoo import cards
from kdzoo.cards import MethodCard, Param, TaskCard
from kdzoo.errors import KdzooError
from kdzoo.settings import Settings, defined, parse_assignments, resolve, restrict

VALUES = {"lr": 0.1, "steps": 10, "eval.bins": 15, "eval.beam": 4}


@pytest.fixture
def toy(write_cards: Any) -> tuple[TaskCard, MethodCard]:
    package: Path = write_cards(
        method=("default = true", "default = true\nset = { lr = 0.2, kd_weight = 2.0 }")
    )
    task = cards.read(package / "tasks" / "toy-task.toml", TaskCard)
    return task, cards.read(package / "methods" / "toy-kd.toml", MethodCard)


# --- what a stage may read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        (("*",), ["eval.beam", "eval.bins", "lr", "steps"]),
        (("*", "!eval.*"), ["lr", "steps"]),
        (("eval.*",), ["eval.beam", "eval.bins"]),
        (("*", "!eval.*", "eval.bins"), ["eval.bins", "lr", "steps"]),
        (("!eval.*", "*"), ["eval.beam", "eval.bins", "lr", "steps"]),
        (("lr",), ["lr"]),
        ((), []),
    ],
)
def test_restrict(reads: tuple[str, ...], expected: list[str]) -> None:
    """Patterns apply in turn; the order of the result does not depend on the order of the values."""
    assert list(restrict(VALUES, reads)) == expected
    assert list(restrict(dict(reversed(VALUES.items())), reads)) == expected


def test_both_ways_of_reading_agree() -> None:
    """``cfg.lr`` and ``cfg["lr"]`` are one look-up."""
    cfg = Settings(VALUES)
    assert cfg.lr == cfg["lr"] == cfg.get("lr") == 0.1
    assert dict(cfg) == VALUES
    assert len(cfg) == 4
    assert "lr" in cfg
    assert "nonsense" not in cfg


def test_a_setting_that_is_not_in_reads_raises() -> None:
    """A value that is read but not in the key would let two different results share one artefact."""
    cfg = Settings(VALUES, ("*", "!eval.*"), "fit")
    for read in (
        lambda: cfg["eval.bins"],
        lambda: getattr(cfg, "eval.bins"),
        lambda: cfg.get("eval.bins", 1),
    ):
        with pytest.raises(
            KdzooError, match=r"stage 'fit' reads the setting 'eval.bins'.*Add the name to the stage's"
        ):
            read()
    assert "eval.bins" not in cfg
    assert list(cfg) == ["lr", "steps"]


def test_a_setting_that_nobody_defines() -> None:
    """get has a default for it; everything else names the nearest."""
    cfg = Settings(VALUES)
    assert cfg.get("momentum", 0.9) == 0.9
    with pytest.raises(KdzooError, match=r"unknown setting 'step'\. Did you mean steps\?"):
        _ = cfg.step
    with pytest.raises(KdzooError, match="unknown setting 'step'"):
        cfg["step"]


def test_settings_cannot_be_changed() -> None:
    """A hook that changed them would change what other hooks read, without the key knowing."""
    cfg = Settings(VALUES)
    with pytest.raises(AttributeError, match="read-only"):
        cfg.lr = 1.0
    with pytest.raises(TypeError):
        cfg["lr"] = 1.0  # type: ignore[index]
    source = dict(VALUES)
    cfg = Settings(source)
    source["lr"] = 5.0
    assert cfg.lr == 0.1


def test_settings_travel_to_workers() -> None:
    """What was hidden stays unreadable on the other side of a pipe."""
    here, there = multiprocessing.Pipe()
    here.send(Settings(VALUES, ("lr",), "fit"))
    cfg = there.recv()
    assert dict(cfg) == {"lr": 0.1}
    with pytest.raises(KdzooError, match="steps"):
        _ = cfg.steps


# --- layers -------------------------------------------------------------------------------------------------------


def test_later_layers_win(toy: tuple[TaskCard, MethodCard]) -> None:
    """Card, then the method's change for this task, then --set, then the arm: an ablation stays one."""
    task, method = toy
    assert resolve(task, None, {}, {})["lr"] == 0.1
    assert resolve(task, method, {}, {})["lr"] == 0.2
    assert resolve(task, method, {"lr": 0.3}, {})["lr"] == 0.3
    assert resolve(task, method, {"lr": 0.3}, {"lr": 0.4})["lr"] == 0.4
    assert resolve(task, method, {"kd_weight": 3.0}, {"kd_weight": 0})["kd_weight"] == 0


def test_the_users_setting_reaches_only_arms_that_have_it(toy: tuple[TaskCard, MethodCard]) -> None:
    """--set kd_weight=2 speaks to the method's arms; the student alone has no such setting."""
    task, method = toy
    assert "kd_weight" not in resolve(task, None, {"kd_weight": 2.0}, {})
    assert set(defined(task, method)) - set(defined(task, None)) == {"kd_weight"}


def test_an_arm_may_only_set_what_exists(toy: tuple[TaskCard, MethodCard]) -> None:
    """A misspelt arm setting would be the plain method under another name."""
    task, method = toy
    with pytest.raises(KdzooError, match=r"unknown setting 'kd_wait'\. Did you mean kd_weight"):
        resolve(task, method, {}, {"kd_wait": 0})
    with pytest.raises(
        KdzooError, match=r"setting 'kd_weight': got -1, expected at least 0. weight of the term"
    ):
        resolve(task, method, {}, {"kd_weight": -1})


# --- text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps=20", 20),
        (" steps = 20 ", 20),
        ("lr=1e-3", 0.001),
        ("lr=1", 1.0),
        ("nesterov=false", False),
        ("nesterov=ON", True),
        ("schedule=constant", "constant"),
        ("milestones=0.3,0.6", [0.3, 0.6]),
        ("milestones=0.3, 0.6,", [0.3, 0.6]),
        ("milestones=", []),
        ("eval.bins=20", 20),
    ],
)
def test_text_becomes_the_kind_of_the_default(
    toy: tuple[TaskCard, MethodCard], text: str, expected: Any
) -> None:
    """The card's default says what a setting is; nobody declares types a second time."""
    (value,) = parse_assignments([text], toy[0].params).values()
    assert value == expected
    assert type(value) is type(expected)


def test_lists_of_other_kinds() -> None:
    """bool("false") is true: the parts of a list are read like single values."""
    params = {
        "flags": Param(default=[True], text=""),
        "sizes": Param(default=[1], text=""),
        "any": Param(default=None, text=""),
    }
    assert parse_assignments(["flags=false,true", "sizes=3,4"], params) == {
        "flags": [False, True],
        "sizes": [3, 4],
    }
    assert parse_assignments(["any=none"], params) == {"any": None}
    assert parse_assignments(["any=a=b"], params) == {"any": "a=b"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("steps", ["--set got 'steps'", "expected KEY=VALUE", "for example --set lr=0.1"]),
        ("", ["--set got ''", "expected KEY=VALUE"]),
        ("stepz=3", ["unknown setting 'stepz'", "Did you mean steps", "Known: accumulate, batch"]),
        ("=3", ["unknown setting ''"]),
        ("steps=abc", ["--set steps=abc", "expected a whole number", "default 10", "optimiser steps"]),
        ("steps=1.5", ["got '1.5'", "expected a whole number"]),
        ("steps=", ["got ''", "expected a whole number"]),
        ("steps=0", ["got 0", "expected at least 1", "optimiser steps"]),
        ("lr=fast", ["got 'fast'", "expected a number"]),
        ("lr=nan", ["got nan", "expected a finite number"]),
        ("lr=inf", ["got inf", "expected a finite number"]),
        ("nesterov=2", ["got '2'", "expected true or false"]),
        ("schedule=sine", ["got 'sine'", "expected one of 'constant', 'cosine'"]),
        ("milestones=0.5,late", ["got 'late'", "expected a number"]),
    ],
)
def test_what_cannot_be_a_value(toy: tuple[TaskCard, MethodCard], text: str, parts: list[str]) -> None:
    """Given, expected and what the setting means, in one message."""
    with pytest.raises(KdzooError) as error:
        parse_assignments([text], toy[0].params)
    for part in parts:
        assert part in str(error.value)


def test_one_setting_twice(toy: tuple[TaskCard, MethodCard]) -> None:
    """Which of the two the user meant cannot be known."""
    with pytest.raises(KdzooError, match=r"--set lr is given twice, 0.1 and '0.2'"):
        parse_assignments(["lr=0.1", "lr=0.2"], toy[0].params)
