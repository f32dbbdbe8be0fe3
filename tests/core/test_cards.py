"""Cards are read strictly: every mistake is named with its place and the nearest thing that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from kdzoo import card_errors, cards
from kdzoo.cards import MethodCard, Param, TaskCard, value_problem
from kdzoo.errors import KdzooError

SWITCH = '[switches.soft]\noff = { kd_weight = 0 }\ncomponent = "C1"\n'
ARM = '[arms."toy-kd.hot"]\ntext = "hotter"\nset = { kd_weight = 2.0 }\n'
CLAIM = '[[claims]]\nclaim = 1\nkind = "order"\nmetric = "test/accuracy"\narms = ["toy-kd", "student"]\n'


def read_method(write_cards: Any, change: tuple[str, str] | str = "") -> MethodCard:
    package: Path = write_cards(method=change)
    return cards.read(package / "methods" / "toy-kd.toml", MethodCard)


def read_task(write_cards: Any, change: tuple[str, str] | str = "") -> TaskCard:
    package: Path = write_cards(task=change)
    return cards.read(package / "tasks" / "toy-task.toml", TaskCard)


def test_whole_cards_are_read(write_cards: Any) -> None:
    """The cards that all tests below break are right to begin with."""
    card = read_method(write_cards, SWITCH + ARM + CLAIM)
    assert card.params["kd_weight"].default == 1.0
    assert card.roles["teacher"].source == "task"
    assert card.claims[0].arms == ("toy-kd", "student")
    assert read_task(write_cards).params["eval.bins"].default == 15


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ('sumary = "twice"\n', ["unknown key 'sumary'", "did you mean 'summary'?"]),
        (("kd_weight = { default = 1.0,", "kd_weight = { defalt = 1.0,"), ["params.kd_weight", "'default'?"]),
        (SWITCH + 'efect = "value"\n', ["in switches.soft: unknown key 'efect'", "did you mean 'effect'?"]),
        (
            ARM + "defaults = true\n",
            ["in arms.\"toy-kd.hot\": unknown key 'defaults'", "did you mean 'default'?"],
        ),
        (CLAIM + 'metrik = "x"\n', ["in claims[0]: unknown key 'metrik'", "did you mean 'metric'?"]),
        (
            ("venue =", "venu ="),
            ["in paper: unknown key 'venu'", "did you mean 'venue'?", "paper.venue is missing"],
        ),
        (
            ("default = true", "zzzz = true"),
            ["in tasks.toy-task: unknown key 'zzzz'", "known: profile, default,"],
        ),
    ],
)
def test_unknown_keys_name_the_nearest(write_cards: Any, change: Any, expected: list[str]) -> None:
    """A misspelt key that is ignored would leave its default in force."""
    if isinstance(change, str) and change.startswith("sumary"):
        change = ('family = "soft labels"\n', 'family = "soft labels"\n' + change)
    with pytest.raises(KdzooError, match=r"^card toy-kd\.toml: ") as error:
        read_method(write_cards, change)
    for part in expected:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("year = 2020", 'year = "2020"'), "paper.year: expected int, got str"),
        (('scheme = "offline"', 'scheme = "ofline"'), "scheme: invalid enum value 'ofline'"),
        (
            ('knowledge = ["response"]', 'knowledge = ["answers"]'),
            "knowledge[0]: invalid enum value 'answers'",
        ),
        (('text = "soft targets"', "text = 3"), "components.C1.text: expected str, got int"),
        (SWITCH.replace('"C1"', "[]"), "switches.soft.component: expected str, got array"),
        (ARM.replace('"hotter"', "1.5"), 'arms."toy-kd.hot".text: expected str, got float'),
        (CLAIM.replace("claim = 1", 'claim = "1"'), "claims[0].claim: expected int, got str"),
        (("low = 0.0", 'low = "0"'), "params.kd_weight.low: expected float | null, got str"),
        (('title = "Toy distillation"\nsummary', "summary"), "title is missing"),
        (('title = "Toy distillation"\nyear', "year"), "paper.title is missing"),
    ],
)
def test_wrong_types_name_the_place(write_cards: Any, change: Any, expected: str) -> None:
    """In a card of a hundred lines the place is half of the message."""
    with pytest.raises(KdzooError) as error:
        read_method(write_cards, change)
    assert str(error.value).startswith("card toy-kd.toml: ")
    assert expected in str(error.value)


def test_all_faults_are_told_at_once(write_cards: Any) -> None:
    """One fault a run would take as many runs as there are faults."""
    change = ('year = 2020\nvenue = "nowhere"', 'year = "2020"\nvenu = "nowhere"')
    with pytest.raises(KdzooError) as error:
        read_method(write_cards, change)
    for part in ("paper.year: expected int", "unknown key 'venu'", "paper.venue is missing"):
        assert part in str(error.value)


def test_faults_agree_with_msgspec(write_cards: Any) -> None:
    """The walk that names places finds a fault exactly where msgspec refuses."""
    right = msgspec.to_builtins(read_method(write_cards, SWITCH + ARM + CLAIM))
    assert card_errors.faults(right, MethodCard) == []
    for key in right:
        wrong = {**right, key: object()}
        assert card_errors.faults(wrong, MethodCard), key


@pytest.mark.parametrize("text", ["slug = ", "a = 1\na = 2\n", "[x\n"])
def test_broken_toml_names_the_line(tmp_path: Path, text: str) -> None:
    """A parser's position is worth more than 'invalid file'."""
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(KdzooError, match=r"card x\.toml cannot be read: .*(line|end of document)"):
        cards.read(path, MethodCard)


def test_unreadable_files(tmp_path: Path) -> None:
    """A missing file and bytes that are no text are mistakes of the card, not of the program."""
    path = tmp_path / "x.toml"
    with pytest.raises(KdzooError, match="cannot be read"):
        cards.read(path, TaskCard)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KdzooError, match="cannot be read"):
        cards.read(path, TaskCard)


METHOD_PROBLEMS = {
    "slug": (
        ('slug = "toy-kd"', 'slug = "toy-kdd"'),
        "slug is 'toy-kdd', expected 'toy-kd', the name of the file",
    ),
    "component": (SWITCH.replace("C1", "C2"), "switches.soft: component 'C2' is not in [components]"),
    "arm-name": (ARM.replace("toy-kd.hot", "hot"), "arms: 'hot' must begin with 'toy-kd.'"),
    "why": (ARM + 'differs = ["steps"]\n', "arms.toy-kd.hot: differs = ['steps'] needs a why"),
    "frozen": ('[roles.student]\n[roles.big]\nkind = "frozen"\n', "roles.big: a frozen role needs a source"),
    "source": (
        '[roles.student]\nsource = "nowhere"\n',
        "roles.student: source 'nowhere', expected init, init:ROLE,",
    ),
    "ships": (("family =", 'ships = ["decoder"]\nfamily ='), "ships: 'decoder' is not in [roles]"),
    "set-type": (
        ARM.replace("2.0", '"high"'),
        "arms.toy-kd.hot.set.kd_weight: got 'high' (str), expected float",
    ),
    "set-low": (
        SWITCH.replace("= 0 }", "= -1 }"),
        "switches.soft.off.kd_weight: got -1, expected at least 0",
    ),
    "default": (
        ("default = 1.0", "default = -1.0"),
        "params.kd_weight.default: got -1.0, expected at least 0",
    ),
    "no-default": (
        ("default = true", "default = false"),
        "profile 'local' needs exactly one default = true, got 0",
    ),
    "arm-tasks": (ARM + 'tasks = ["toy-tusk"]\n', "arms.toy-kd.hot.tasks: 'toy-tusk' is not in [tasks]"),
    "switch-tasks": (SWITCH + 'tasks = ["toy-tusk"]\n', "switches.soft.tasks: 'toy-tusk' is not in [tasks]"),
    "two-arms": (
        SWITCH + ARM.replace("hot", "without-soft"),
        "'toy-kd.without-soft' is the arm of switches.soft",
    ),
    "grid-empty": (
        ARM + "grid = { kd_weight = [] }\n",
        "grid.kd_weight: got [], expected one or more values",
    ),
    "grid-twice": (ARM + "grid = { kd_weight = [1.0, 1.0] }\n", "expected one or more values, all different"),
    "grid-value": (
        ARM + "grid = { kd_weight = [1.0, -1.0] }\n",
        "grid.kd_weight: got -1.0, expected at least 0",
    ),
    "taken": (("kd_weight = {", "items = {"), "params.items: the name is taken by cfg.items()"),
}


@pytest.mark.parametrize("name", METHOD_PROBLEMS)
def test_a_method_card_is_held_against_itself(write_cards: Any, name: str) -> None:
    """What would fail, or silently do nothing, in the middle of a bench fails when the card is read."""
    change, expected = METHOD_PROBLEMS[name]
    with pytest.raises(KdzooError) as error:
        read_method(write_cards, change)
    assert str(error.value).startswith("card toy-kd.toml: ")
    assert expected in str(error.value)


def test_four_default_arms_are_too_many(write_cards: Any) -> None:
    """The plain bench promises three minutes."""
    arms = "".join(f'[arms."toy-kd.{n}"]\ntext = "{n}"\ndefault = true\n' for n in "abc")
    assert len(read_method(write_cards, arms).arms) == 3
    with pytest.raises(KdzooError, match="4 arms are marked default, at most 3"):
        read_method(write_cards, arms + SWITCH + "default = true\n")


TASK_PROBLEMS = {
    "primary": (("primary = true", "primary = false"), "metrics: exactly one needs primary = true, got 0"),
    "stream": (('batch = "batch"', 'batch = "bach"'), "streams: setting 'bach' is not in [params]"),
    "split": (('split = "train"', 'split = "pool"'), "streams: split 'pool' is not in splits"),
    "kd": (
        ('kd = { method = "toy-kd" }', 'kd = "none"'),
        "kd: got 'none', expected {method = ...} or 'none: <why>'",
    ),
    "teacher-file": (("set = { steps = 30 }", 'file = "t.safetensors"'), "needs its sha256 and the command"),
    "teacher-set": (
        ("set = { steps = 30 }", "set = { stps = 30 }"),
        "unknown setting 'stps'. Did you mean steps",
    ),
    "teacher-value": (
        ("set = { steps = 30 }", "set = { steps = 0 }"),
        "teacher.set.steps: got 0, expected at least 1",
    ),
    "follow": (
        ("set = { steps = 30 }", 'follow = { steps = "stepz" }'),
        "unknown setting 'stepz'. Did you mean steps",
    ),
    "choice": (
        ('default = "cosine"', 'default = "sine"'),
        "params.schedule.default: got 'sine', expected one of",
    ),
}


@pytest.mark.parametrize("name", TASK_PROBLEMS)
def test_a_task_card_is_held_against_itself(write_cards: Any, name: str) -> None:
    """As for methods."""
    change, expected = TASK_PROBLEMS[name]
    with pytest.raises(KdzooError) as error:
        read_task(write_cards, change)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("param", "value", "expected"),
    [
        (Param(default=1, text=""), 2, None),
        (Param(default=1, text=""), 2.0, "got 2.0 (float), expected int"),
        (Param(default=1, text=""), True, "got True (bool), expected int"),
        (Param(default=1.0, text=""), 2, None),
        (Param(default=1.0, text=""), True, "got True (bool), expected float"),
        (Param(default=1.0, text=""), float("nan"), "got nan, expected a finite number"),
        (Param(default=1.0, text=""), float("-inf"), "got -inf, expected a finite number"),
        (Param(default=True, text=""), 1, "got 1 (int), expected bool"),
        (Param(default="a", text="", choices=["a", "b"]), "c", "got 'c', expected one of 'a', 'b'"),
        (Param(default=1, text="", low=1, high=3), 1, None),
        (Param(default=1, text="", low=1, high=3), 3, None),
        (Param(default=1, text="", low=1, high=3), 0, "got 0, expected at least 1"),
        (Param(default=1, text="", low=1, high=3), 4, "got 4, expected at most 3"),
        (Param(default=[0.5], text=""), [1, 2.5], None),
        (Param(default=[0.5], text=""), ["a"], "got 'a' (str), expected float"),
        (Param(default=[0.5], text="", high=1), [0.5, 2.0], "got 2.0, expected at most 1"),
        (Param(default=[0.5], text=""), 0.5, "got 0.5 (float), expected list"),
        (Param(default=["a"], text="", choices=["a", "b"]), ["b", "c"], "got 'c', expected one of 'a', 'b'"),
        (Param(default=[], text=""), [1, "a"], None),
        (Param(default=None, text=""), "anything", None),
    ],
)
def test_value_problem(param: Param, value: Any, expected: str | None) -> None:
    """Bounds are inclusive, a whole number is a float, and true is no number."""
    assert value_problem(param, value) == expected
