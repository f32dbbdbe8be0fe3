"""The command line: what it offers is frozen here, it starts without torch, and mistakes end in one message."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from kdzoo import cli

SURFACE = {
    "kdzoo": ["--version", "--install-completion", "--show-completion", "--help"],
    "list": [
        "[pattern]",
        "--domain",
        "--knowledge",
        "--scheme",
        "--family",
        "--teacher",
        "--fidelity",
        "--task",
        "--year",
        "--tasks",
        "--json",
        "--help",
    ],
    "show": ["slug", "--json", "--help"],
    "bench": [
        "method",
        "--profile",
        "--task",
        "--seeds",
        "--arms",
        "--controls",
        "--set",
        "--with",
        "--signals",
        "--resume",
        "--fresh",
        "--jobs",
        "--device",
        "--dtype",
        "--threads",
        "--data-root",
        "--out",
        "--smoke",
        "--json",
        "--help",
    ],
    "report": ["result", "--out", "--open", "--help"],
    "diagnose": ["result", "--json", "--help"],
    "cache": [
        "action",
        "[names]",
        "--task",
        "--signals",
        "--part",
        "--set",
        "--data-root",
        "--device",
        "--dtype",
        "--threads",
        "--older-than",
        "--unused",
        "--all",
        "--dry-run",
        "--yes",
        "--json",
        "--help",
    ],
    "compare": [
        "methods",
        "--task",
        "--seeds",
        "--metric",
        "--set",
        "--jobs",
        "--device",
        "--dtype",
        "--threads",
        "--data-root",
        "--out",
        "--smoke",
        "--json",
        "--help",
    ],
    "new": ["slug", "--plugin", "--task", "--path", "--help"],
    "new-plugin": ["name", "--path", "--help"],
    "plugins": ["--json", "--help"],
    "doctor": ["--help"],
    "version": ["--help"],
}
"""Every command and option. Scripts rely on them: one may be added here, with a line in the changelog; none may go."""


def tree() -> tuple[Any, Any]:
    group = typer.main.get_command(cli.app)
    return group, group.make_context("kdzoo", [], resilient_parsing=True)


def parameters(command: Any, context: Any) -> list[str]:
    names = []
    for param in command.get_params(context):
        if param.param_type_name == "argument":
            names.append(param.name if param.required else f"[{param.name}]")
        else:
            names.append(param.opts[0])
    return names


def test_the_public_surface_is_frozen(plugged: Any) -> None:
    """Renaming an option breaks scripts without any test of its own failing."""
    plugged()
    group, context = tree()
    found = {"kdzoo": parameters(group, context)}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found[name] = parameters(
            command, command.make_context(name, [], parent=context, resilient_parsing=True)
        )
    assert found == SURFACE


def test_help_texts_are_sentences(plugged: Any) -> None:
    """A list of nouns says what an option is about, not what happens."""
    plugged()
    group, context = tree()
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command.help.partition("\n")[0].endswith("."), name
        for param in command.get_params(context):
            text = param.help or ""
            assert text.endswith("."), f"{name} {param.name}: {text!r}"
            assert text[0].isupper() or text[0] == "'", f"{name} {param.name}: {text!r}"


def test_short_help_is_not_cut_off(plugged: Any, kdzoo: Any) -> None:
    """Typer cuts first sentences that are too long for a line of the command list."""
    plugged()
    listed = kdzoo("--help").out.partition("Commands:")[2]
    assert "..." not in listed
    assert len(listed.strip().splitlines()) == len(SURFACE) - 1


HEAVY = ("torch", "numpy", "scipy", "accelerate", "timm", "torchvision", "safetensors", "pydantic", "rich")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["list"],
        ["list", "--json"],
        ["show", "rkd"],
        ["plugins"],
        ["version"],
        ["bench", "--help"],
        ["bench", "x"],
    ],
)
def test_starts_without_heavy_imports(words: list[str], tmp_path: Path) -> None:
    """With all plugins installed. One import at the top of one file makes every command slow."""
    code = (
        "import sys, kdzoo.cli\n"
        f"sys.argv = ['kdzoo', *{words!r}]\n"
        "try: kdzoo.cli.main()\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & sys.modules.keys()), file=sys.stderr)\n"
    )
    env = {**os.environ, "KDZOO_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert done.stderr.endswith("HEAVY []\n"), done.stderr


def test_the_installed_program(tmp_path: Path) -> None:
    """Once through the script that pip makes: exit codes and streams of the real process."""
    program = Path(sys.executable).with_name("kdzoo")
    env = {**os.environ, "KDZOO_HOME": str(tmp_path / "home")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(program), *words], capture_output=True, text=True, env=env, timeout=60)

    good, bad = run("version"), run("lst")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("kdzoo ")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("kdzoo: unknown command 'lst'. Did you mean list?")


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    """``kdzoo show rkd --json | head -1`` must not end in a traceback."""
    env = {**os.environ, "KDZOO_HOME": str(tmp_path)}
    code = "import sys, kdzoo.cli; sys.argv = ['kdzoo', 'show', 'rkd', '--json']; kdzoo.cli.main()"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, env=env
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode in (1, 141)


# --- without words ------------------------------------------------------------------------------------------------


def test_no_words_print_help(plugged: Any, kdzoo: Any) -> None:
    """The first thing a new user types is the bare name."""
    plugged()
    bare = kdzoo()
    assert (bare.code, bare.err) == (0, "")
    assert bare.out == kdzoo("--help").out


def test_version(kdzoo: Any) -> None:
    """Both spellings say the same."""
    assert kdzoo("version").out == kdzoo("--version").out
    assert kdzoo("version").out.startswith("kdzoo 0.")


# --- list, show, plugins ------------------------------------------------------------------------------------------


@pytest.fixture
def toy(plugged: Any, write_cards: Any) -> None:
    claim = '[[claims]]\nclaim = 1\nkind = "order"\nmetric = "test/accuracy"\narms = ["toy-kd", "student"]\n'
    package = write_cards(method='[switches.soft]\noff = { kd_weight = 0 }\ncomponent = "C1"\n' + claim)
    text = (package / "methods" / "toy-kd.toml").read_text()
    other = text.replace("toy-kd", "relation-kd").replace('["response"]', '["relation", "response"]')
    (package / "methods" / "relation-kd.toml").write_text(other.replace("2020", "2021"))
    plugged(
        toy=f"from pathlib import Path\n@hookimpl\ndef cards():\n"
        f"    return [Path({str(package)!r}) / 'methods', Path({str(package)!r}) / 'tasks']",
        extensions={"ext": "@hookimpl\ndef after_step(run): pass"},
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["relation-kd", "toy-kd"]),
        (["t*"], ["toy-kd"]),
        (["*-kd"], ["relation-kd", "toy-kd"]),
        (["--knowledge", "relation"], ["relation-kd"]),
        (["--knowledge", "response", "--year", "2020"], ["toy-kd"]),
        (["--domain", "toy", "--scheme", "offline", "--fidelity", "paper"], ["relation-kd", "toy-kd"]),
        (["--task", "toy-task", "--teacher", "logits", "--family", "soft labels"], ["relation-kd", "toy-kd"]),
        (["r*", "--year", "2020"], []),
        (["--tasks"], ["toy-task"]),
        (["--tasks", "x*"], []),
        (["--tasks", "t*", "--domain", "toy"], ["toy-task"]),
    ],
)
def test_list(toy: None, kdzoo: Any, words: list[str], expected: list[str]) -> None:
    """The table and the JSON hold the same rows; nothing found is said on stderr."""
    outcome = kdzoo("list", *words)
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.out.splitlines()[1:]] == expected
    assert [row["slug"] for row in json.loads(kdzoo("list", *words, "--json").out)] == expected
    assert bool(outcome.err) == (not expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scheme", "ofline"], "unknown scheme 'ofline'. Did you mean offline? Known: offline."),
        (["--tasks", "--year", "2020"], "--tasks with --year: only methods have it"),
        (["--tasks", "--domain", "tay"], "unknown plugin 'tay'. Did you mean toy? Known: toy."),
        (["--yaer", "2020"], "unknown option '--yaer'. Did you mean --year"),
        (["a", "b"], "got unexpected extra argument(s) (b). 'kdzoo list --help' says what it takes."),
        (["--scheme"], "option '--scheme' requires an argument."),
    ],
)
def test_list_refuses(toy: None, kdzoo: Any, words: list[str], message: str) -> None:
    """One line on stderr, exit code 2, nothing on stdout."""
    outcome = kdzoo("list", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("kdzoo: ")
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_show_a_method(toy: None, kdzoo: Any) -> None:
    """Fidelity stands before everything the card promises."""
    lines = kdzoo("show", "toy-kd").out.splitlines()
    assert lines[0] == "toy-kd: Toy distillation"
    assert lines[1].startswith("fidelity: paper")
    text = "\n".join(lines)
    for part in (
        "Settings",
        "kd_weight = 1.0",
        "toy-kd.without-soft",
        "Claims, decided before the run",
        "kdzoo bench toy-kd",
    ):
        assert part in text
    card = json.loads(kdzoo("show", "toy-kd", "--json").out)
    assert card["slug"] == "toy-kd"
    assert card["claims"][0]["arms"] == ["toy-kd", "student"]


def test_show_a_task(toy: None, kdzoo: Any) -> None:
    """Source, licence and what is simulated are part of a task."""
    text = kdzoo("show", "toy-task").out
    for part in (
        "toy-task: A toy",
        "licence: none needed",
        "simulated: nothing",
        "accuracy (higher is better, primary)",
    ):
        assert part in text
    assert json.loads(kdzoo("show", "toy-task", "--json").out)["params"]["steps"]["default"] == 10


def test_show_every_installed_card(kdzoo: Any) -> None:
    """A card with an unusual part (no hours, a row without a test) must not break its page."""
    from kdzoo import catalog

    for slug in [*catalog.load().methods, *catalog.load().tasks]:
        outcome = kdzoo("show", slug)
        assert outcome.code == 0, slug
        assert "None" not in outcome.out.replace("None of", ""), slug


def test_unknown_names_get_up_to_three_suggestions(toy: None, kdzoo: Any) -> None:
    """Of methods and tasks, where both are meant; exit code 2 and no traceback."""
    for words, message in {
        ("show", "toy"): "unknown method or task 'toy'. Did you mean toy-kd, toy-task? 'kdzoo list'",
        ("bench", "toy-dk"): "unknown method 'toy-dk'. Did you mean toy-kd",
        ("shwo", "x"): "unknown command 'shwo'. Did you mean show?",
        ("zzz",): "unknown command 'zzz'. 'kdzoo --help' lists the commands.",
    }.items():
        outcome = kdzoo(*words)
        assert (outcome.code, outcome.out) == (2, "")
        assert message in outcome.err
        assert "Traceback" not in outcome.err
        assert outcome.err.partition("Did you mean ")[2].partition("?")[0].count(",") <= 2


def test_plugins(toy: None, kdzoo: Any) -> None:
    """Origin, version, hooks; the JSON says the same and is alone on stdout."""
    text = kdzoo("plugins").out
    assert text.startswith("core  kdzoo 0.")
    assert "hooks: cards, checks, commands" in text
    found = json.loads(kdzoo("plugins", "--json").out)
    assert [row["name"] for row in found["plugins"]] == ["core", "toy"]
    assert found["plugins"][0]["version"][0].isdigit()
    assert found["plugins"][1]["hooks"] == ["cards"]
    assert found["extensions"] == {"ext": "toy_plugin_ext"}


def test_broken_things_leave_json_alone(plugged: Any, kdzoo: Any) -> None:
    """A warning amid JSON would break the program that reads it."""
    plugged(bad="import no_such_package_at_all")
    outcome = kdzoo("list", "--json")
    assert json.loads(outcome.out) == []
    assert "plugin 'bad'" in outcome.err


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "many"], "--seeds got 'many', expected a whole number, at least 1, at most 1000."),
        (["--seeds", "0"], "--seeds got '0', expected a whole number, at least 1"),
        (["--jobs", "-1"], "--jobs got '-1', expected a whole number, at least 0."),
        (["--threads", "1.5"], "--threads got '1.5', expected a whole number, at least 1."),
        (["--jobs"], "option '--jobs' requires an argument"),
        (["--smoke=yes"], "option '--smoke' does not take a value"),
        ([], "missing argument 'method'. 'kdzoo bench --help' says what it takes."),
    ],
)
def test_values_that_are_none(toy: None, kdzoo: Any, words: list[str], message: str) -> None:
    """In our words: what was given, what is expected, where to read more."""
    outcome = kdzoo("bench", *(["toy-kd"] if words else []), *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_values_of_a_plugins_command(plugged: Any, kdzoo: Any) -> None:
    """Plugins may use types that are not converted here: Typer's own conversion goes on working."""
    plugged(
        one="""
        from enum import Enum
        from pathlib import Path
        import typer

        class Color(Enum):
            red = "red"
            blue = "blue"

        @hookimpl
        def commands():
            return {"paint": "toy_plugin_one:paint"}

        def paint(
            path: Path, share: float = 0.5, color: Color = Color.red, number: list[int] = [], loud: bool = False,
        ) -> None:
            print(repr(path), share, color.name, number, loud)
        """
    )
    assert kdzoo("paint", "a/b").out == "PosixPath('a/b') 0.5 red [] False\n"
    words = ["paint", "x", "--share", "1e-2", "--color", "blue", "--number", "1", "--number", "2", "--loud"]
    assert kdzoo(*words).out == "PosixPath('x') 0.01 blue [1, 2] True\n"
    assert "--number got 'a', expected a whole number" in kdzoo("paint", "x", "--number", "a").err
    wrong = kdzoo("paint", "x", "--color", "green")
    assert wrong.code == 2
    assert "green" in wrong.err


# --- completion ---------------------------------------------------------------------------------------------------


def complete(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What bash is told after `line`."""
    monkeypatch.setenv("_KDZOO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    monkeypatch.setattr(sys, "argv", ["kdzoo"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main()
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("kdzoo s", ["show"]),
        ("kdzoo show ", ["relation-kd", "toy-kd", "toy-task"]),
        ("kdzoo show t", ["toy-kd", "toy-task"]),
        ("kdzoo bench ", ["relation-kd", "toy-kd"]),
        ("kdzoo bench toy-kd --se", ["--seeds", "--set"]),
        ("kdzoo bench toy-kd --task ", ["toy-task"]),
        ("kdzoo bench toy-kd --arms d", ["default"]),
        ("kdzoo bench toy-kd --arms toy", ["toy-kd", "toy-kd.without-soft"]),
        ("kdzoo bench toy-kd --arms toy-kd,t", ["toy-kd,teacher", "toy-kd,toy-kd.without-soft"]),
        ("kdzoo bench nonsense --arms t", []),
        ("kdzoo bench toy-kd --set l", ["lr="]),
        ("kdzoo bench toy-kd --set kd", ["kd_weight="]),
        ("kdzoo bench toy-kd --with ", ["ext"]),
        ("kdzoo bench toy-kd --profile ", ["local", "paper"]),
        ("kdzoo list --knowledge re", ["relation", "response"]),
        ("kdzoo list --year ", ["2020", "2021"]),
    ],
)
def test_completion(
    toy: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    expected: list[str],
) -> None:
    """Names come from the cards, for the method that is on the line."""
    assert complete(line, monkeypatch, capsys) == expected


def test_completion_is_silent_where_all_is_broken(
    monkeypatch: pytest.MonkeyPatch, plugged: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error message would be printed into the line that is being typed."""
    plugged()
    monkeypatch.setattr("kdzoo.catalog.load", lambda: 1 / 0)
    assert complete("kdzoo bench ", monkeypatch, capsys) == []
    assert complete("kdzoo bench x --arms ", monkeypatch, capsys) == []


def test_show_completion(tmp_path: Path) -> None:
    """The script for the shell that it is called from."""
    env = {**os.environ, "KDZOO_HOME": str(tmp_path)}
    program = str(Path(sys.executable).with_name("kdzoo"))
    # A second command keeps bash alive as the parent; make's own shell, sh, has no completion.
    line = f"{shlex.quote(program)} --show-completion; exit $?"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "complete -o default -F _kdzoo_completion kdzoo" in done.stdout
