"""The lint pairs and their check, which runs ruff: what ships, which answers are right, how errors are reported."""

from __future__ import annotations

import ast
import hashlib
import json
import lzma
import shutil
import sys
from pathlib import Path

import pytest

from kdzoo.errors import KdzooError
from kdzoo_llm.data import lint_checks, lint_fixes
from kdzoo_llm.examples import Example

F401 = {"code": "F401", "suffix": "py", "keeps": ("print", "x")}
BAD = "import os\n\nx = 1\nprint(x)\n"
GOOD = "x = 1\nprint(x)\n"


def everything() -> list[Example]:
    return [row for split in lint_fixes.SPLITS for row in lint_fixes.examples(split)]


def test_manifest_is_that_of_the_files() -> None:
    """A file rebuilt without its manifest would go unseen."""
    said = json.loads((lint_fixes.FILES / "lint-fixes-manifest.json").read_text())
    packed = (lint_fixes.FILES / "lint-fixes.jsonl.xz").read_bytes()
    assert hashlib.sha256(packed).hexdigest() == said["sha256"]["lint-fixes.jsonl.xz"]
    assert hashlib.sha256(lzma.decompress(packed)).hexdigest() == said["sha256_of_lines"]
    assert {split: len(lint_fixes.examples(split)) for split in lint_fixes.SPLITS} == said["pairs"]


def test_a_rule_is_in_one_split() -> None:
    """Two examples of a rule in train and test would ask for what was shown."""
    seen: dict[str, set[str]] = {}
    for row in everything():
        seen.setdefault(row.facts["code"], set()).add(row.id.partition("/")[0])
    assert all(len(splits) == 1 for splits in seen.values())
    assert len(seen) > 750


def test_no_code_is_in_two_splits() -> None:
    """Rules about the same construct share examples word for word."""
    for side in (lambda row: row.facts["bad"], lambda row: row.answer):
        seen: dict[str, str] = {}
        for row in everything():
            split = row.id.partition("/")[0]
            assert seen.setdefault(" ".join(side(row).split()), split) == split, row.id


def test_prompts_hold_rule_message_and_code() -> None:
    """Without the message a model could not know which of many rules it has broken."""
    row = next(row for row in everything() if row.facts["code"] == "PIE794")
    first, _, code = row.prompt.partition("\n")
    assert first == "PIE794 Class field `name` is defined multiple times"
    assert code == row.facts["bad"].rstrip()
    assert row.facts["name"] == "duplicate-class-field-definition"
    assert row.facts["does"].startswith("Checks for duplicate field definitions")
    for row in everything():
        assert set(row.facts) == set(lint_fixes.FACTS)
        assert row.prompt == row.prompt.rstrip()
        assert row.answer == row.answer.rstrip() != ""
        assert row.facts["does"]
        assert row.facts["why"]


def test_shipped_answers_are_right_and_prompts_are_wrong() -> None:
    """A check that flagged nothing, or everything, would make all scores 1 or 0."""
    rows = lint_fixes.examples("test")[::5]
    facts = [row.facts for row in rows]
    assert all(lint_fixes.check_all([row.answer for row in rows], facts))
    assert not any(lint_fixes.check_all([row.facts["bad"] for row in rows], facts))


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (GOOD, True),
        (BAD, False),
        ("", False),
        ("\n  \n", False),
        ("# print(x) x\n", False),
        ("x = 1\nprint(x\n", False),  # not Python
        ("y = 2\n", False),  # mends nothing: another program
        (BAD.replace("import os", "import os  # noqa: F401"), False),
        ("# ruff: noqa\n" + BAD, False),
        ("# flake8: noqa\n" + BAD, False),
        ("print('x')\nx = '\udc80'\n", True),  # half a character, as a byte-level model may write it
    ],
)
def test_answers_to_one_rule(answer: str, right: bool) -> None:
    """Silencing the rule, deleting the code, or writing something else would count as mended."""
    assert lint_fixes.check(answer, F401) is right


@pytest.mark.parametrize(("answer", "right"), [("pass\n", False), ("...\n", False), ("{1, 2, 3}\n", True)])
def test_answers_where_no_name_must_stay(answer: str, right: bool) -> None:
    """`pass` breaks no rule about a set's elements."""
    assert lint_fixes.check(answer, {"code": "B033", "suffix": "py", "keeps": ()}) is right


def test_stub_files_are_checked_as_stubs() -> None:
    """Rules on stub files say nothing of .py files: every answer would be right."""
    row = next(row for row in everything() if row.facts["suffix"] == "pyi")
    assert lint_fixes.check(row.answer, row.facts)
    assert not lint_fixes.check(row.facts["bad"], row.facts)
    assert lint_checks.diagnoses(row.facts["code"], [(row.facts["bad"], "py")]) == [[]]


def test_rules_that_exclude_each_other_are_checked_apart() -> None:
    """Selected together, ruff drops one of D203 and D211: answers to it would never be flagged."""
    tight = 'class A:\n    """Doc."""\n'
    loose = 'class A:\n\n    """Doc."""\n'
    facts = [{"code": code, "suffix": "py", "keeps": ("A",)} for code in ("D203", "D211")]
    assert lint_fixes.check_all([tight, tight], facts) == [False, True]
    assert lint_fixes.check_all([loose, loose], facts) == [True, False]


def test_results_keep_the_order_of_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are sorted by rule to save runs; a result at another place would judge the wrong model."""
    runs = []
    real = lint_checks.diagnoses
    monkeypatch.setattr(
        lint_checks, "diagnoses", lambda code, rows: runs.append(len(rows)) or real(code, rows)
    )
    other = {"code": "E711", "suffix": "py", "keeps": ("x",)}
    answers = [GOOD, "x = 1\nx == None\n", BAD, "x = 1\nx is None\n", "", *[GOOD] * 12]
    found = lint_fixes.check_all(answers, [F401, other, F401, other, F401, *[F401] * 12])
    assert found == [True, False, False, True, False, *[True] * 12]
    assert sorted(runs) == [2, 14], "one run of ruff for each rule; none for what is empty"


def test_settings_of_the_folder_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's ruff.toml, or variables of ruff's, would change scores."""
    (tmp_path / "ruff.toml").write_text('[lint]\nignore = ["F401"]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUFF_OUTPUT_FORMAT", "concise")
    assert lint_fixes.check_all([BAD, GOOD], [F401, F401]) == [False, True]


def test_the_names_of_an_answer() -> None:
    """Keywords and comments are in every program: with them `import x` would keep enough."""
    assert lint_checks.common_names("import a  # b\nc = 1\n", "import c\na = b = 2\n") == ["a", "c"]
    assert lint_checks.substance("a = 1", ("a", "b"))
    assert not lint_checks.substance("a = 1", ("a", "b", "c"))


def test_python_answers_are_python() -> None:
    """Blocks cut at the wrong fence would hold prose; ruff judges newer syntax too, so a few need another parser."""
    lacking = 0
    for row in everything():
        try:
            ast.parse(row.answer)
        except SyntaxError:
            lacking += 1
    assert lacking <= (0 if sys.version_info >= (3, 12) else 12)


def test_a_missing_ruff_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ruff, "nothing flagged" would look like a perfect score."""
    monkeypatch.setitem(sys.modules, "ruff", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    lint_checks.ruff.cache_clear()
    try:
        with pytest.raises(KdzooError, match=r"ruff is not installed.*pip install 'kdzoo-llm\[lint\]'"):
            lint_fixes.check(GOOD, F401)
        monkeypatch.setattr(shutil, "which", lambda name: "/somewhere/ruff")
        assert lint_checks.ruff() == "/somewhere/ruff"
        with pytest.raises(KdzooError, match="/somewhere/ruff could not be run"):
            lint_fixes.check(GOOD, F401)
    finally:
        lint_checks.ruff.cache_clear()


def test_bad_input_is_named(tmp_path: Path) -> None:
    """Facts of another task, a rule that ruff does not know, a damaged file: each would give a score of nothing."""
    with pytest.raises(KdzooError, match="unknown split of lint-fixes 'valid'"):
        lint_fixes.examples("valid")
    with pytest.raises(KdzooError, match="2 answers for 1 prompts"):
        lint_fixes.check_all([GOOD, GOOD], [F401])
    with pytest.raises(KdzooError, match="lack suffix, keeps"):
        lint_fixes.check(GOOD, {"code": "F401"})
    with pytest.raises(KdzooError, match="suffix 'toml'"):
        lint_fixes.check(GOOD, F401 | {"suffix": "toml"})
    with pytest.raises(KdzooError, match=r"ZZZ999.*every answer would count as right"):
        lint_fixes.check(GOOD, F401 | {"code": "ZZZ999"})
    for name in ("lint-fixes.jsonl.xz", "lint-fixes-manifest.json"):
        shutil.copy(lint_fixes.FILES / name, tmp_path / name)
    with (tmp_path / "lint-fixes.jsonl.xz").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(KdzooError, match=r"has sha256 .*tools/build_lint_fixes.py"):
        lint_fixes.examples("val", tmp_path)
