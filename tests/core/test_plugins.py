"""Plugins are found, loaded and isolated: one that is broken is named in one line and harms nothing else."""

from __future__ import annotations

from importlib import metadata
from types import ModuleType
from typing import Any

import pytest

from kdzoo import plugins
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl

GOOD = """
@hookimpl
def commands():
    return {"fine": "toy_plugin_good:fine"}

def fine() -> None:
    '''Say fine.'''
    print("fine")
"""

BROKEN = {
    "import": (
        "import no_such_package_at_all",
        ["import failed: ModuleNotFoundError", "no_such_package_at_all"],
    ),
    "syntax": ("def f(:", ["import failed: SyntaxError"]),
    "raises": (
        "raise RuntimeError('first line\\nsecond line')",
        ["import failed: RuntimeError: first line second line"],
    ),
    "exits": ("import sys; sys.exit(3)", ["import failed: SystemExit: 3"]),
    "unknown": ("@hookimpl\ndef chekcs(): return {}", ["unknown hook 'chekcs'", "did you mean 'checks'?"]),
    "argument": (
        "@hookimpl\ndef cards(folder): return []",
        ["hook 'cards'", "{'folder'}", "can not be found"],
    ),
    "unmarked": (
        "@hookimpl\ndef checks(): return {}\ndef commands(): return {}",
        ["hook commands", "lacks @hookimpl", "never be called"],
    ),
    "empty": ("x = 1", ["implements no hook", "@kdzoo.hookspecs.hookimpl"]),
    "crash": ("@hookimpl\ndef commands(): return {}[0]", ["hook commands: KeyError: 0"]),
    "none": ("@hookimpl\ndef commands(): pass", ["hook commands: returned None, expected dict"]),
    "list": ("@hookimpl\ndef commands(): return ['bench']", ["hook commands: returned list, expected dict"]),
    "target": (
        "@hookimpl\ndef commands(): return {'x': 'module.function'}",
        ["hook commands", "'module:function'"],
    ),
    "twice": (
        "@hookimpl\ndef commands(): return {'bench': 'a:b'}",
        ["hook commands: 'bench' is core's already"],
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_named_and_the_rest_works(kind: str, plugged: Any, kdzoo: Any) -> None:
    """One broken plugin must not take the command line with it, nor be swallowed in silence."""
    source, expected = BROKEN[kind]
    plugged(bad=source, good=GOOD)
    assert kdzoo("fine").out == "fine\n"
    assert "bench" in kdzoo("--help").out
    listed = kdzoo("plugins")
    assert listed.code == 0
    lines = [line for line in listed.out.splitlines() if line.startswith("bad ")]
    assert len(lines) == 1
    for part in ["plugin 'bad' (toy_plugin_bad)", *expected]:
        assert part in lines[0]
    assert "good" in listed.out
    assert "Traceback" not in listed.err
    doctor = kdzoo("doctor")
    assert doctor.code == 1
    assert "WRONG  plugin 'bad'" in doctor.out


def test_a_command_that_cannot_be_loaded_says_why(plugged: Any, kdzoo: Any) -> None:
    """Help must print, and the other commands work, although one command's module is broken."""
    plugged(
        bad="""
        @hookimpl
        def commands():
            return {"lost": "no_such_module:run", "absent": "toy_plugin_bad:absent"}
        """,
        good=GOOD,
    )
    assert kdzoo("fine").out == "fine\n"
    help_text = kdzoo("--help")
    assert help_text.code == 0
    assert "BROKEN: cannot load 'no_such_module:run'" in " ".join(help_text.out.split())
    outcome = kdzoo("lost", "--any", "thing")
    assert outcome.code == 2
    assert outcome.err.startswith(
        "kdzoo: the command 'lost' cannot be used: cannot load 'no_such_module:run'"
    )
    assert "Traceback" not in outcome.err
    assert "absent" in kdzoo("absent").err


def test_two_plugins_of_one_name(plugged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second would replace the first without a word."""
    plugged(good=GOOD)
    twice = metadata.EntryPoint("good", "toy_plugin_other", "kdzoo")
    found = metadata.entry_points
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: [*found(group=group), twice])
    loaded = plugins.load()
    assert "same name (toy_plugin_other)" in str(loaded.found["good"].error)
    assert loaded.targets("commands")["fine"] == "toy_plugin_good:fine"


def test_kdzoo_plugins_limits_what_loads(plugged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin left out must not even be imported: it may be what breaks."""
    plugged(good=GOOD, bad="raise SystemExit('was imported')")
    monkeypatch.setenv("KDZOO_PLUGINS", "good")
    assert list(plugins.load().found) == ["core", "good"]
    assert not plugins.load().broken


def test_kdzoo_plugins_empty_is_core_alone(plugged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set and empty is not the same as not set."""
    plugged(good=GOOD)
    monkeypatch.setenv("KDZOO_PLUGINS", "")
    assert list(plugins.load().found) == ["core"]


def test_kdzoo_plugins_with_an_unknown_name(
    plugged: Any, kdzoo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typing mistake would otherwise make methods vanish."""
    plugged(good=GOOD)
    monkeypatch.setenv("KDZOO_PLUGINS", "core,goood")
    outcome = kdzoo("list")
    assert outcome.code == 2
    assert outcome.err.count("kdzoo: ") == 1
    for part in (
        "KDZOO_PLUGINS names goood",
        "installed: core, good",
        "Did you mean good?",
        "take the name out",
    ):
        assert part in outcome.err


def test_kdzoo_trace_prints_hook_calls(plugged: Any, kdzoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace says who answers, and stays off stdout, which may be parsed."""
    plugged(good=GOOD)
    monkeypatch.setenv("KDZOO_TRACE", "1")
    outcome = kdzoo("list", "--json")
    assert "hook commands() <- good" in outcome.err
    assert "hook commands() <- core" in outcome.err
    assert outcome.out.strip() == "[]"
    monkeypatch.setenv("KDZOO_TRACE", "0")
    plugins.load.cache_clear()
    assert kdzoo("list", "--json").err == ""


def test_trace_names_all_in_the_order_they_are_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a stage the order is what one traces for."""
    monkeypatch.setenv("KDZOO_TRACE", "1")

    @hookimpl
    def build_model(role: str) -> None:
        return None

    stage = []
    for who in ("core", "task", "method"):
        module = ModuleType(who)
        vars(module)["build_model"] = build_model
        stage.append((who, module))
    plugins.run_manager(stage).hook.build_model(run=object(), role="student")
    assert capsys.readouterr().err == "hook build_model(role='student') <- method, task, core\n"


def test_check_pending_refuses_a_misspelt_hook_of_a_method() -> None:
    """A method whose only hook is misspelt would train as the student alone and look like a weak method."""

    @hookimpl
    def loss_term(run: Any, batch: Any) -> dict[str, Any]:
        return {}

    module = ModuleType("toy_method")
    vars(module)["loss_term"] = loss_term
    with pytest.raises(
        KdzooError, match=r"method \(toy_method\) cannot be used: unknown hook 'loss_term'.*loss_terms"
    ):
        plugins.run_manager([("method", module)])


def test_a_plugin_that_was_refused_leaves_nothing_behind() -> None:
    """Half of a refused plugin must not go on answering."""

    @hookimpl
    def cards() -> list[Any]:
        return ["wrong"]

    @hookimpl
    def commands(argument: int) -> dict[str, str]:
        return {}

    module = ModuleType("toy_half")
    vars(module).update(cards=cards, commands=commands)
    manager = plugins.new_manager()
    assert plugins.register(manager, module, "half") is not None
    assert manager.hook.cards() == []
    assert not manager.has_plugin("half")


def test_an_imported_function_of_a_hooks_name_is_no_mistake() -> None:
    """Only a function written in the module itself can lack its mark; an imported one is somebody else's."""
    module = ModuleType("toy_importer")
    vars(module)["evaluate"] = test_two_plugins_of_one_name
    assert plugins.register(plugins.new_manager(), module, "importer") is None


def test_extensions(plugged: Any, kdzoo: Any) -> None:
    """An extension is imported only where it is named, and what is wrong with it is said before anything is trained."""
    plugged(
        extensions={
            "good": "@hookimpl\ndef after_step(run): pass",
            "broken": "import no_such_package_at_all",
            "wrong": "@hookimpl\ndef after_steps(run): pass",
        }
    )
    assert plugins.extension_versions(["good"]) == ("good==?",)
    with pytest.raises(KdzooError, match=r"unknown extension 'god'. Did you mean good"):
        plugins.extension_versions(["god"])
    with pytest.raises(KdzooError, match=r"extension 'broken' .*import failed: ModuleNotFoundError"):
        plugins.extension_versions(["broken"])
    with pytest.raises(KdzooError, match=r"extension 'wrong' .*unknown hook 'after_steps'.*after_step"):
        plugins.extension_versions(["wrong"])
    assert "extension good  (toy_plugin_good)  use: kdzoo bench SLUG --with good" in kdzoo("plugins").out


def test_resolve_names_the_target() -> None:
    """A stale entry point would otherwise end in a bare ImportError."""
    assert plugins.resolve("kdzoo.errors:KdzooError") is KdzooError
    for target in ("no_such_module:x", "kdzoo.errors:absent"):
        with pytest.raises(KdzooError, match=f"cannot load '{target}'.*Reinstall"):
            plugins.resolve(target)
