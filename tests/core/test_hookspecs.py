"""The ten hooks: documented with their exact signatures, tested each, and called in the order that is promised."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
import pytest

from kdzoo import hookspecs, plugins
from kdzoo.hookspecs import hookimpl

ROOT = Path(__file__).parents[2]
HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")]
ORDER = ["extension", "method", "task", "core"]
"""Who is asked first, second, ... in a running stage."""


def module(name: str, **functions: Any) -> ModuleType:
    """A plugin of these functions."""
    made = ModuleType(f"toy_{name}")
    vars(made).update(functions)
    return made


def manager(
    hook: str, answers: dict[str, Any], calls: list[str], arguments: str = "run"
) -> pluggy.PluginManager:
    """A stage's manager whose four plugins note that they were asked and give these answers."""

    def implementation(who: str) -> Any:
        def body(given: Any) -> Any:
            calls.append(who)
            answer = answers[who]
            return answer(given) if callable(answer) else answer

        scope = {"body": body}
        exec(f"def {hook}({arguments}): return body({arguments.split(', ')[-1]})", scope)
        return hookimpl(scope[hook])

    return plugins.run_manager(
        (who, module(who, **{hook: implementation(who)})) for who in reversed(ORDER) if who in answers
    )


def test_there_are_ten_hooks() -> None:
    """An eleventh hook would slip in without a design: at most ten, each with a plugin that needs it."""
    assert HOOKS == [
        "cards",
        "commands",
        "checks",
        "build_model",
        "prepare_batch",
        "teacher_signal",
        "loss_terms",
        "after_step",
        "fit",
        "evaluate",
    ]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_section_with_its_signature(hook: str) -> None:
    """A changed argument that the docs do not show would send plugin authors the wrong way."""
    docs = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", docs, flags=re.MULTILINE)
    section = next((text for text in sections if text.startswith(f"{hook}\n")), None)
    assert section is not None, f"docs/hooks.md has no section '## {hook}'"
    signature = hook + str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
    assert f"```python\n{signature}\n```" in section, f"docs/hooks.md must show: {signature}"
    for part in ("**When**", "**Order**", "**Returns**", "@hookimpl"):
        assert part in section, f"the section of {hook} lacks {part}"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_says_when_and_shows_an_example(hook: str) -> None:
    """hookspecs.py is the one file a plugin author must read: each docstring is whole."""
    text = inspect.getdoc(getattr(hookspecs, hook)) or ""
    assert "When:" in text
    assert "Example::" in text


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test(hook: str) -> None:
    """A hook without a test could stop being called unnoticed."""
    named = re.compile(rf"^\s*def test_hook_{hook}\b", re.MULTILINE)
    files = (ROOT / "tests").rglob("test_*.py")
    assert any(named.search(path.read_text(encoding="utf-8")) for path in files), f"no test_hook_{hook}"


@pytest.mark.parametrize("hook", HOOKS)
def test_the_documented_example_registers(hook: str) -> None:
    """An example with a wrong argument or without its mark would fail in its reader's hands."""
    docs = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    section = docs.split(f"\n## {hook}\n")[1].split("\n## ")[0]
    examples = [
        code for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL) if "@hookimpl" in code
    ]
    for code in examples:
        made = module("example", hookimpl=hookimpl)
        exec(code, vars(made))
        assert plugins.register(plugins.new_manager(), made, "example") is None


# --- registration -------------------------------------------------------------------------------------------------


def test_hook_cards(plugged: Any, write_cards: Any) -> None:
    """The catalogue holds the cards of every plugin's folders."""
    package = write_cards()
    plugged(
        one=f"""
        from pathlib import Path
        @hookimpl
        def cards():
            return [Path({str(package / "methods")!r})]
        """,
        two=f"""
        from pathlib import Path
        @hookimpl
        def cards():
            return [Path({str(package / "tasks")!r})]
        """,
    )
    from kdzoo import catalog

    found = catalog.load()
    assert list(found.methods) == ["toy-kd"]
    assert list(found.tasks) == ["toy-task"]
    assert not found.broken


def test_hook_commands(plugged: Any, kdzoo: Any) -> None:
    """A plugin's command stands beside core's; its module is imported when the command is called."""
    plugged(
        one="""
        @hookimpl
        def commands():
            return {"hello": "toy_plugin_one:hello"}

        def hello(name: str, twice: bool = False) -> None:
            '''Greet somebody.'''
            print(f"hello {name}" * (1 + twice))
        """
    )
    assert kdzoo("hello", "Ada", "--twice").out == "hello Adahello Ada\n"
    help_text = kdzoo("--help").out
    assert "Greet somebody." in help_text
    assert "bench" in help_text


def test_hook_checks(plugged: Any, kdzoo: Any) -> None:
    """A plugin's check is run by doctor; what it raises is a line, and the exit code is 1."""
    plugged(
        one="""
        from kdzoo.errors import KdzooError
        @hookimpl
        def checks():
            return {"fine": "toy_plugin_one:fine", "wrong": "toy_plugin_one:wrong", "crash": "toy_plugin_one:crash"}

        def fine():
            return "all there"

        def wrong():
            raise KdzooError("the lamp is out: change it")

        def crash():
            return 1 / 0
        """
    )
    outcome = kdzoo("doctor")
    assert outcome.code == 1
    assert "ok     fine: all there" in outcome.out
    assert "WRONG  wrong: the lamp is out: change it" in outcome.out
    assert "WRONG  crash: ZeroDivisionError: division by zero" in outcome.out
    assert "ok     python:" in outcome.out


# --- a running stage ----------------------------------------------------------------------------------------------


def test_hook_build_model() -> None:
    """First result: what the method leaves (None) the task builds; core is not asked any more."""
    calls: list[str] = []
    answers = {"extension": None, "method": None, "task": "a model", "core": "another"}
    built = manager("build_model", answers, calls, "run, role").hook.build_model(run=None, role="student")
    assert built == "a model"
    assert calls == ["extension", "method", "task"]


def test_hook_prepare_batch() -> None:
    """All, in order: each sees what those before it made of the batch."""
    calls: list[str] = []
    answers = {who: (lambda batch, who=who: batch.append(who)) for who in ORDER}
    batch: list[str] = []
    manager("prepare_batch", answers, calls, "run, batch").hook.prepare_batch(run=None, batch=batch)
    assert batch == ORDER


def test_hook_teacher_signal() -> None:
    """A wrapper (the control that shuffles) gets core's live answer and its own takes its place."""
    calls: list[str] = []
    stage = manager("teacher_signal", {"task": None, "core": [1, 2, 3]}, calls, "run, role, view")

    @hookimpl(wrapper=True)
    def teacher_signal(run: Any, role: str, view: str) -> Any:
        output = yield
        return output[::-1]

    assert (
        plugins.register(stage, module("control", teacher_signal=teacher_signal), "extension:control") is None
    )
    assert stage.hook.teacher_signal(run=None, role="teacher", view="image") == [3, 2, 1]
    assert calls == ["task", "core"]


def test_hook_loss_terms() -> None:
    """All; who has no term answers None and leaves no hole among the parts."""
    calls: list[str] = []
    answers = {"extension": {"extra": 1}, "method": {"kd": 2}, "task": {"task": 3}, "core": None}
    parts = manager("loss_terms", answers, calls, "run, batch").hook.loss_terms(run=None, batch=None)
    assert parts == [{"extra": 1}, {"kd": 2}, {"task": 3}]
    assert calls == ORDER


def test_hook_after_step() -> None:
    """All, and ``trylast`` lets one stand behind core: an EMA that must see what everybody did."""
    calls: list[str] = []
    stage = manager("after_step", {"method": None, "core": None}, calls, "run, batch")

    @hookimpl(trylast=True)
    def after_step(run: Any) -> None:
        calls.append("last")

    plugins.register(stage, module("average", after_step=after_step), "extension:average")
    assert stage.hook.after_step(run=None, batch=None) == []
    assert calls == ["method", "core", "last"]


def test_hook_fit() -> None:
    """The task's engine goes before core's; a wrapper's ``finally`` runs although the training raises."""
    calls: list[str] = []

    def breaks(run: Any) -> None:
        raise FloatingPointError("NaN")

    stage = manager("fit", {"task": breaks, "core": True}, calls)

    @hookimpl(wrapper=True)
    def fit(run: Any) -> Any:
        calls.append("before")
        try:
            return (yield)
        finally:
            calls.append("after")

    plugins.register(stage, module("taps", fit=fit), "extension:taps")
    with pytest.raises(FloatingPointError):
        stage.hook.fit(run=None)
    assert calls == ["before", "task", "after"]


def test_hook_evaluate() -> None:
    """All; core, asked last, adds to what the task measured."""
    calls: list[str] = []
    answers = {"method": None, "task": {"accuracy": 0.5}, "core": {"ece": 0.1}}
    parts = manager("evaluate", answers, calls, "run, split").hook.evaluate(run=None, split="val")
    assert parts == [{"accuracy": 0.5}, {"ece": 0.1}]
    assert calls == ["method", "task", "core"]


def test_core_answers_where_nobody_else_does() -> None:
    """The three hooks that core answers are really registered by its engine module, and asked last."""
    from kdzoo import builtin

    stage = plugins.run_manager([("core", builtin.engine()), ("task", module("task"))])
    answered = {call.name for call in stage.get_hookcallers(builtin.engine()) or []}
    assert answered == {"teacher_signal", "fit", "evaluate"}
