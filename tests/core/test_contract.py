"""The contract fails for broken methods: a toy method is broken in one place, and exactly the right check says so."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdzoo.errors import KdzooError
from kdzoo.testing.checks import METHOD_CHECKS, SWITCH_CHECKS
from kdzoo.testing.hook_types import hook_type_problems
from kdzoo.testing.subject import NotApplicable, Subject, plugin_uses

WHOLE = Path(__file__).parent / "whole_method"  # a task, and a method with a part for every check

MATCH = """if run.cfg.match_weight:
        total = (run.models["connector"](student) - target).square().sum()
        terms["match"] = Term(total, run.cfg.match_weight"""
TEACHER = 'run.signal("teacher").logits\n    target'
ANNOTATED = "loss_terms(run: Run, batch: Batch)"

# What is broken: (the part of the module, what takes its place, the one check that must fail, what it says).
BROKEN: dict[str, tuple[str, str, str, str]] = {
    "teacher-gets-gradient": (
        TEACHER,
        TEACHER.replace(
            'run.signal("teacher")', 'run.models["teacher"].requires_grad_()(batch.views["image"])'
        ),
        "only_trained_roles_get_gradients",
        "role 'teacher' is frozen and gets a gradient",
    ),
    "idle-connector": (
        'run.models["connector"](student) - target',
        "student - target",
        "only_trained_roles_get_gradients",
        "role 'connector' is trained but gets no gradient",
    ),
    "teacher-moves": (
        "    kept = centre(run)\n",
        """    kept = centre(run)
    if run.step == run.steps - 1:
        run.models["teacher"].body.bias.add_(1)
""",
        "frozen_roles_stay",
        "role 'teacher' is frozen, but",
    ),
    "switch-without-effect": (
        MATCH,
        MATCH.replace("if run.cfg.match_weight", "if True").replace("run.cfg.match_weight", "2.0"),
        "switch_acts[match]",
        "bit by bit those of toy-whole",
    ),
    "weight-0-taken-for-a-default": (
        MATCH,
        MATCH.replace("if run.cfg.match_weight", "if True") + " or 0.5",
        "switch_removes[match]",
        "something takes its place at 0",
    ),
    "weight-that-only-switches": (
        MATCH,
        MATCH.replace("total, run.cfg.match_weight", "total, 2.0"),
        "switch_removes[match]",
        "does not vanish with its weight",
    ),
    "evaluation-switch-without-effect": (
        'return {"beyond"',
        'return {} and {"beyond"',
        "switch_acts[margin]",
        "every metric is that of toy-whole",
    ),
    "value-switch-that-trains": (
        "teacher.square().sum(), run.cfg",
        "student.square().sum(), run.cfg",
        "switch_acts[constant]",
        "effect is 'value', but the trained weights differ",
    ),
    "nan-in-bfloat16": (
        "target).square().sum()",
        "target).square().sum() + (1 - (9 * student).sigmoid()).log().sum() * 1e-3",
        "finite_in_bfloat16",
        "in bfloat16, the",
    ),
    "state-on-the-run": (
        'run.keep("centre", Centre())',
        'vars(run).setdefault("centre", Centre())',
        "resume_is_exact",
        "state is outside the checkpoint",
    ),
    "state-in-the-module": (
        "target = teacher - centre(run).value",
        "SEEN.append(teacher.mean(0))\n    target = teacher - SEEN[0]",
        "resume_is_exact",
        "state is outside the checkpoint",
    ),
    "state-that-runs-share": (
        "target).square().sum()",
        "target).square().sum() * (1 + 0.01 * len(SEEN.append(student) or SEEN))",
        "same_seed_same_result",
        "trained twice with seed 0",
    ),
    "unseeded-randomness": (
        "target).square().sum()",
        'target).square().sum() * (1 + __import__("random").random())',
        "same_seed_same_result",
        "trained twice with seed 0",
    ),
    "coupled-and-not-declared": (
        "target).square().sum()",
        "target).square().sum() + torch.cdist(student, student).sum()",
        "batch_may_be_split",
        "couples_batch = true",
    ),
    "sum-a-step": (
        'run.cfg.match_weight, per="item"',
        "run.cfg.match_weight",
        "batch_may_be_split",
        "in two micro-batches",
    ),
    "teacher-that-draws": (
        'return nn.Linear(3, 3) if role == "connector" else None',
        'return nn.Linear(3, 3) if role == "connector" else Noisy(16, 0.0) if role == "teacher" else None',
        "recorded_signals_are_live",
        "as recorded",
    ),
    "models-that-are-built-and-thrown-away": (
        'return nn.Linear(3, 3) if role == "connector" else None',
        'return {"connector": nn.Linear(3, 3)}.get(role)',
        "all_arms_make_a_record",
        "differs from the student arm in init",
    ),
    "untyped": (ANNOTATED, "loss_terms(run, batch: Batch)", "hooks_are_typed", "run is annotated not at all"),
    "wrong-result-type": (
        ANNOTATED + " -> dict[str, Term]",
        ANNOTATED + " -> list[Term]",
        "hooks_are_typed",
        "returns list[Term], expected dict[str,Term]|None",
    ),
}

CARD_BROKEN: dict[str, tuple[str, str, str, str]] = {
    "claim-on-no-metric": (
        'metric = "test/accuracy"',
        'metric = "test/acuracy"',
        "card_is_valid",
        "no task of the method measures what these claims speak of",
    ),
    "task-that-is-nowhere": (
        "[tasks.toy-rows]",
        "[tasks.toy-columns]\n\n[tasks.toy-rows]",
        "card_is_valid",
        "task 'toy-columns' is not installed",
    ),
    "wrong-profile": (
        "[tasks.toy-rows]",
        '[tasks.toy-rows]\nprofile = "paper"',
        "card_is_valid",
        "tasks.toy-rows has profile 'paper', the task has 'local'",
    ),
    "anothers-plugin": ('plugin = "toy"', 'plugin = "vision"', "card_is_valid", "the folder is that of toy"),
    "needless-refusal-is-kept": ("couples_batch = false", "couples_batch = true", "", ""),
    "evaluation-switch-that-trains": (
        'off = { "eval.margin" = 0.9 }',
        'off = { "eval.margin" = 0.9, dropout = 0.1 }',
        "switch_acts[margin]",
        "the training has another key",
    ),
    "arm-that-differs-in-silence": (
        "[tasks.toy-rows]",
        '[arms."toy-whole.small"]\ntext = "half a batch"\nset = { batch = 4 }\n\n[tasks.toy-rows]',
        "all_arms_make_a_record",
        "differs from the student arm in order",
    ),
    "arm-that-fails": (
        "[tasks.toy-rows]",
        '[arms."toy-whole.odd"]\ntext = "no such optimiser"\nset = { optimizer = "none" }\n\n[tasks.toy-rows]',
        "all_arms_make_a_record",
        "toy-whole.odd, stage fit: setting optimizer is 'none'",
    ),
}


@pytest.fixture
def subject(tmp_path: Path, plugged: Callable[..., None]) -> Callable[..., Subject]:
    """``subject(module=(old, new), card=(old, new))``: the toy method, changed in one place, as an installed plugin."""

    def made(module: tuple[str, str] = ("", ""), card: tuple[str, str] = ("", "")) -> Subject:
        package = tmp_path / "toy_contract"
        shutil.copytree(WHOLE, package, ignore=shutil.ignore_patterns("__pycache__"))
        for name, (old, new) in {"toy_whole.py": module, "toy-whole.toml": card}.items():
            path = package / "methods" / name
            text = path.read_text(encoding="utf-8")
            assert not old or text.count(old) == 1, f"{old!r} is not in {name} exactly once"
            path.write_text(text.replace(old, new) if old else text, encoding="utf-8")
        for folder in (package, package / "methods", package / "tasks"):
            (folder / "__init__.py").touch()
        plugged(
            toy=f"""
            from pathlib import Path
            @hookimpl
            def cards():
                return [Path({str(package)!r}) / kind for kind in ("methods", "tasks")]
            """
        )
        return Subject("toy-whole", "toy-rows", tmp_path / "results")

    return made


@pytest.fixture(autouse=True)
def _importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))


def broken(subject: Subject) -> dict[str, str]:
    """What the checks have to say: name (and switch) -> message, for those that fail."""
    asked: list[tuple[str, Callable[[], None]]] = [
        (name, lambda check=check: check(subject)) for name, check in METHOD_CHECKS.items()
    ]
    asked += [
        (f"{name}[{switch}]", lambda check=check, switch=switch: check(subject, switch))
        for name, check in SWITCH_CHECKS.items()
        for switch in subject.card.switches
    ]
    found = {}
    for name, ask in asked:
        try:
            ask()
        except AssertionError as error:
            found[name] = str(error)
        except NotApplicable:
            pass
    return found


def test_a_whole_method_passes(subject: Any) -> None:
    """A check that a right method fails would be switched off, and with it what it protects from."""
    assert broken(subject()) == {}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_module(subject: Any, what: str) -> None:
    """A contract that a broken method passes, or that blames the wrong part, protects from nothing."""
    old, new, check, said = BROKEN[what]
    found = broken(subject(module=(old, new)))
    assert list(found) == [check], found
    assert said in found[check]


@pytest.mark.parametrize("what", CARD_BROKEN)
def test_a_broken_card(subject: Any, what: str) -> None:
    """What a card promises and the code does not keep must be told by its own check."""
    old, new, check, said = CARD_BROKEN[what]
    found = broken(subject(card=(old, new)))
    assert list(found) == ([check] if check else [])
    assert not check or said in found[check]


def test_a_claim_of_an_arm_that_is_nowhere(subject: Any) -> None:
    """No arm of such a card can be planned; the check of the card must say which name is wrong."""
    with pytest.raises(AssertionError, match="unknown arm 'toy-hole'"):
        METHOD_CHECKS["card_is_valid"](subject(card=('["toy-whole", "student"]', '["toy-hole", "student"]')))


def test_a_plugin_that_is_not_installed() -> None:
    """A misspelt plugin has no methods: its contract would pass without looking at anything."""
    with pytest.raises(KdzooError, match=r"unknown plugin 'visoin'. Did you mean vision"):
        plugin_uses("visoin", "local")


def test_a_wrapper_is_typed_as_a_generator() -> None:
    """A wrapper annotated like a plain hook is a type error where it is called, not where it is written."""
    module = ModuleType("toy_wrapper")
    source = """
from __future__ import annotations
from kdzoo.hookspecs import hookimpl
@hookimpl(wrapper=True)
def loss_terms(run: Run, batch: method.Batch) -> {result}:
    return (yield)
"""
    for result, problems in (("Generator[None, list, list]", 0), ("dict[str, Term]", 1)):
        exec(source.format(result=result), vars(module))
        assert len(hook_type_problems(module)) == problems


def test_pytest_waits_for_nothing(tmp_path: Path) -> None:
    """Everybody who has kdzoo installed would wait for torch at each start of pytest, asked for or not."""
    heavy = {"torch", "numpy", "kdzoo.catalog", "kdzoo.plugins"}
    (tmp_path / "test_other.py").write_text(
        f"import sys\n\ndef test_other():\n    assert not {heavy} & set(sys.modules)\n"
        "    assert 'kdzoo.testing.pytest_plugin' in sys.modules\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
